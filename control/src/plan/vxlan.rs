//! flannel's `vxlan` backend: one overlay for each family, with its own device, MAC address and lease data.
//!
//! IPv4 travels in IPv4 on `flannel.<VNI>`, IPv6 in IPv6 on `flannel-v6.<VNI>`. Each peer subnet is a route
//! through the peer's base address, which is how tools recognise a flannel node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;
use model::backend::{Vxlan, VxlanData};
use model::lease::{Lease, LeaseAttrs, RawJson};
use path::encap::{self, Format};
use wire::addr::Mac;

use super::context::{Context, inner_mtu, places};
use super::direct;
use super::error::{PlanError, missing};
use super::intent::{Link, Paths, Peer, Tunnel};
use super::outline::{Outline, TunnelOutline};
use super::peers::{check_type, sift};
use store::lease::ledger::LeaseSet;

/// Outer IPv4, UDP, VXLAN and inner Ethernet headers.
const OVERHEAD: u32 = 20 + 8 + 8 + 14;
/// Outer IPv6, UDP, VXLAN and inner Ethernet headers.
const OVERHEAD_V6: u32 = OVERHEAD + 20;
/// The backend type in leases.
const TYPE: &str = "vxlan";

pub(super) fn outline(context: &Context, vxlan: &Vxlan) -> Result<Outline, PlanError> {
    if vxlan.gbp {
        let problem = "the policy ID is the packet's mark, which kernels do not pass to a tunnel in \
                       userspace; set it to false on all nodes";
        return Err(PlanError::Option { key: "GBP", problem });
    }
    let (nic, vni) = (context.underlay.mtu, vxlan.vni);
    let outer = vxlan.mtu.unwrap_or(nic);
    let data = |mac| VxlanData { vni: Some(vni), mac }.to_json();
    let format = |local_mac| Format::Vxlan(encap::vxlan::Vxlan { vni, local_mac });
    let mut outline = Outline {
        tunnels: Vec::new(),
        attrs: LeaseAttrs {
            public_ip: Ipv4Addr::UNSPECIFIED,
            public_ipv6: None,
            backend_type: TYPE.to_owned(),
            backend_data: None,
            backend_v6_data: None,
        },
        // flannel gives pods of both families this MTU, although an IPv6 tunnel needs 20 bytes more; the IPv6
        // device, whose MTU is smaller, answers with packet-too-big.
        pod_mtu: inner_mtu(context, outer, OVERHEAD, false)?,
        notes: Vec::new(),
    };
    if context.config.ipv4.is_some() {
        let ends = context.underlay.ipv4.ok_or(missing("IPv4", "the underlay"))?;
        outline.attrs.public_ip = ends.public;
        outline.attrs.backend_data = Some(data(context.identity.mac));
        outline.tunnels.push(TunnelOutline {
            device: format!("flannel.{vni}"),
            // The kernel limits a vxlan device to what the underlying interface can carry.
            mtu: inner_mtu(context, outer.min(nic), OVERHEAD, false)?,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), vxlan.port),
            listen_besides: Vec::new(),
            send_from: Some(IpAddr::V4(ends.source)),
            format: format(context.identity.mac),
        });
    }
    if context.config.ipv6.is_some() {
        let ends = context.underlay.ipv6.ok_or(missing("IPv6", "the underlay"))?;
        outline.attrs.public_ipv6 = Some(ends.public);
        outline.attrs.backend_v6_data = Some(data(context.identity.mac_v6));
        let asked = inner_mtu(context, outer, OVERHEAD, true)?;
        outline.tunnels.push(TunnelOutline {
            device: format!("flannel-v6.{vni}"),
            mtu: asked.min(inner_mtu(context, nic, OVERHEAD_V6, true)?),
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), vxlan.port),
            listen_besides: Vec::new(),
            send_from: Some(IpAddr::V6(ends.source)),
            format: format(context.identity.mac_v6),
        });
    }
    Ok(outline)
}

pub(super) fn paths(
    context: &Context,
    outline: &Outline,
    vxlan: &Vxlan,
    own: &Lease,
    leases: &LeaseSet,
) -> Result<Paths, PlanError> {
    let places = places(context, own)?;
    let sifted = sift(own, leases, places.len(), |lease| {
        check_type(lease, TYPE)?;
        let mut found = Vec::new();
        for (tunnel, place) in places.iter().enumerate() {
            let peer =
                if place.cluster.is_ipv4() { peer_v4(lease, vxlan.port) } else { peer_v6(lease, vxlan.port) };
            found.extend(peer?.map(|peer| (tunnel, peer)));
        }
        Ok(found)
    });
    let base_of = |peer: &Peer| peer.subnet.network();
    let (routes, direct) = direct::split(context, vxlan.direct_routing, &places, &sifted.peers, base_of);
    let parts = places.into_iter().zip(sifted.peers).zip(routes);
    let tunnels = outline.tunnels.iter().zip(parts);
    let tunnels = tunnels.map(|(outline, ((place, peers), routes))| Tunnel {
        link: Link { device: outline.device.clone(), places: vec![place], mtu: outline.mtu },
        routes,
        format: outline.format,
        secrets: None,
        peers,
    });
    Ok(Paths { tunnels: tunnels.collect(), direct, ignored: sifted.ignored, ..Paths::default() })
}

/// Returns the peer on the IPv4 overlay. A node without an IPv4 subnet is not a peer, which is no reason for
/// a warning.
fn peer_v4(lease: &Lease, port: u16) -> Result<Option<Peer>, String> {
    let Some(subnet) = lease.subnet() else { return Ok(None) };
    if lease.attrs.public_ip.is_unspecified() {
        return Err("it publishes no IPv4 address for its IPv4 subnet".into());
    }
    let mac = mac(lease.attrs.backend_data.as_ref(), "IPv4")?;
    let remote = SocketAddr::new(IpAddr::V4(lease.attrs.public_ip), port);
    Ok(Some(Peer { subnet: IpNetwork::V4(subnet), remote, mac: Some(mac), key: None }))
}

fn peer_v6(lease: &Lease, port: u16) -> Result<Option<Peer>, String> {
    let (Some(subnet), Some(public)) = (lease.ipv6_subnet(), lease.attrs.public_ipv6) else {
        return Ok(None);
    };
    let mac = mac(lease.attrs.backend_v6_data.as_ref(), "IPv6")?;
    let remote = SocketAddr::new(IpAddr::V6(public), port);
    Ok(Some(Peer { subnet: IpNetwork::V6(subnet), remote, mac: Some(mac), key: None }))
}

fn mac(data: Option<&RawJson>, family: &str) -> Result<Mac, String> {
    let data = data.ok_or_else(|| format!("it publishes no {family} vxlan data"))?;
    Ok(VxlanData::parse(data.as_str()).map_err(|error| error.to_string())?.mac)
}
