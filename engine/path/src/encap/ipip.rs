//! IP in IP (RFC 2003, protocol 4), as implemented by the kernel's `ipip`: an IPv4 packet behind an IPv4
//! header.
//!
//! The engine writes the whole outer header, because some fields depend on the inner packet: TTL and DF are
//! copied, and the class of service is 0 with the inner ECN bits (net/ipv4/ip_tunnel.c, ip_tunnel_xmit, for a
//! tunnel that inherits its TTL and does no path MTU discovery). The kernel fills in length, checksum, and
//! the id of packets without DF, as for every raw socket with IP_HDRINCL (net/ipv4/raw.c, raw_send_hdrinc).

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use wire::{Malformed, ipv4};

use crate::encap::Stripped;
use crate::inner::Inner;
use crate::template::{Patch, Template};
use crate::verdict::DropReason;

/// IP protocol number of IPv4 in IP.
pub const PROTOCOL: u8 = 4;
/// Bytes in front of the inner packet.
pub const HEADER_LEN: usize = ipv4::MIN_HEADER_LEN;

/// This node's end of an ipip tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipip {
    /// The interface's address, which is the source of sent packets and the destination of received ones.
    pub local: Ipv4Addr,
}

impl Ipip {
    /// Builds the header towards a peer, or returns `None` if the peer has an IPv6 address.
    pub fn template(&self, remote: SocketAddr) -> Option<Template> {
        let SocketAddr::V4(remote) = remote else { return None };
        let header = ipv4::Header {
            header_len: HEADER_LEN,
            tos: 0,
            total_len: 0,
            id: identification(IpAddr::V4(*remote.ip())),
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 0,
            protocol: PROTOCOL,
            checksum: 0,
            src: self.local,
            dst: *remote.ip(),
        };
        let mut bytes = [0; HEADER_LEN];
        // The buffer has the header's length, so this cannot fail.
        let _ = header.emit(&mut bytes);
        // The kernel fills in the length, and the checksum over fields that are still to be patched.
        bytes[2..4].fill(0);
        bytes[10..12].fill(0);
        Some(Template::new(&bytes, Patch::OuterIpv4))
    }
}

/// Returns the identification of packets with DF to a peer: a secret, because a "fragmentation needed"
/// message must quote it. Packets that are never fragmented need no distinct identification (RFC 6864
/// section 4.1).
/// Never 0, which the kernel would replace.
pub(crate) fn identification(peer: IpAddr) -> u16 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    (KEY.hash_one(peer) as u16).max(1)
}

/// Writes the fields of the outer header that depend on the inner packet.
#[inline]
pub(crate) fn patch(outer: &mut [u8; HEADER_LEN], inner: &Inner) {
    // RFC 6040 section 4.1, normal mode: copy the ECN codepoint.
    outer[1] = inner.ecn();
    outer[6] = if inner.dont_fragment { 0x40 } else { 0 };
    if !inner.dont_fragment {
        // The kernel fills in a distinct one.
        outer[4..6].fill(0);
    }
    outer[8] = inner.ttl;
}

/// Finds the inner packet behind the outer header, which a raw socket delivers too. The kernel has already
/// checked the header and the addresses, and reassembled fragments.
#[inline]
pub fn strip(datagram: &[u8]) -> Result<Stripped, DropReason> {
    let outer = ipv4::Header::parse(datagram).map_err(|malformed| match malformed {
        Malformed::Truncated => DropReason::Truncated,
        Malformed::BadVersion => DropReason::NotIp,
        _ => DropReason::BadIpHeader,
    })?;
    if outer.protocol != PROTOCOL || outer.is_fragment() {
        return Err(DropReason::BadIpHeader);
    }
    Ok(Stripped { offset: outer.header_len, v6: Some(false) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(tos: u8, ttl: u8, dont_fragment: bool) -> Vec<u8> {
        let mut packet = vec![0; 28];
        let header = ipv4::Header {
            header_len: 20,
            tos,
            total_len: 28,
            id: 7,
            dont_fragment,
            more_fragments: false,
            fragment_offset: 0,
            ttl,
            protocol: 253,
            checksum: 0,
            src: [10, 1, 0, 5].into(),
            dst: [10, 2, 0, 7].into(),
        };
        header.emit(&mut packet).unwrap();
        packet
    }

    fn outer(packet: &[u8]) -> [u8; HEADER_LEN] {
        let template =
            Ipip { local: [192, 0, 2, 1].into() }.template("192.0.2.9:0".parse().unwrap()).unwrap();
        let mut bytes = [0xff; HEADER_LEN];
        template.write(&mut bytes, &Inner::parse(packet).unwrap());
        bytes
    }

    #[test]
    fn the_outer_header_follows_the_inner_one() {
        let bytes = outer(&inner(0b1011_1010, 61, true));
        let [i0, i1] = identification([192, 0, 2, 9].into()).to_be_bytes();
        let expected = [0x45, 0x02, 0, 0, i0, i1, 0x40, 0, 61, 4, 0, 0, 192, 0, 2, 1, 192, 0, 2, 9];
        assert_eq!(bytes[..10], expected[..10]);
        assert_ne!([i0, i1], [0, 0]);
        assert_eq!(bytes[12..], expected[12..], "the kernel fills in the checksum");
        let bytes = outer(&inner(0, 1, false));
        assert_eq!((bytes[1], bytes[4..6].to_vec(), bytes[6], bytes[8]), (0, vec![0, 0], 0, 1));
        assert!(Ipip { local: [192, 0, 2, 1].into() }.template("[::1]:0".parse().unwrap()).is_none());
    }

    #[test]
    fn options_are_skipped_and_each_fault_has_its_own_drop_reason() {
        let packet = inner(0, 64, false);
        let mut datagram = outer(&packet).to_vec();
        datagram[2..4].copy_from_slice(&48u16.to_be_bytes());
        datagram.extend(&packet);
        assert_eq!(strip(&datagram), Ok(Stripped { offset: 20, v6: Some(false) }));
        for len in 0..datagram.len() {
            assert!(strip(&datagram[..len]).is_err(), "{len}");
        }
        let faulty = |at: usize, value: u8| {
            let mut bytes = datagram.clone();
            bytes[at] = value;
            strip(&bytes).unwrap_err()
        };
        assert_eq!(faulty(0, 0x65), DropReason::NotIp);
        assert_eq!(faulty(9, 41), DropReason::BadIpHeader);
        assert_eq!(faulty(6, 0x20), DropReason::BadIpHeader);
        assert_eq!(faulty(7, 1), DropReason::BadIpHeader);
        datagram.splice(20..20, [1, 1, 1, 0]);
        datagram[0] = 0x46;
        datagram[3] = 52;
        assert_eq!(strip(&datagram), Ok(Stripped { offset: 24, v6: Some(false) }));
    }
}
