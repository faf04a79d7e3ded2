//! From leases to intent: a pure function, so the same input always gives the same plan.
//!
//! A [`Plan`] says how the host should look: tunnel devices with address and MTU, routes, the peers each
//! tunnel forwards to, and the content of `subnet.env`. It is computed afresh from the complete set of
//! leases every time; `apply` then changes only what differs. One file per backend, mirroring `path`'s
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

/// Least MTU of a device that carries IPv6 (RFC 8200 section 5); Linux turns IPv6 off below it.
const LEAST_MTU_V6: u32 = 1280;

/// What a dual-stack node hears of a backend that carries one family.
const IPV4_ONLY: &str =
    "the backend carries IPv4 only: pods have IPv6 addresses, but no path to those of other nodes";
/// What an IPv6 node hears of it.
const NO_IPV4: &str = "carries IPv4 only, and the network configuration has none; use vxlan or host-gw";

/// Everything a plan depends on, besides the leases.
#[derive(Clone, Debug)]
pub struct Context {
    /// The cluster's network configuration.
    pub config: NetConfig,
    /// The chosen interface and addresses.
    pub underlay: Underlay,
    /// This node's link addresses on the overlays.
    pub identity: Identity,
    /// Whether `subnet.env` is to say that we masquerade.
    pub ip_masq: bool,
    /// What PreStartupCommand printed, for `extension`.
    pub extension_data: Option<RawJson>,
    /// The ways to the peers, for `DirectRouting`.
    pub reach: Reach,
    /// This node's private key, for `wireguard`.
    pub private_key: Option<SecretKey>,
}

impl Context {
    /// Whether the plan depends on the ways to the peers.
    pub fn routes_directly(&self) -> bool {
        match &self.config.backend {
            Backend::Vxlan(vxlan) => vxlan.direct_routing,
            Backend::Ipip { direct_routing } => *direct_routing,
            Backend::Udp { .. } | Backend::HostGw | Backend::Alloc | Backend::Extension(_) => false,
            Backend::Wireguard(_) | Backend::Ipsec(_) | Backend::TencentVpc { .. } => false,
        }
    }
}

/// The link addresses this node made up for itself, one for each overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// On the IPv4 overlay.
    pub mac: Mac,
    /// On the IPv6 overlay.
    pub mac_v6: Mac,
}

impl Identity {
    /// Two unicast addresses of local meaning (IEEE 802c) out of twelve random bytes.
    pub fn from_random(bytes: [u8; 12]) -> Identity {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let local_unicast = |first: u8| (first | 0x02) & !0x01;
        Identity {
            mac: Mac::new([local_unicast(a), b, c, d, e, f]),
            mac_v6: Mac::new([local_unicast(g), h, i, j, k, l]),
        }
    }
}

/// What can be said before there is a lease: which tunnels to open and what to publish about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The tunnels to open, in the order of [`Plan::tunnels`].
    pub tunnels: Vec<TunnelOutline>,
    /// This node's lease attributes.
    pub attrs: LeaseAttrs,
    /// `FLANNEL_MTU`: what pods get.
    pub pod_mtu: Mtu,
    /// What the configuration asks for and will not get, one sentence each.
    pub notes: Vec<&'static str>,
}

impl Outline {
    /// One tunnel that carries IPv4 and publishes nothing but its type and the public address. In a
    /// dual-stack cluster IPv6 stays out, and a note says so.
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
    /// Its MTU.
    pub mtu: Mtu,
    /// Where peers' datagrams arrive.
    pub listen: SocketAddr,
    /// Where they arrive as well; of each family the first address is the one that sends.
    pub listen_besides: Vec<SocketAddr>,
    /// Where ours come from; `None`: from the listening socket.
    pub send_from: Option<IpAddr>,
    /// How packets are wrapped.
    pub format: Format,
}

/// How this host should look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One per tunnel, in the order of [`Outline::tunnels`].
    pub tunnels: Vec<Tunnel>,
    /// Routes that need no tunnel, where the backend makes such.
    pub direct: Option<Direct>,
    /// Commands to run as peers come and go, where the backend consists of such.
    pub commands: Option<Commands>,
    /// The file that tells the CNI plugin and others about our subnet.
    pub subnet_env: SubnetEnv,
    /// Leases left out, and why; sorted.
    pub ignored: Vec<Ignored>,
}

/// One tunnel: its device, its kernel routes and its forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub link: Link,
    /// Kernel routes that lead into the device, sorted.
    pub routes: Vec<Route>,
    /// How packets are wrapped.
    pub format: Format,
    /// What all peers share, where packets are sealed.
    pub secrets: Option<Secrets>,
    /// Where they go, one per peer subnet, sorted.
    pub peers: Vec<Peer>,
}

impl Tunnel {
    /// How many nodes it leads to; one node may have a subnet of each family behind one key.
    pub fn nodes(&self) -> usize {
        let keys: BTreeSet<PublicKey> = self.peers.iter().filter_map(|peer| peer.key).collect();
        keys.len() + self.peers.iter().filter(|peer| peer.key.is_none()).count()
    }
}

/// What a WireGuard tunnel's peers have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// The key besides their own; zeros for none.
    pub psk: SecretKey,
    /// Seconds between keepalives; 0 is off.
    pub keepalive: u16,
}

/// A tunnel device as the kernel should show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub device: String,
    /// What it carries, one place for each family. It owns the base address of each place's subnet; others on it that
    /// lie in a place's cluster network are leftovers.
    pub places: Vec<Place>,
    /// Its MTU.
    pub mtu: Mtu,
}

impl Link {
    /// Its addresses, as host networks.
    pub fn addresses(&self) -> impl Iterator<Item = IpNetwork> {
        self.places.iter().map(|place| base(place.subnet))
    }
}

/// Kernel routes by the underlay's interface straight to peers on its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Name of the interface.
    pub interface: String,
    /// Where such routes can lie, one place for each family.
    pub places: Vec<Place>,
    /// The routes, sorted; each has a gateway.
    pub routes: Vec<Route>,
    /// Peers that take a tunnel although `DirectRouting` is on, and why.
    pub detours: Vec<Ignored>,
}

/// A family's pod networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cluster network.
    pub cluster: IpNetwork,
    /// Our own node subnet in it.
    pub subnet: IpNetwork,
}

/// The operator's commands and the peers they are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands {
    /// Run for each new or changed peer; blank for none.
    pub add: String,
    /// Run for each peer that is gone; blank for none.
    pub remove: String,
    /// The peers by their leases' keys.
    pub peers: BTreeMap<String, CommandPeer>,
}

/// What a command learns of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandPeer {
    /// Environment variables.
    pub variables: Vec<(&'static str, String)>,
    /// What the peer published.
    pub stdin: String,
}

/// A kernel route: main table, protocol boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub to: IpNetwork,
    /// Gateway; into a tunnel it is taken to be on the link. Without one the device is the destination.
    pub via: Option<IpAddr>,
    /// Whether its scope is the link (rtnetlink(7)). IPv6 knows none.
    pub link_scope: bool,
}

impl Route {
    /// Through a gateway.
    pub fn via(to: IpNetwork, gateway: IpAddr) -> Route {
        Route { to, via: Some(gateway), link_scope: false }
    }

    /// To whatever is behind the device.
    pub fn into_device(to: IpNetwork) -> Route {
        Route { to, via: None, link_scope: false }
    }
}

/// Where one peer subnet's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The peer's node subnet.
    pub subnet: IpNetwork,
    /// The peer's address on the underlay.
    pub remote: SocketAddr,
    /// The peer's link address on the overlay, where the format has one.
    pub mac: Option<Mac>,
    /// The peer's public key, where packets are sealed.
    pub key: Option<PublicKey>,
}

/// A lease that got no place in the plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ignored {
    /// The lease's key.
    pub subnet: String,
    /// Why, as a clause: "it has our own public address".
    pub reason: String,
}

/// Why no plan is possible with this configuration on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The tunnel headers leave no room.
    #[error(
        "MTU {outer} leaves {inner} bytes beside {overhead} of tunnel headers, but {family} needs {least}; raise the MTU of {interface} or Backend.MTU"
    )]
    MtuTooSmall {
        /// Bytes on the underlay.
        outer: u32,
        /// Bytes left, 0 at least.
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
    /// The backend is not built, or cannot carry what the configuration enables.
    #[error("Backend.Type = {backend}: {problem}")]
    Backend {
        /// The configured type.
        backend: &'static str,
        /// What is wrong with it and what to do.
        problem: &'static str,
    },
    /// An option of the backend is not built.
    #[error("Backend.{key} = true: {problem}")]
    Option {
        /// The key.
        key: &'static str,
        /// What is wrong with it and what to do.
        problem: &'static str,
    },
    /// An enabled family has no address on the underlay or no subnet in the lease.
    #[error("{family} is enabled, but {what} has none; restart once it has")]
    FamilyMissing {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What lacks it.
        what: &'static str,
    },
}

/// The tunnels and the lease attributes for this configuration on this host.
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
            "not supported: it needs strongSwan and the kernel's IPsec; use vxlan, ipip, udp or host-gw, \
             none of which encrypts",
        ),
        Backend::TencentVpc { .. } => refused(
            "not supported: loden talks to no cloud; use vxlan, host-gw within one subnet, or alloc where \
             something else installs the cloud's routes",
        ),
    }
}

/// Variables for the command that runs once our own lease is there.
pub fn startup_variables(config: &NetConfig, own: &Lease) -> Vec<(&'static str, String)> {
    let network = config.ipv4.as_ref().map(|pool| pool.network.to_string()).unwrap_or_default();
    std::iter::once(("NETWORK", network)).chain(extension::variables(own)).collect()
}

/// The complete plan, given our own lease and those of all other nodes.
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
        // `outline` has refused these. Named, so that a new one cannot come up ready and without paths.
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

/// The cluster network and our own subnet for each family that is on.
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

/// What `overhead` bytes of headers leave of `outer` for a device of this family.
fn inner_mtu(context: &Context, outer: u32, overhead: u32, ipv6: bool) -> Result<Mtu, PlanError> {
    let (family, least) = if ipv6 { ("IPv6", LEAST_MTU_V6) } else { ("IPv4", u32::from(Mtu::MIN)) };
    let inner = outer.saturating_sub(overhead);
    // An interface such as `lo` may offer more than an IP packet can be long.
    let mtu = Mtu::new(inner.min(u32::from(u16::MAX))).filter(|_| inner >= least);
    let interface = context.underlay.interface.clone();
    mtu.ok_or(PlanError::MtuTooSmall { outer, inner, overhead, least, family, interface })
}

/// The base address of a node subnet, as the device owns it.
fn base(subnet: IpNetwork) -> IpNetwork {
    match subnet {
        IpNetwork::V4(subnet) => IpNetwork::V4(Ipv4Network::from(subnet.network())),
        IpNetwork::V6(subnet) => IpNetwork::V6(Ipv6Network::from(subnet.network())),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
