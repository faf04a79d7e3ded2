//! Nodes that are only a lease: what makes a cluster large.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, params};

/// Where their subnets begin: past those that the daemons take, which are the first of the network.
const FIRST: u32 = 0x0a20_0000;
/// Where their public addresses begin.
const PUBLIC: u32 = 0xac10_0000;
/// As flannel's.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// The subnet of one of them, a /24.
pub(super) fn subnet(node: usize) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + ((node as u32) << 8))
}

/// Its link address on the overlay.
pub(super) fn mac(node: usize) -> [u8; 6] {
    let [_, a, b, c] = (node as u32).to_be_bytes();
    [2, 0, 0, a, b, c]
}

/// Puts the leases of `nodes` into the store in one step. Those in `near` are at that address, so that somebody
/// there can see their packets; the others at addresses that are nobody's. Returns the moment when it was done.
pub(super) fn join(store: &Path, nodes: Range<usize>, near: &[usize], at: Ipv4Addr) -> Result<Instant> {
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFE;
    in_one_step(store, |connection| {
        let mut put = connection.prepare("INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3)")?;
        for node in nodes {
            let public = if near.contains(&node) { at } else { Ipv4Addr::from(PUBLIC + node as u32) };
            put.execute(params![key(node), value(public, mac(node)), expires.as_secs() as i64])?;
        }
        Ok(())
    })
}

fn in_one_step(store: &Path, step: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<Instant> {
    let tried = || format!("cannot write leases into {}", store.display());
    let mut connection = Connection::open(store).with_context(tried)?;
    connection.busy_timeout(Duration::from_secs(10)).with_context(tried)?;
    let transaction = connection.transaction().with_context(tried)?;
    step(&transaction).with_context(tried)?;
    transaction.commit().with_context(tried)?;
    Ok(Instant::now())
}

fn key(node: usize) -> String {
    format!("{}-24", subnet(node))
}

fn value(public: Ipv4Addr, [a, b, c, d, e, f]: [u8; 6]) -> String {
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_subnet_and_link_address() {
        assert_eq!(key(0), "10.32.0.0-24");
        assert_eq!(key(9_999), "10.71.15.0-24");
        assert_eq!(mac(258), [2, 0, 0, 0, 1, 2]);
        let value: serde_json::Value = serde_json::from_str(&value([192, 0, 2, 1].into(), mac(7))).unwrap();
        assert_eq!(value["BackendData"]["VtepMAC"], "02:00:00:00:00:07");
    }
}
