//! The framings a tunnel may use. Both directions of one format sit in one file.

pub mod ipip;
pub mod udp;
pub mod vxlan;

use std::net::SocketAddr;

use wire::addr::Mac;

use crate::template::Template;
use crate::verdict::DropReason;

/// How packets are framed on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// VXLAN (RFC 7348), as the kernel's driver speaks it.
    Vxlan(vxlan::Vxlan),
    /// flannel's `udp` backend: the bare IP packet is the payload.
    Udp,
    /// flannel's `ipip` backend: an outer IPv4 header, and only that.
    Ipip(ipip::Ipip),
    /// flannel's `wireguard` backend. What is framed and stripped here is the packet inside of a record.
    Wireguard,
}

impl Format {
    /// The prefix for a peer; `None` when the format needs a MAC and there is none, or IPv4 and it is not.
    pub fn template(&self, remote: SocketAddr, mac: Option<Mac>) -> Option<Template> {
        match self {
            Format::Vxlan(vxlan) => mac.map(|mac| vxlan.template(mac)),
            Format::Udp | Format::Wireguard => Some(udp::template()),
            Format::Ipip(ipip) => ipip.template(remote),
        }
    }

    /// Where in `datagram` the inner IP packet starts, and with which version, if the framing names one.
    #[inline]
    pub fn strip(&self, datagram: &[u8]) -> Result<Stripped, DropReason> {
        match self {
            Format::Vxlan(vxlan) => vxlan.strip(datagram),
            Format::Udp | Format::Wireguard => udp::strip(datagram),
            Format::Ipip(_) => ipip::strip(datagram),
        }
    }

    /// Whether the tunnel counts as a hop (flannel's udp proxy does, the kernel's vxlan and ipip devices do not).
    #[inline]
    pub fn is_a_hop(&self) -> bool {
        matches!(self, Format::Udp)
    }
}

/// The answer of [`Format::strip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripped {
    /// Bytes in front of the inner IP header.
    pub offset: usize,
    /// What the framing says of the inner version: IPv6, IPv4, or nothing.
    pub v6: Option<bool>,
}
