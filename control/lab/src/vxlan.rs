//! The kernel's vxlan device with the entries of flannel's vxlan backend: the peer in interoperability tests,
//! and the baseline in benchmarks.

use std::net::IpAddr;

use futures::{TryStreamExt, stream};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::{Handle, LinkVxlan, RouteMessageBuilder};

use crate::{Error, Mac, Namespace, Route};

/// A kernel vxlan device as flannel creates it: no default destination, UDP checksums on.
#[derive(Clone, Debug)]
pub struct FlannelVxlan<'a> {
    /// Device name, `flannel.1` or `flannel-v6.1` in flannel.
    pub name: &'a str,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP port, 8472 in flannel on Linux.
    pub port: u16,
    /// The underlay device.
    pub parent: &'a str,
    /// This host's own address on the parent; its family is the tunnel's outer family.
    pub local: IpAddr,
    /// The device's MAC address, known to all peers.
    pub mac: Mac,
    /// The base address of this host's pod subnet; set on the device as /32 or /128.
    pub address: IpAddr,
    /// Device MTU: the parent's minus 50 (outer IPv4) or 70 (outer IPv6).
    pub mtu: u32,
    /// Whether the device learns from received packets, and drops packets whose source contradicts its
    /// entries.
    pub learning: bool,
}

/// Another host as flannel configures it: a neighbour, an FDB entry and an onlink route.
#[derive(Clone, Copy, Debug)]
pub struct VxlanPeer {
    /// The peer's pod subnet; its first address is the next hop.
    pub subnet: IpNetwork,
    /// The MAC address of the peer's vxlan device.
    pub mac: Mac,
    /// The peer's underlay address.
    pub remote: IpAddr,
}

impl Namespace {
    /// Creates the device, adds its address and sets it up.
    pub fn add_flannel_vxlan(&self, vxlan: &FlannelVxlan<'_>) -> Result<(), Error> {
        let parent = self.link(vxlan.parent)?.index;
        let builder =
            LinkVxlan::new(vxlan.name, vxlan.vni).dev(parent).port(vxlan.port).learning(vxlan.learning);
        let builder = match vxlan.local {
            IpAddr::V4(local) => builder.local(local).udp_csum(true),
            IpAddr::V6(local) => builder.local6(local),
        };
        let message = builder.mtu(vxlan.mtu).address(vxlan.mac.to_vec()).build();
        self.request(format!("create vxlan {} in {}", vxlan.name, self.name()), |handle| async move {
            handle.link().add(message).execute().await
        })?;
        self.add_address(vxlan.name, vxlan.address.into())?;
        self.set_up(vxlan.name)
    }

    /// Adds a peer, in flannel's order: neighbour, FDB entry, route.
    pub fn add_vxlan_peer(&self, device: &str, peer: &VxlanPeer) -> Result<(), Error> {
        let base = peer.subnet.network();
        self.add_neighbour(device, base, peer.mac)?;
        self.add_fdb(device, peer.mac, peer.remote)?;
        self.add_route(&Route {
            destination: peer.subnet,
            via: Some(base),
            device: Some(device),
            onlink: true,
        })
    }

    /// Adds many peers over one connection, `at_once` of them concurrently. With 1, each request waits for
    /// the reply to the previous one.
    pub fn add_vxlan_peers(&self, device: &str, peers: &[VxlanPeer], at_once: usize) -> Result<(), Error> {
        let index = self.link(device)?.index;
        self.request(
            format!("add {} peers to {device} in {}", peers.len(), self.name()),
            |handle| async move {
                stream::iter(peers.iter().map(Ok))
                    .try_for_each_concurrent(at_once, |peer| add_peer(&handle, index, peer))
                    .await
            },
        )
    }
}

async fn add_peer(handle: &Handle, index: u32, peer: &VxlanPeer) -> Result<(), rtnetlink::Error> {
    let base = peer.subnet.network();
    let neighbour = handle.neighbours().add(index, base).link_local_address(&peer.mac);
    neighbour.replace().execute().await?;
    let entry = handle.neighbours().add_bridge(index, &peer.mac).flags(NeighbourFlags::Own);
    entry.destination(peer.remote).replace().execute().await?;
    let route = RouteMessageBuilder::<IpAddr>::new()
        .protocol(RouteProtocol::Boot)
        .destination_prefix(base, peer.subnet.prefix())
        .and_then(|route| route.gateway(base))
        .map_err(|_| rtnetlink::Error::RequestFailed)?;
    handle.route().add(route.output_interface(index).onlink().build()).replace().execute().await
}
