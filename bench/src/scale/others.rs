//! Nodes that consist only of a lease, to make a cluster large.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, params};

/// First subnet of these nodes, beyond the daemons' subnets at the start of the network.
const FIRST: u32 = 0x0a20_0000;
/// First public address of these nodes.
const PUBLIC: u32 = 0xac10_0000;
/// Lifetime of a lease, as in flannel.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the subnet of a node, a /24.
pub(super) fn subnet(node: usize) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + ((node as u32) << 8))
}

/// Returns the MAC address of a node on the overlay.
pub(super) fn mac(node: usize) -> [u8; 6] {
    let [_, a, b, c] = (node as u32).to_be_bytes();
    [2, 0, 0, a, b, c]
}

/// Adds the leases of `nodes` to the store in one transaction. The nodes in `near` have the public address
/// `at`, so that a listener there sees their packets; the others have unused addresses. Returns the time of
/// completion.
pub(super) fn join(store: &Path, nodes: Range<usize>, near: &[usize], at: Ipv4Addr) -> Result<Instant> {
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFETIME;
    in_transaction(store, |connection| {
        let mut put = connection.prepare("INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3)")?;
        for node in nodes {
            let public = if near.contains(&node) { at } else { Ipv4Addr::from(PUBLIC + node as u32) };
            put.execute(params![key(node), value(public, mac(node)), expires.as_secs() as i64])?;
        }
        Ok(())
    })
}

fn in_transaction(store: &Path, step: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<Instant> {
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
    fn each_node_has_its_own_subnet_and_mac_address() {
        assert_eq!(key(0), "10.32.0.0-24");
        assert_eq!(key(9_999), "10.71.15.0-24");
        assert_eq!(mac(258), [2, 0, 0, 0, 1, 2]);
        let value: serde_json::Value = serde_json::from_str(&value([192, 0, 2, 1].into(), mac(7))).unwrap();
        assert_eq!(value["BackendData"]["VtepMAC"], "02:00:00:00:00:07");
    }
}
