//! Prebuilt outer headers: built once per peer by control, copied per datagram by the engine.

use wire::ethernet;

/// The longest prefix of any format: a VXLAN header and an Ethernet header.
pub const TEMPLATE_MAX: usize = wire::vxlan::HEADER_LEN + ethernet::HEADER_LEN;

/// The bytes between the outer UDP header and the inner IP header.
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

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there is nothing to prepend.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the prefix for a packet of this family into `out`, which is exactly [`Template::len`] long.
    #[inline]
    pub fn write(&self, out: &mut [u8], v6: bool) {
        if self.len as usize == TEMPLATE_MAX && out.len() == TEMPLATE_MAX {
            out.copy_from_slice(&self.bytes);
            let ethertype = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
            out[TEMPLATE_MAX - 2..].copy_from_slice(&ethertype.to_be_bytes());
        }
    }
}
