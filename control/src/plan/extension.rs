//! flannel's `extension` backend: the operator's commands build the paths; loden runs them for each peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;
use model::backend::Extension;
use model::lease::{Lease, LeaseAttrs};

use super::context::{Context, inner_mtu};
use super::error::PlanError;
use super::intent::{CommandPeer, Commands, Paths, Peer};
use super::outline::Outline;
use super::peers::{check_type, sift};
use store::lease::ledger::LeaseSet;

/// The backend type in leases.
const TYPE: &str = "extension";

pub(super) fn outline(context: &Context) -> Result<Outline, PlanError> {
    let attrs = LeaseAttrs {
        // As in flannel: the interface's own address, regardless of --public-ip.
        public_ip: context.underlay.ipv4.map_or(Ipv4Addr::UNSPECIFIED, |ends| ends.local),
        public_ipv6: context.underlay.ipv6.map(|ends| ends.local),
        backend_type: TYPE.to_owned(),
        backend_data: context.extension_data.clone(),
        backend_v6_data: None,
    };
    let pod_mtu = inner_mtu(context, context.underlay.mtu, 0, context.config.ipv6.is_some())?;
    Ok(Outline { tunnels: Vec::new(), attrs, pod_mtu, notes: Vec::new() })
}

pub(super) fn paths(extension: &Extension, own: &Lease, leases: &LeaseSet) -> Paths {
    let sifted = sift(own, leases, 1, |lease| {
        check_type(lease, TYPE)?;
        data(lease)?;
        let (v4, v6) = (lease.subnet().map(IpNetwork::V4), lease.ipv6_subnet().map(IpNetwork::V6));
        let remote = SocketAddr::new(IpAddr::V4(lease.attrs.public_ip), 0);
        Ok([v4, v6]
            .into_iter()
            .flatten()
            .map(|subnet| (0, Peer { subnet, remote, mac: None, key: None }))
            .collect())
    });
    let ignored: BTreeSet<&str> = sifted.ignored.iter().map(|ignored| ignored.subnet.as_str()).collect();
    let mut peers = BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease.key != own.key) {
        let key = lease.key.to_string();
        if !ignored.contains(key.as_str()) {
            let stdin = data(lease).unwrap_or_default();
            peers.insert(key, CommandPeer { variables: variables(lease).into(), stdin });
        }
    }
    let commands =
        Commands { add: extension.subnet_add.clone(), remove: extension.subnet_remove.clone(), peers };
    Paths { commands: Some(commands), ignored: sifted.ignored, ..Paths::default() }
}

/// Returns a command's variables for a lease. flannel passes the IPv6 variables only to PostStartupCommand,
/// but documents them for all commands.
pub(super) fn variables(lease: &Lease) -> [(&'static str, String); 4] {
    let text = |value: Option<String>| value.unwrap_or_default();
    [
        ("SUBNET", text(lease.subnet().map(|subnet| subnet.to_string()))),
        ("PUBLIC_IP", lease.attrs.public_ip.to_string()),
        ("IPV6SUBNET", text(lease.ipv6_subnet().map(|subnet| subnet.to_string()))),
        ("PUBLIC_IPV6", text(lease.attrs.public_ipv6.map(|ip| ip.to_string()))),
    ]
}

/// Returns the text that the peer's PreStartupCommand printed.
fn data(lease: &Lease) -> Result<String, String> {
    let Some(data) = &lease.attrs.backend_data else { return Ok(String::new()) };
    serde_json::from_str(data.as_str()).map_err(|_| "its extension data is not a JSON string".to_owned())
}
