//! VXLAN: the template for a peer, and the checks on a peer's datagrams.
//!
//! The checks are the kernel's (drivers/net/vxlan/vxlan_core.c, `vxlan_rcv` and `vxlan_set_mac`): a header
//! bit other than the VNI flag drops the packet, and so does this node's MAC address as inner source. An
//! inner destination other than this node's MAC address, which the kernel marks as another host's and IP then
//! drops, is dropped here.

use wire::addr::{Mac, Vni};
use wire::ethernet;
use wire::{Malformed, vxlan};

use crate::encap::Stripped;
use crate::inner::Inner;
use crate::template::{Patch, Template};
use crate::verdict::DropReason;

/// Bytes in front of the inner IP packet: a VXLAN header and an Ethernet header.
pub const PREFIX_LEN: usize = vxlan::HEADER_LEN + ethernet::HEADER_LEN;

/// This node's end of a VXLAN network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network's identifier.
    pub vni: Vni,
    /// This node's inner MAC address, the VtepMAC of its lease.
    pub local_mac: Mac,
}

impl Vxlan {
    /// Builds the headers towards the peer with this MAC address.
    pub fn template(&self, peer: Mac) -> Template {
        let ethernet = ethernet::Header { dst: peer, src: self.local_mac, ethertype: ethernet::IPV4 };
        let mut bytes = [0; PREFIX_LEN];
        let (head, tail) = bytes.split_at_mut(vxlan::HEADER_LEN);
        // Both slices have the exact length of their header, so neither call can fail.
        let _ = vxlan::Header { vni: self.vni, policy: None }.emit(head);
        let _ = ethernet.emit(tail);
        Template::new(&bytes, Patch::Ethertype)
    }

    /// Checks the headers and finds the inner packet.
    #[inline]
    pub fn strip(&self, datagram: &[u8]) -> Result<Stripped, DropReason> {
        let header = vxlan::Header::parse(datagram, false).map_err(|malformed| match malformed {
            Malformed::Truncated => DropReason::Truncated,
            _ => DropReason::VxlanReserved,
        })?;
        if header.vni != self.vni {
            return Err(DropReason::WrongVni);
        }
        let frame = datagram.get(vxlan::HEADER_LEN..).ok_or(DropReason::Truncated)?;
        let ethernet = ethernet::Header::parse(frame).map_err(|_| DropReason::Truncated)?;
        if ethernet.src == self.local_mac {
            return Err(DropReason::OwnMac);
        }
        if ethernet.dst != self.local_mac {
            return Err(DropReason::WrongMac);
        }
        let v6 = match ethernet.ethertype {
            ethernet::IPV4 => false,
            ethernet::IPV6 => true,
            _ => return Err(DropReason::WrongEthertype),
        };
        Ok(Stripped { offset: PREFIX_LEN, v6: Some(v6) })
    }
}

/// Writes the EtherType, the only field of the headers that depends on the inner packet.
#[inline]
pub(crate) fn patch(prefix: &mut [u8; PREFIX_LEN], inner: &Inner) {
    let ethertype = if inner.v6 { ethernet::IPV6 } else { ethernet::IPV4 };
    prefix[PREFIX_LEN - 2..].copy_from_slice(&ethertype.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet that is only an IPv4 header.
    const INNER: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 1, 0, 5, 10, 2, 0, 7];

    fn mac(last: u8) -> Mac {
        Mac::new([0x0e, 0x2a, 0, 0, 0, last])
    }

    fn node(local: u8, vni: u32) -> Vxlan {
        Vxlan { vni: Vni::new(vni).unwrap(), local_mac: mac(local) }
    }

    fn datagram(from: Vxlan, to: u8) -> Vec<u8> {
        let mut bytes = vec![0; PREFIX_LEN];
        let inner = Inner::parse(&INNER).unwrap();
        from.template(mac(to)).write(&mut bytes, &inner);
        bytes.push(0x45);
        bytes
    }

    #[test]
    fn one_node_strips_the_headers_that_another_builds() {
        let stripped = node(2, 7).strip(&datagram(node(1, 7), 2)).unwrap();
        assert_eq!(stripped, Stripped { offset: 22, v6: Some(false) });
    }

    #[test]
    fn each_fault_has_its_own_drop_reason() {
        let good = datagram(node(1, 7), 2);
        let faulty = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            node(2, 7).strip(&bytes).unwrap_err()
        };
        assert_eq!(faulty(0, 0x09), DropReason::VxlanReserved);
        assert_eq!(faulty(0, 0x00), DropReason::VxlanReserved);
        assert_eq!(faulty(7, 0x01), DropReason::VxlanReserved);
        assert_eq!(faulty(6, 0x08), DropReason::WrongVni);
        assert_eq!(faulty(13, 0x03), DropReason::WrongMac);
        assert_eq!(faulty(19, 0x02), DropReason::OwnMac);
        assert_eq!(faulty(20, 0x86), DropReason::WrongEthertype);
        for len in 0..PREFIX_LEN {
            assert_eq!(node(2, 7).strip(&good[..len]).unwrap_err(), DropReason::Truncated, "{len}");
        }
    }
}
