//! Prebuilt outer headers, which control builds once per peer and the engine copies into each datagram.

use crate::encap::{ipip, vxlan};
use crate::inner::Inner;

/// Maximum length of a prefix, which is that of VXLAN.
pub const TEMPLATE_MAX: usize = vxlan::PREFIX_LEN;

/// The bytes that the engine writes in front of the inner IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    bytes: [u8; TEMPLATE_MAX],
    len: u8,
    patch: Patch,
}

/// The part of a prefix that depends on the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patch {
    /// Nothing; the prefix is empty.
    Nothing,
    /// The EtherType at the end of a VXLAN prefix.
    Ethertype,
    /// The TTL, ECN and DF fields of an outer IPv4 header.
    OuterIpv4,
}

impl Template {
    /// Creates a template from `prefix`, which is at most [`TEMPLATE_MAX`] long and has the length that
    /// `patch` requires.
    pub(crate) fn new(prefix: &[u8], patch: Patch) -> Template {
        let mut bytes = [0; TEMPLATE_MAX];
        bytes[..prefix.len()].copy_from_slice(prefix);
        Template { bytes, len: prefix.len() as u8, patch }
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether the template contains the outer IP header, and with it the outer ECN bits.
    #[inline]
    pub fn has_outer_header(&self) -> bool {
        self.patch == Patch::OuterIpv4
    }

    /// Whether the template is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `prefix` is this template, apart from the part that depends on the packet.
    pub(crate) fn matches(&self, prefix: &[u8]) -> bool {
        let fixed = self.len() - if self.patch == Patch::Ethertype { 2 } else { 0 };
        prefix.len() == self.len() && prefix[..fixed] == self.bytes[..fixed]
    }

    /// Writes the prefix for a packet into `out`, which is exactly [`Template::len`] long.
    #[inline]
    pub fn write(&self, out: &mut [u8], inner: &Inner) {
        match self.patch {
            Patch::Nothing => {}
            Patch::Ethertype => {
                if let Ok(out) = <&mut [u8; vxlan::PREFIX_LEN]>::try_from(out) {
                    out.copy_from_slice(&self.bytes);
                    vxlan::patch(out, inner);
                }
            }
            Patch::OuterIpv4 => {
                if let Ok(out) = <&mut [u8; ipip::HEADER_LEN]>::try_from(out) {
                    out.copy_from_slice(&self.bytes[..ipip::HEADER_LEN]);
                    ipip::patch(out, inner);
                }
            }
        }
    }
}
