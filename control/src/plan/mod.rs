//! Plans: a pure function from leases to intent, so that the same input always gives the same plan.
//!
//! A [`Plan`] describes the desired state of the host: tunnel devices with address and MTU, routes, the peers
//! that each tunnel forwards to, and the content of `subnet.env`. It is always computed from the complete
//! set of leases; `apply` then changes only what differs. One file per backend, named like those of `path`'s
//! `encap/*`: there the bytes, here the intent.

mod alloc;
mod direct;
mod extension;
mod host_gw;
mod ipip;
mod peers;
mod udp;
mod vxlan;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use model::backend::Backend;
use model::lease::{Lease, LeaseAttrs, RawJson};
use model::net_config::NetConfig;
use model::subnet_env::SubnetEnv;
use path::encap::Format;
use path::wireguard::{PublicKey, SecretKey};
use wire::addr::{Mac, Mtu};

use crate::underlay::Underlay;
use crate::underlay::reach::Reach;
use store::lease::ledger::LeaseSet;

/// Minimum MTU of a device that carries IPv6 (RFC 8200 section 5); Linux turns IPv6 off below it.
const LEAST_MTU_V6: u32 = 1280;

/// The note for a dual-stack node whose backend carries one family.
const IPV4_ONLY: &str =
    "the backend carries IPv4 only: pods get IPv6 addresses, but cannot reach those of other nodes";
/// The error for an IPv6-only node whose backend carries IPv4 only.
const NO_IPV4: &str =
    "carries IPv4 only, but the network configuration has no IPv4 network; use vxlan or host-gw";

/// Everything that a plan depends on, except the leases.
#[derive(Clone, Debug)]
pub struct Context {
    /// The cluster's network configuration.
    pub config: NetConfig,
    /// The chosen interface and addresses.
    pub underlay: Underlay,
    /// This node's MAC addresses on the overlays.
    pub identity: Identity,
    /// Whether `subnet.env` declares that this daemon masquerades.
    pub ip_masq: bool,
    /// The output of PreStartupCommand, for `extension`.
    pub extension_data: Option<RawJson>,
    /// The kernel's routes to the peers, for `DirectRouting`.
    pub reach: Reach,
    /// This node's private key, for `wireguard`.
    pub private_key: Option<SecretKey>,
}

impl Context {
    /// Returns true if the plan depends on the kernel's routes to the peers.
    pub fn routes_directly(&self) -> bool {
        match &self.config.backend {
            Backend::Vxlan(vxlan) => vxlan.direct_routing,
            Backend::Ipip { direct_routing } => *direct_routing,
            Backend::Udp { .. } | Backend::HostGw | Backend::Alloc | Backend::Extension(_) => false,
            Backend::Wireguard(_) | Backend::Ipsec(_) | Backend::TencentVpc { .. } => false,
        }
    }
}

/// The MAC addresses that this node generated for itself, one for each overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The address on the IPv4 overlay.
    pub mac: Mac,
    /// The address on the IPv6 overlay.
    pub mac_v6: Mac,
}

impl Identity {
    /// Makes two locally administered unicast addresses (IEEE 802c) from twelve random bytes.
    pub fn from_random(bytes: [u8; 12]) -> Identity {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let local_unicast = |first: u8| (first | 0x02) & !0x01;
        Identity {
            mac: Mac::new([local_unicast(a), b, c, d, e, f]),
            mac_v6: Mac::new([local_unicast(g), h, i, j, k, l]),
        }
    }
}

/// The part of a plan that is known before there is a lease: which tunnels to open and what to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The tunnels to open, in the order of [`Plan::tunnels`].
    pub tunnels: Vec<TunnelOutline>,
    /// This node's lease attributes.
    pub attrs: LeaseAttrs,
    /// `FLANNEL_MTU`: the MTU of pods.
    pub pod_mtu: Mtu,
    /// Requests of the configuration that cannot be met, one sentence each.
    pub notes: Vec<&'static str>,
}

impl Outline {
    /// Builds the outline of one tunnel that carries IPv4 and publishes only its type and the public address.
    /// In a dual-stack cluster a note says that IPv6 is left out.
    fn ipv4_only(context: &Context, tunnel: TunnelOutline, public: Ipv4Addr) -> Outline {
        let attrs = LeaseAttrs {
            public_ip: public,
            public_ipv6: None,
            backend_type: context.config.backend.published_type().to_owned(),
            backend_data: None,
            backend_v6_data: None,
        };
        let notes = context.config.ipv6.is_some().then_some(IPV4_ONLY).into_iter().collect();
        Outline { pod_mtu: tunnel.mtu, tunnels: vec![tunnel], attrs, notes }
    }
}

/// One tunnel before its addresses are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelOutline {
    /// Name of the TUN device.
    pub device: String,
    /// MTU of the device.
    pub mtu: Mtu,
    /// The address that receives peers' datagrams.
    pub listen: SocketAddr,
    /// More receiving addresses; the first address of each family also sends.
    pub listen_besides: Vec<SocketAddr>,
    /// The source address of our datagrams; `None`: the listening socket's.
    pub send_from: Option<IpAddr>,
    /// The encapsulation.
    pub format: Format,
}

/// The desired state of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One per tunnel, in the order of [`Outline::tunnels`].
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
    /// each place's subnet; any other address of the device within a place's cluster network is a leftover.
    pub places: Vec<Place>,
    /// The device's MTU.
    pub mtu: Mtu,
}

impl Link {
    /// Returns the addresses of the device, as host networks.
    pub fn addresses(&self) -> impl Iterator<Item = IpNetwork> {
        self.places.iter().map(|place| base(place.subnet))
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

/// Reasons why this configuration does not work on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The tunnel headers leave too little room.
    #[error(
        "MTU {outer} leaves {inner} bytes after {overhead} bytes of tunnel headers, but {family} needs {least}; raise the MTU of {interface} or Backend.MTU"
    )]
    MtuTooSmall {
        /// The MTU of the underlay.
        outer: u32,
        /// Bytes left for the packet, or 0.
        inner: u32,
        /// Bytes of headers.
        overhead: u32,
        /// Bytes needed.
        least: u32,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Name of the underlay interface.
        interface: String,
    },
    /// The backend is not supported, or cannot carry what the configuration enables.
    #[error("Backend.Type = {backend}: {problem}")]
    Backend {
        /// The configured type.
        backend: &'static str,
        /// The problem and the remedy.
        problem: &'static str,
    },
    /// An option of the backend is not supported.
    #[error("Backend.{key} = true: {problem}")]
    Option {
        /// The key.
        key: &'static str,
        /// The problem and the remedy.
        problem: &'static str,
    },
    /// An enabled family has no address on the underlay or no subnet in the lease.
    #[error("{family} is enabled, but {what} has none; restart loden once it has one")]
    FamilyMissing {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What lacks an address or subnet.
        what: &'static str,
    },
}

/// Computes the tunnels and the lease attributes for this configuration on this host.
pub fn outline(context: &Context) -> Result<Outline, PlanError> {
    let backend = context.config.backend.name();
    let refused = |problem| Err(PlanError::Backend { backend, problem });
    match &context.config.backend {
        Backend::Vxlan(vxlan) => vxlan::outline(context, vxlan),
        Backend::Udp { port } => udp::outline(context, *port),
        Backend::HostGw => host_gw::outline(context),
        Backend::Alloc => alloc::outline(context),
        Backend::Extension(_) => extension::outline(context),
        Backend::Ipip { .. } => ipip::outline(context),
        Backend::Wireguard(wireguard) => wireguard::outline(context, wireguard),
        Backend::Ipsec(_) => refused(
            "not supported: it needs strongSwan and the kernel's IPsec; use wireguard, or vxlan, ipip, udp or \
             host-gw, which do not encrypt",
        ),
        Backend::TencentVpc { .. } => refused(
            "not supported: loden does not use cloud APIs; use vxlan, host-gw within one subnet, or alloc where \
             another program installs the cloud's routes",
        ),
    }
}

/// Returns the variables of the command that runs once this node has its lease.
pub fn startup_variables(config: &NetConfig, own: &Lease) -> Vec<(&'static str, String)> {
    let network = config.ipv4.as_ref().map(|pool| pool.network.to_string()).unwrap_or_default();
    std::iter::once(("NETWORK", network)).chain(extension::variables(own)).collect()
}

/// Computes the complete plan from our own lease and those of all other nodes.
pub fn plan(context: &Context, own: &Lease, leases: &LeaseSet) -> Result<Plan, PlanError> {
    let outline = outline(context)?;
    let paths = match &context.config.backend {
        Backend::Udp { port } => udp::paths(context, &outline, *port, own, leases)?,
        Backend::Vxlan(vxlan) => vxlan::paths(context, &outline, vxlan, own, leases)?,
        Backend::HostGw => host_gw::paths(context, own, leases)?,
        Backend::Ipip { direct_routing } => ipip::paths(context, &outline, *direct_routing, own, leases)?,
        Backend::Extension(extension) => extension::paths(extension, own, leases),
        Backend::Wireguard(wireguard) => wireguard::paths(context, &outline, wireguard, own, leases)?,
        Backend::Alloc => Paths::default(),
        // Rejected by `outline`. Named, so that a new backend cannot become ready without paths.
        Backend::Ipsec(_) | Backend::TencentVpc { .. } => Paths::default(),
    };
    let Paths { tunnels, direct, commands, ignored } = paths;
    let subnet_env = SubnetEnv {
        ipv4: context.config.ipv4.as_ref().map(|pool| pool.network).zip(own.subnet()),
        ipv6: context.config.ipv6.as_ref().map(|pool| pool.network).zip(own.ipv6_subnet()),
        mtu: u32::from(outline.pod_mtu.get()),
        ip_masq: context.ip_masq,
    };
    Ok(Plan { tunnels, direct, commands, subnet_env, ignored })
}

/// A backend's part of a plan.
#[derive(Default)]
struct Paths {
    tunnels: Vec<Tunnel>,
    direct: Option<Direct>,
    commands: Option<Commands>,
    ignored: Vec<Ignored>,
}

/// Returns the cluster network and our own subnet for each enabled family.
fn places(context: &Context, own: &Lease) -> Result<Vec<Place>, PlanError> {
    let mut places = Vec::new();
    if let Some(pool) = &context.config.ipv4 {
        let subnet = own.subnet().ok_or(missing("IPv4", "our lease"))?;
        places.push(Place { cluster: IpNetwork::V4(pool.network), subnet: IpNetwork::V4(subnet) });
    }
    if let Some(pool) = &context.config.ipv6 {
        let subnet = own.ipv6_subnet().ok_or(missing("IPv6", "our lease"))?;
        places.push(Place { cluster: IpNetwork::V6(pool.network), subnet: IpNetwork::V6(subnet) });
    }
    Ok(places)
}

fn missing(family: &'static str, what: &'static str) -> PlanError {
    PlanError::FamilyMissing { family, what }
}

/// Returns the MTU that `overhead` bytes of headers leave of `outer` for a device of this family.
fn inner_mtu(context: &Context, outer: u32, overhead: u32, ipv6: bool) -> Result<Mtu, PlanError> {
    let (family, least) = if ipv6 { ("IPv6", LEAST_MTU_V6) } else { ("IPv4", u32::from(Mtu::MIN)) };
    let inner = outer.saturating_sub(overhead);
    // The MTU of an interface such as `lo` may exceed the longest IP packet.
    let mtu = Mtu::new(inner.min(u32::from(u16::MAX))).filter(|_| inner >= least);
    let interface = context.underlay.interface.clone();
    mtu.ok_or(PlanError::MtuTooSmall { outer, inner, overhead, least, family, interface })
}

/// Returns the base address of a node subnet as a host network, as the device owns it.
fn base(subnet: IpNetwork) -> IpNetwork {
    match subnet {
        IpNetwork::V4(subnet) => IpNetwork::V4(Ipv4Network::from(subnet.network())),
        IpNetwork::V6(subnet) => IpNetwork::V6(Ipv6Network::from(subnet.network())),
    }
}

#[cfg(test)]
mod tests;
