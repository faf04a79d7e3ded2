//! flannel's `ipip` backend: IPv4 in IPv4 on `flannel.ipip`, and a route through each peer's public address.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use model::lease::Lease;
use path::encap::{self, Format};

use super::context::{Context, inner_mtu};
use super::direct;
use super::error::{NO_IPV4, PlanError, missing};
use super::intent::{Link, Paths, Peer, Place, Tunnel};
use super::outline::{Outline, TunnelOutline};
use super::peers::{check_type, sift};
use store::lease::ledger::LeaseSet;

const DEVICE: &str = "flannel.ipip";
/// Outer IPv4 header.
const OVERHEAD: u32 = 20;
/// The backend type in leases.
const TYPE: &str = "ipip";

pub(super) fn outline(context: &Context) -> Result<Outline, PlanError> {
    if context.config.ipv4.is_none() {
        return Err(PlanError::Backend { backend: TYPE, problem: NO_IPV4 });
    }
    let ends = context.underlay.ipv4.ok_or(missing("IPv4", "the underlay"))?;
    let mtu = inner_mtu(context, context.underlay.mtu, OVERHEAD, false)?;
    let tunnel = TunnelOutline {
        device: DEVICE.to_owned(),
        mtu,
        listen: SocketAddr::new(IpAddr::V4(ends.local), 0),
        listen_besides: Vec::new(),
        send_from: None,
        // The interface's address, whatever is published, because packets for us arrive there only.
        format: Format::Ipip(encap::ipip::Ipip { local: ends.local }),
    };
    Ok(Outline::ipv4_only(context, tunnel, ends.public))
}

pub(super) fn paths(
    context: &Context,
    outline: &Outline,
    direct_routing: bool,
    own: &Lease,
    leases: &LeaseSet,
) -> Result<Paths, PlanError> {
    let pool = context.config.ipv4.as_ref().ok_or(missing("IPv4", "the network configuration"))?;
    let subnet = IpNetwork::V4(own.subnet().ok_or(missing("IPv4", "our lease"))?);
    let cluster = IpNetwork::V4(pool.network);
    let sifted = sift(own, leases, 1, peer);
    let places = [Place { cluster, subnet }];
    let gateway = |peer: &Peer| peer.remote.ip();
    let (routes, direct) = direct::split(context, direct_routing, &places, &sifted.peers, gateway);
    let parts = sifted.peers.into_iter().zip(routes);
    let tunnels = outline.tunnels.iter().zip(parts).map(|(outline, (peers, routes))| Tunnel {
        link: Link { device: outline.device.clone(), places: places.to_vec(), mtu: outline.mtu },
        routes,
        format: outline.format,
        secrets: None,
        peers,
    });
    Ok(Paths { tunnels: tunnels.collect(), direct, ignored: sifted.ignored, ..Paths::default() })
}

fn peer(lease: &Lease) -> Result<Vec<(usize, Peer)>, String> {
    check_type(lease, TYPE)?;
    let Some(subnet) = lease.subnet() else {
        return Err("it has no IPv4 subnet, and ipip carries only IPv4".into());
    };
    if lease.attrs.public_ip.is_unspecified() {
        return Err("it publishes no IPv4 address".into());
    }
    let remote = SocketAddr::new(IpAddr::V4(lease.attrs.public_ip), 0);
    Ok(vec![(0, Peer { subnet: IpNetwork::V4(subnet), remote, mac: None, key: None })])
}
