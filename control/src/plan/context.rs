//! The inputs of a plan, except the leases.

use ipnetwork::IpNetwork;
use model::backend::{Backend, VxlanData};
use model::lease::{Lease, LeaseAttrs, RawJson};
use model::net_config::NetConfig;
use path::wireguard::SecretKey;
use wire::addr::{Mac, Mtu};

use super::error::{PlanError, missing};
use super::intent::Place;
use crate::underlay::Underlay;
use crate::underlay::reach::Reach;

/// Minimum MTU of a device that carries IPv6 (RFC 8200 section 5); Linux turns IPv6 off below it.
const MIN_MTU_V6: u32 = 1280;

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
    /// Returns the MAC addresses in a lease of the vxlan backend, in place of each of ours that it has.
    pub fn published(&self, attrs: &LeaseAttrs) -> Identity {
        let mac = |data: &Option<RawJson>| {
            let data = VxlanData::parse(data.as_ref()?.as_str()).ok()?;
            Some(data.mac).filter(|mac| !mac.is_multicast() && mac.octets() != [0; 6])
        };
        let found = match attrs.backend_type.as_str() {
            "vxlan" => (mac(&attrs.backend_data), mac(&attrs.backend_v6_data)),
            _ => (None, None),
        };
        Identity { mac: found.0.unwrap_or(self.mac), mac_v6: found.1.unwrap_or(self.mac_v6) }
    }

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

/// Returns the cluster network and our own subnet for each enabled family.
pub(super) fn places(context: &Context, own: &Lease) -> Result<Vec<Place>, PlanError> {
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

/// Returns the MTU that `overhead` bytes of headers leave of `outer` for a device of this family.
pub(super) fn inner_mtu(context: &Context, outer: u32, overhead: u32, ipv6: bool) -> Result<Mtu, PlanError> {
    let (family, least) = if ipv6 { ("IPv6", MIN_MTU_V6) } else { ("IPv4", u32::from(Mtu::MIN)) };
    let inner = outer.saturating_sub(overhead);
    // The MTU of an interface such as `lo` may exceed the longest IP packet.
    let mtu = Mtu::new(inner.min(u32::from(u16::MAX))).filter(|_| inner >= least);
    let interface = context.underlay.interface.clone();
    mtu.ok_or(PlanError::MtuTooSmall { outer, inner, overhead, least, family, interface })
}
