//! The tunnel formats. Each file implements both directions of one format.

pub mod ipip;
pub mod udp;
pub mod vxlan;

use std::net::SocketAddr;

use wire::addr::Mac;
use wire::wireguard::PADDING;

use crate::fib::IPV6_MIN_MTU;
use crate::template::Template;
use crate::verdict::DropReason;
use crate::wireguard::session::OVERHEAD;

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

    /// Returns the largest inner packet for outer packets of up to `outer` bytes. The limit is never so small
    /// that a forged path MTU does harm: at least 576 bytes over IPv4, and what fits into 1280 over IPv6.
    pub fn inner_limit(&self, outer: u32, ipv6: bool) -> u16 {
        let ip = if ipv6 { wire::ipv6::HEADER_LEN } else { wire::ipv4::MIN_HEADER_LEN };
        let overhead = ip
            + match self {
                Format::Vxlan(_) => wire::udp::HEADER_LEN + vxlan::PREFIX_LEN,
                Format::Udp => wire::udp::HEADER_LEN,
                Format::Ipip(_) => 0,
                Format::Wireguard => wire::udp::HEADER_LEN + OVERHEAD,
            };
        let least = if ipv6 { usize::from(IPV6_MIN_MTU) } else { 576 + overhead };
        let inner = (outer as usize).max(least) - overhead;
        // Records are padded, so a packet just below the limit would exceed it.
        let inner = if *self == Format::Wireguard { inner / PADDING * PADDING } else { inner };
        u16::try_from(inner).unwrap_or(u16::MAX)
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
