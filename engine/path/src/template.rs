//! Prebuilt outer headers: built once per peer by control, copied per datagram by the engine.

use wire::{ethernet, ipv4};

use crate::encap::ipip;
use crate::inner::Inner;

/// The longest prefix of any format: a VXLAN header and an Ethernet header.
pub const TEMPLATE_MAX: usize = wire::vxlan::HEADER_LEN + ethernet::HEADER_LEN;

/// The bytes in front of the inner IP header that are ours to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    bytes: [u8; TEMPLATE_MAX],
    len: u8,
}

impl Template {
    /// Nothing at all: the inner packet is the payload.
    pub const EMPTY: Template = Template { bytes: [0; TEMPLATE_MAX], len: 0 };

    /// VXLAN and Ethernet headers. The Ethernet type is patched per packet.
    pub fn vxlan(vxlan: &wire::vxlan::Header, ethernet: &ethernet::Header) -> Template {
        let mut bytes = [0; TEMPLATE_MAX];
        let (head, tail) = bytes.split_at_mut(wire::vxlan::HEADER_LEN);
        // Both slices have the exact length of their header, so neither emit can fail.
        let _ = vxlan.emit(head);
        let _ = ethernet.emit(tail);
        Template { bytes, len: TEMPLATE_MAX as u8 }
    }

    /// An outer IPv4 header. Time to live, ECN and "don't fragment" are patched per packet.
    pub fn ipip(outer: &ipv4::Header) -> Template {
        let mut bytes = [0; TEMPLATE_MAX];
        // The slice is as long as the header, so it cannot fail.
        let _ = outer.emit(&mut bytes[..ipip::HEADER_LEN]);
        // Theirs to fill in: the length, and a checksum over fields that are yet to be patched.
        bytes[2..4].fill(0);
        bytes[10..12].fill(0);
        Template { bytes, len: ipip::HEADER_LEN as u8 }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether it holds the outer IP header itself, and so the outer ECN bits.
    #[inline]
    pub fn has_outer_header(&self) -> bool {
        self.len() == ipip::HEADER_LEN
    }

    /// Whether there is nothing to prepend.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the prefix for this packet into `out`, which is exactly [`Template::len`] long.
    #[inline]
    pub fn write(&self, out: &mut [u8], inner: &Inner) {
        if self.len as usize == TEMPLATE_MAX && out.len() == TEMPLATE_MAX {
            out.copy_from_slice(&self.bytes);
            let ethertype = if inner.v6 { ethernet::IPV6 } else { ethernet::IPV4 };
            out[TEMPLATE_MAX - 2..].copy_from_slice(&ethertype.to_be_bytes());
        } else if let (ipip::HEADER_LEN, Ok(out)) = (self.len(), <&mut [u8; ipip::HEADER_LEN]>::try_from(out))
        {
            out.copy_from_slice(&self.bytes[..ipip::HEADER_LEN]);
            ipip::stamp(out, inner);
        }
    }
}
