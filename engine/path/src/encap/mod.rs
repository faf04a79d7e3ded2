//! The framings a tunnel may use. Both directions of one format sit in one file.

pub mod udp;
pub mod vxlan;

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
}

impl Format {
    /// The prefix for a peer; `None` when the format needs a MAC and there is none.
    pub fn template(&self, mac: Option<Mac>) -> Option<Template> {
        match self {
            Format::Vxlan(vxlan) => mac.map(|mac| vxlan.template(mac)),
            Format::Udp => Some(Template::EMPTY),
        }
    }

    /// Where in `datagram` the inner IP packet starts, and with which version, if the framing names one.
    #[inline]
    pub fn strip(&self, datagram: &[u8]) -> Result<Stripped, DropReason> {
        match self {
            Format::Vxlan(vxlan) => vxlan.strip(datagram),
            Format::Udp => udp::strip(datagram),
        }
    }

    /// Whether the tunnel counts as a hop (flannel's udp proxy does, a vxlan device does not).
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
