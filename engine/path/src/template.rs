//! Prebuilt outer headers: built once per peer by control, copied per datagram by the engine.

use crate::encap::{ipip, vxlan};
use crate::inner::Inner;

/// The longest prefix of any format: that of VXLAN.
pub const TEMPLATE_MAX: usize = vxlan::PREFIX_LEN;

/// The bytes in front of the inner IP header that are ours to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    bytes: [u8; TEMPLATE_MAX],
    len: u8,
    patch: Patch,
}

/// What of a prefix follows the packet behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patch {
    /// Nothing; the prefix is empty.
    Nothing,
    /// The Ethernet type at the end of a VXLAN prefix.
    Ethertype,
    /// Time to live, ECN and "don't fragment" of an outer IPv4 header.
    OuterIpv4,
}

impl Template {
    /// A template of `prefix`, which is at most [`TEMPLATE_MAX`] long and as long as `patch` wants it.
    pub(crate) fn new(prefix: &[u8], patch: Patch) -> Template {
        let mut bytes = [0; TEMPLATE_MAX];
        bytes[..prefix.len()].copy_from_slice(prefix);
        Template { bytes, len: prefix.len() as u8, patch }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether it holds the outer IP header itself, and so the outer ECN bits.
    #[inline]
    pub fn has_outer_header(&self) -> bool {
        self.patch == Patch::OuterIpv4
    }

    /// Whether there is nothing to prepend.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the prefix for this packet into `out`, which is exactly [`Template::len`] long.
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
