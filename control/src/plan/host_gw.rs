//! flannel's `host-gw` backend: no tunnel, a kernel route to each peer on the same link.
//!
//! Packets cross the network unmodified, so every node must be reachable without a router in between; the
//! kernel rejects the route to a node that is not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;
use model::lease::{Lease, LeaseAttrs};

use super::context::{Context, inner_mtu, places};
use super::error::{PlanError, missing};
use super::intent::{Direct, Paths, Peer, Route};
use super::outline::Outline;
use super::peers::{check_type, sift};
use crate::underlay::Endpoint;
use store::lease::ledger::LeaseSet;

/// The backend type in leases.
const TYPE: &str = "host-gw";

pub(super) fn outline(context: &Context) -> Result<Outline, PlanError> {
    let (ipv4, ipv6) = (context.config.ipv4.is_some(), context.config.ipv6.is_some());
    let ends_v4 = ipv4.then(|| context.underlay.ipv4.ok_or(missing("IPv4", "the underlay"))).transpose()?;
    let ends_v6 = ipv6.then(|| context.underlay.ipv6.ok_or(missing("IPv6", "the underlay"))).transpose()?;
    if ends_v4.is_some_and(behind_nat) || ends_v6.is_some_and(behind_nat) {
        let problem = "the public address is not the interface's, so there is a NAT between the nodes, which \
                       host-gw's routes cannot cross; use vxlan, or omit --public-ip and --public-ipv6";
        return Err(PlanError::Backend { backend: TYPE, problem });
    }
    let attrs = LeaseAttrs {
        public_ip: ends_v4.map_or(Ipv4Addr::UNSPECIFIED, |ends| ends.public),
        public_ipv6: ends_v6.map(|ends| ends.public),
        backend_type: TYPE.to_owned(),
        backend_data: None,
        backend_v6_data: None,
    };
    let pod_mtu = inner_mtu(context, context.underlay.mtu, 0, ipv6)?;
    Ok(Outline { tunnels: Vec::new(), attrs, pod_mtu, notes: Vec::new() })
}

pub(super) fn paths(context: &Context, own: &Lease, leases: &LeaseSet) -> Result<Paths, PlanError> {
    let places = places(context, own)?;
    let sifted = sift(own, leases, places.len(), |lease| {
        check_type(lease, TYPE)?;
        let gateways = places.iter().enumerate().map(|(number, place)| {
            let peer = if place.cluster.is_ipv4() { gateway_v4(lease)? } else { gateway_v6(lease) };
            Ok(peer.map(|peer| (number, peer)))
        });
        let gateways: Result<Vec<_>, String> = gateways.collect();
        Ok(gateways?.into_iter().flatten().collect())
    });
    let peers = sifted.peers.iter().flatten();
    let mut routes: Vec<Route> = peers.map(|peer| Route::via(peer.subnet, peer.remote.ip())).collect();
    routes.sort_unstable();
    let direct =
        Direct { interface: context.underlay.interface.clone(), places, routes, detours: Vec::new() };
    Ok(Paths { direct: Some(direct), ignored: sifted.ignored, ..Paths::default() })
}

fn behind_nat<A: PartialEq>(ends: Endpoint<A>) -> bool {
    ends.public != ends.local
}

/// Returns the peer for IPv4. A node without an IPv4 subnet is not a peer, which is no reason for a warning.
fn gateway_v4(lease: &Lease) -> Result<Option<Peer>, String> {
    let Some(subnet) = lease.subnet() else { return Ok(None) };
    if lease.attrs.public_ip.is_unspecified() {
        return Err("it publishes no IPv4 address for its IPv4 subnet".into());
    }
    Ok(Some(gateway(IpNetwork::V4(subnet), lease.attrs.public_ip.into())))
}

fn gateway_v6(lease: &Lease) -> Option<Peer> {
    let (subnet, public) = lease.ipv6_subnet().zip(lease.attrs.public_ipv6)?;
    Some(gateway(IpNetwork::V6(subnet), public.into()))
}

fn gateway(subnet: IpNetwork, public: IpAddr) -> Peer {
    Peer { subnet, remote: SocketAddr::new(public, 0), mac: None, key: None }
}
