//! flannel's `udp` backend: one device, one route for the whole cluster network, IPv4 only.
//!
//! Leases of any backend type are peers, and every peer is assumed to listen on our own port, because `udp`
//! publishes no port.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use model::lease::Lease;
use path::encap::Format;

use super::context::{Context, inner_mtu};
use super::error::{NO_IPV4, PlanError, missing};
use super::intent::{Link, Paths, Peer, Place, Route, Tunnel};
use super::outline::{Outline, TunnelOutline};
use super::peers::sift;
use store::lease::ledger::LeaseSet;

/// Device name: flannel's `udp` asks for `flannel%d`, and a host has only one.
const DEVICE: &str = "flannel0";
/// Outer IPv4 and UDP headers.
const OVERHEAD: u32 = 20 + 8;

pub(super) fn outline(context: &Context, port: u16) -> Result<Outline, PlanError> {
    if context.config.ipv4.is_none() {
        return Err(PlanError::Backend { backend: "udp", problem: NO_IPV4 });
    }
    let ends = context.underlay.ipv4.ok_or(missing("IPv4", "the underlay"))?;
    let mtu = inner_mtu(context, context.underlay.mtu, OVERHEAD, false)?;
    let tunnel = TunnelOutline {
        device: DEVICE.to_owned(),
        mtu,
        listen: SocketAddr::new(IpAddr::V4(ends.source), port),
        listen_besides: Vec::new(),
        // Sends from the port that it listens on.
        send_from: None,
        format: Format::Udp,
    };
    Ok(Outline::ipv4_only(context, tunnel, ends.public))
}

pub(super) fn paths(
    context: &Context,
    outline: &Outline,
    port: u16,
    own: &Lease,
    leases: &LeaseSet,
) -> Result<Paths, PlanError> {
    let pool = context.config.ipv4.as_ref().ok_or(missing("IPv4", "the network configuration"))?;
    let subnet = IpNetwork::V4(own.subnet().ok_or(missing("IPv4", "our lease"))?);
    let cluster = IpNetwork::V4(pool.network);
    let sifted = sift(own, leases, outline.tunnels.len(), |lease| peer(lease, port));
    let tunnels = outline.tunnels.iter().zip(sifted.peers).map(|(outline, peers)| Tunnel {
        link: Link {
            device: outline.device.clone(),
            places: vec![Place { cluster, subnet }],
            mtu: outline.mtu,
        },
        routes: vec![Route::into_device(cluster)],
        format: outline.format,
        secrets: None,
        peers,
    });
    Ok(Paths { tunnels: tunnels.collect(), ignored: sifted.ignored, ..Paths::default() })
}

fn peer(lease: &Lease, port: u16) -> Result<Vec<(usize, Peer)>, String> {
    let Some(subnet) = lease.subnet() else {
        return Err("it has no IPv4 subnet, and udp carries only IPv4".into());
    };
    if lease.attrs.public_ip.is_unspecified() {
        return Err("it publishes no IPv4 address".into());
    }
    let remote = SocketAddr::new(IpAddr::V4(lease.attrs.public_ip), port);
    Ok(vec![(0, Peer { subnet: IpNetwork::V4(subnet), remote, mac: None, key: None })])
}
