//! The desired state of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use model::subnet_env::SubnetEnv;
use path::encap::Format;
use path::wireguard::{PublicKey, SecretKey};
use wire::addr::{Mac, Mtu};

/// The desired state of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One per tunnel, in the order of [`Outline::tunnels`](super::Outline::tunnels).
    pub tunnels: Vec<Tunnel>,
    /// Routes that need no tunnel, if the backend uses them.
    pub direct: Option<Direct>,
    /// Commands to run as peers come and go, if the backend uses them.
    pub commands: Option<Commands>,
    /// The file that tells the CNI plugin and others about our subnet.
    pub subnet_env: SubnetEnv,
    /// Leases left out, with the reasons; sorted.
    pub ignored: Vec<Ignored>,
}

/// One tunnel: its device, its kernel routes and its forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub link: Link,
    /// Kernel routes that lead into the device, sorted.
    pub routes: Vec<Route>,
    /// The encapsulation.
    pub format: Format,
    /// The settings shared by all peers, if the tunnel encrypts.
    pub secrets: Option<Secrets>,
    /// The peers, one per peer subnet, sorted.
    pub peers: Vec<Peer>,
}

impl Tunnel {
    /// Returns the number of nodes behind the tunnel; one node may have a subnet of each family behind one
    /// key.
    pub fn nodes(&self) -> usize {
        let keys: BTreeSet<PublicKey> = self.peers.iter().filter_map(|peer| peer.key).collect();
        keys.len() + self.peers.iter().filter(|peer| peer.key.is_none()).count()
    }
}

/// The settings shared by all peers of a WireGuard tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// The preshared key; zeros for none.
    pub psk: SecretKey,
    /// Seconds between keepalives; 0 turns them off.
    pub keepalive: u16,
}

/// The desired state of a tunnel device in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The device's name.
    pub device: String,
    /// The networks that the device carries, one place for each family. The device owns the base address of
    /// each place's subnet. Any other address of the device within a place's cluster network is a leftover,
    /// and so is, beside an IPv6 place, any other IPv6 address that is not link-local.
    pub places: Vec<Place>,
    /// The device's MTU.
    pub mtu: Mtu,
}

impl Link {
    /// Returns the addresses of the device, as host networks.
    pub fn addresses(&self) -> impl Iterator<Item = IpNetwork> {
        self.places.iter().map(|place| base(place.subnet))
    }

    /// Returns whether the device carries an IPv6 network.
    pub fn has_ipv6(&self) -> bool {
        self.places.iter().any(|place| place.cluster.is_ipv6())
    }
}

/// Kernel routes through the underlay interface directly to peers on its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Name of the interface.
    pub interface: String,
    /// The networks of such routes, one place for each family.
    pub places: Vec<Place>,
    /// The routes, sorted; each has a gateway.
    pub routes: Vec<Route>,
    /// Peers reached through a tunnel although `DirectRouting` is on, with the reasons.
    pub detours: Vec<Ignored>,
}

/// The pod networks of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cluster network.
    pub cluster: IpNetwork,
    /// This node's subnet of the cluster network.
    pub subnet: IpNetwork,
}

/// The operator's commands and the peers to run them for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands {
    /// The command for each new or changed peer; blank for none.
    pub add: String,
    /// The command for each peer that has left; blank for none.
    pub remove: String,
    /// The peers by the keys of their leases.
    pub peers: BTreeMap<String, CommandPeer>,
}

/// The input of a command that runs for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandPeer {
    /// Environment variables.
    pub variables: Vec<(&'static str, String)>,
    /// The data that the peer published.
    pub stdin: String,
}

/// A kernel route: main table, protocol boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub to: IpNetwork,
    /// Gateway, treated as on the link if the route leads into a tunnel. `None` leads straight into the
    /// device.
    pub via: Option<IpAddr>,
    /// Whether the route has link scope (rtnetlink(7)). IPv6 routes have no scope.
    pub link_scope: bool,
}

impl Route {
    /// Makes a route through a gateway.
    pub fn via(to: IpNetwork, gateway: IpAddr) -> Route {
        Route { to, via: Some(gateway), link_scope: false }
    }

    /// Makes a route straight into a device.
    pub fn into_device(to: IpNetwork) -> Route {
        Route { to, via: None, link_scope: false }
    }
}

/// The destination of packets for one peer subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The peer's node subnet.
    pub subnet: IpNetwork,
    /// The peer's address on the underlay.
    pub remote: SocketAddr,
    /// The peer's MAC address on the overlay, if the encapsulation uses one.
    pub mac: Option<Mac>,
    /// The peer's public key, if the tunnel encrypts.
    pub key: Option<PublicKey>,
}

/// A lease that the plan leaves out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ignored {
    /// The lease's key.
    pub subnet: String,
    /// The reason, as a clause: "it has our own public address".
    pub reason: String,
}

/// A backend's part of a plan.
#[derive(Default)]
pub(super) struct Paths {
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) direct: Option<Direct>,
    pub(super) commands: Option<Commands>,
    pub(super) ignored: Vec<Ignored>,
}

/// Returns the base address of a node subnet as a host network, as the device owns it.
fn base(subnet: IpNetwork) -> IpNetwork {
    match subnet {
        IpNetwork::V4(subnet) => IpNetwork::V4(Ipv4Network::from(subnet.network())),
        IpNetwork::V6(subnet) => IpNetwork::V6(Ipv6Network::from(subnet.network())),
    }
}
