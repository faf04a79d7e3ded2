//! The tunnel formats. Each file implements both directions of one format.

pub mod ipip;
pub mod udp;
pub mod vxlan;

use std::net::SocketAddr;

use wire::addr::Mac;

use crate::template::Template;
use crate::verdict::DropReason;

/// The format of packets on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// VXLAN (RFC 7348), as implemented by the kernel.
    Vxlan(vxlan::Vxlan),
    /// flannel's `udp` backend: the payload is the bare IP packet.
    Udp,
    /// flannel's `ipip` backend: an outer IPv4 header and nothing else.
    Ipip(ipip::Ipip),
    /// flannel's `wireguard` backend. The format describes the packet inside a record.
    Wireguard,
}

impl Format {
    /// Builds the prefix for a peer. Returns `None` if the format needs a MAC address or an IPv4 peer and has
    /// none.
    pub fn template(&self, remote: SocketAddr, mac: Option<Mac>) -> Option<Template> {
        match self {
            Format::Vxlan(vxlan) => mac.map(|mac| vxlan.template(mac)),
            Format::Udp | Format::Wireguard => Some(udp::template()),
            Format::Ipip(ipip) => ipip.template(remote),
        }
    }

    /// Checks the headers of `datagram` and finds the inner IP packet.
    #[inline]
    pub fn strip(&self, datagram: &[u8]) -> Result<Stripped, DropReason> {
        match self {
            Format::Vxlan(vxlan) => vxlan.strip(datagram),
            Format::Udp | Format::Wireguard => udp::strip(datagram),
            Format::Ipip(_) => ipip::strip(datagram),
        }
    }

    /// Whether the tunnel counts as a hop, as flannel's udp proxy does. The kernel's vxlan and ipip devices
    /// do not.
    #[inline]
    pub fn is_hop(&self) -> bool {
        matches!(self, Format::Udp)
    }
}

/// The result of [`Format::strip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripped {
    /// Offset of the inner IP header.
    pub offset: usize,
    /// Whether the inner packet is IPv6 according to the tunnel headers; `None` if they do not say.
    pub v6: Option<bool>,
}
