//! Builds ICMP errors about a packet that cannot be forwarded (RFC 792, RFC 1812 section 4.3, RFC 4443).
//!
//! The builders write a complete IP packet and return its length. They return 0 if no error may be sent about
//! the offending packet (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)), if that packet is malformed, or
//! if `out` is too short. The caller limits the rate (RFC 1812 section 4.3.2.8).

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::bytes::{put, take};
use crate::checksum::{Sum, pseudo_v6};
use crate::{ipv4, ipv6};

/// IANA protocol number of ICMP.
pub const V4_PROTOCOL: u8 = 1;
/// IANA protocol number of ICMPv6.
pub const V6_PROTOCOL: u8 = 58;
/// Bytes of the header of an ICMP or ICMPv6 error.
pub const HEADER_LEN: usize = 8;
/// Maximum length of the packet that [`v4_error`] writes (RFC 1812 section 4.3.2.3).
pub const V4_MAX_LEN: usize = 576;
/// Maximum length of the packet that [`v6_error`] writes: the minimum IPv6 MTU (RFC 4443 section 2.4 (c)).
pub const V6_MAX_LEN: usize = 1280;

/// Minimum payload bytes to quote from the offending packet, which include the ports (RFC 792).
const V4_MIN_QUOTE: usize = 8;
/// Precedence 6, internetwork control, for errors (RFC 1812 section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// An error to report to the sender of an IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V4Error {
    /// No route to the destination: type 3 code 0.
    NetUnreachable,
    /// The packet exceeds the next hop's MTU and DF is set: type 3 code 4 (RFC 1191 section 4).
    TooBig {
        /// The next hop's MTU in bytes.
        mtu: u16,
    },
    /// The time to live has expired: type 11 code 0.
    TimeExceeded,
}

/// An error to report to the sender of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V6Error {
    /// No route to the destination: type 1 code 0 (RFC 4443 section 3.1).
    NoRoute,
    /// The packet exceeds the next hop's MTU: type 2 code 0 (RFC 4443 section 3.2).
    TooBig {
        /// The next hop's MTU in bytes.
        mtu: u32,
    },
    /// The hop limit has expired: type 3 code 0 (RFC 4443 section 3.3).
    TimeExceeded,
}

/// Writes an ICMP error about `offender`, a whole IPv4 packet, to `out`. Returns the length written, or 0.
///
/// The error quotes the offender's header and up to `quote` bytes of its payload, at least 8 if the offender
/// has them. The quote is shortened to keep the packet within 576 bytes.
pub fn v4_error(
    out: &mut [u8],
    from: Ipv4Addr,
    kind: V4Error,
    ttl: u8,
    offender: &[u8],
    quote: usize,
) -> usize {
    build_v4(out, from, kind, ttl, offender, quote).unwrap_or(0)
}

/// Writes an ICMPv6 error about `offender`, a whole IPv6 packet, to `out`. Returns the length written, or 0.
///
/// The error quotes as much of the offender as fits in 1280 bytes.
pub fn v6_error(out: &mut [u8], from: Ipv6Addr, kind: V6Error, hop_limit: u8, offender: &[u8]) -> usize {
    build_v6(out, from, kind, hop_limit, offender).unwrap_or(0)
}

fn build_v4(
    out: &mut [u8],
    from: Ipv4Addr,
    kind: V4Error,
    ttl: u8,
    offender: &[u8],
    quote: usize,
) -> Option<usize> {
    let about = ipv4::Header::parse(offender).ok()?;
    if !may_report_v4(&about, offender) {
        return None;
    }
    let room = V4_MAX_LEN - ipv4::MIN_HEADER_LEN - HEADER_LEN;
    let wanted = about.header_len + quote.clamp(V4_MIN_QUOTE, V4_MAX_LEN);
    let quoted = offender.get(..wanted.min(room).min(usize::from(about.total_len)))?;
    let total_len = ipv4::MIN_HEADER_LEN + HEADER_LEN + quoted.len();
    let (header, message) = out.get_mut(..total_len)?.split_at_mut_checked(ipv4::MIN_HEADER_LEN)?;
    ipv4::Header {
        header_len: ipv4::MIN_HEADER_LEN,
        // Copy the offender's DSCP bits below the precedence, but not its ECN bits: errors are not congestion
        // controlled.
        tos: INTERNETWORK_CONTROL | about.tos & 0x1c,
        total_len: total_len as u16,
        // The packet is never fragmented, so the identification is meaningless (RFC 6864 section 4.1).
        id: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl,
        protocol: V4_PROTOCOL,
        checksum: 0,
        src: from,
        dst: about.src,
    }
    .emit(header)
    .ok()?;
    let (kind, code, rest) = match kind {
        V4Error::NetUnreachable => (3, 0, 0),
        V4Error::TooBig { mtu } => (3, 4, u32::from(mtu)),
        V4Error::TimeExceeded => (11, 0, 0),
    };
    write_message(message, kind, code, rest, quoted, Sum::default())?;
    Some(total_len)
}

fn build_v6(out: &mut [u8], from: Ipv6Addr, kind: V6Error, hop_limit: u8, offender: &[u8]) -> Option<usize> {
    let about = ipv6::Header::parse(offender).ok()?;
    if !may_report_v6(&about, offender, kind) {
        return None;
    }
    let room = V6_MAX_LEN - ipv6::HEADER_LEN - HEADER_LEN;
    let quoted = offender.get(..room.min(ipv6::HEADER_LEN + usize::from(about.payload_len)))?;
    let payload_len = HEADER_LEN + quoted.len();
    let total_len = ipv6::HEADER_LEN + payload_len;
    let (header, message) = out.get_mut(..total_len)?.split_at_mut_checked(ipv6::HEADER_LEN)?;
    ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: payload_len as u16,
        next_header: V6_PROTOCOL,
        hop_limit,
        src: from,
        dst: about.src,
    }
    .emit(header)
    .ok()?;
    let (kind, rest) = match kind {
        V6Error::NoRoute => (1, 0),
        V6Error::TooBig { mtu } => (2, mtu),
        V6Error::TimeExceeded => (3, 0),
    };
    let pseudo = pseudo_v6(from, about.src, V6_PROTOCOL, payload_len as u32);
    write_message(message, kind, 0, rest, quoted, pseudo)?;
    Some(total_len)
}

/// Writes the 8 header bytes, the quote, and the checksum, which also covers `pseudo`.
fn write_message(
    message: &mut [u8],
    kind: u8,
    code: u8,
    rest: u32,
    quoted: &[u8],
    pseudo: Sum,
) -> Option<()> {
    put(message, 0, [kind, code, 0, 0]);
    put(message, 4, rest.to_be_bytes());
    message.get_mut(HEADER_LEN..HEADER_LEN + quoted.len())?.copy_from_slice(quoted);
    let checksum = pseudo.add(message).finish();
    put(message, 2, checksum.to_be_bytes());
    Some(())
}

/// Whether an error may be sent about a packet (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7).
fn may_report_v4(header: &ipv4::Header, packet: &[u8]) -> bool {
    let is_single_host = |a: Ipv4Addr| {
        // Class E (240/4) includes the limited broadcast address.
        let [first, ..] = a.octets();
        first != 0 && first < 224 && !a.is_loopback()
    };
    let to_many = header.dst.is_multicast() || header.dst.is_broadcast();
    let checksum_is_valid = packet.get(..header.header_len).is_some_and(ipv4::checksum_is_valid);
    if !is_single_host(header.src) || to_many || header.fragment_offset != 0 || !checksum_is_valid {
        return false;
    }
    if header.protocol != V4_PROTOCOL {
        return true;
    }
    // Errors may be sent about ICMP queries and replies, but not about errors or unknown types. Types: RFC
    // 792, RFC 950, RFC 1256, RFC 8335.
    let kind = packet.get(..usize::from(header.total_len)).and_then(|p| take(p, header.header_len));
    matches!(kind, Some([0 | 8 | 9 | 10 | 13..=18 | 42 | 43]))
}

/// Whether an error may be sent about a packet (RFC 4443 section 2.4 (e)).
fn may_report_v6(header: &ipv6::Header, packet: &[u8], kind: V6Error) -> bool {
    if header.src.is_unspecified() || header.src.is_multicast() || header.src.is_loopback() {
        return false;
    }
    // (e.3): path MTU discovery must work for multicast.
    if header.dst.is_multicast() && !matches!(kind, V6Error::TooBig { .. }) {
        return false;
    }
    // An extension header chain that cannot be parsed could end in an ICMPv6 error.
    let Ok(transport) = ipv6::transport(packet) else { return false };
    if transport.protocol != V6_PROTOCOL {
        return true;
    }
    // A later fragment could belong to an ICMPv6 error, because the type is in the first fragment.
    if transport.fragment.is_some_and(|f| f.offset != 0) {
        return false;
    }
    let payload = packet.get(..ipv6::HEADER_LEN + usize::from(header.payload_len));
    // Error types are below 128 (RFC 4443 section 2.1); 137 is a redirect (e.2).
    matches!(payload.and_then(|p| take(p, transport.offset)), Some([kind]) if kind >= 128 && kind != 137)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    const FROM_4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);
    const POD_4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
    const FAR_4: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
    const FROM_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0);
    const POD_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 5);
    const FAR_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 9);

    /// Builds the header of a UDP packet from a pod, which the tests modify.
    fn header_4(payload_len: usize) -> ipv4::Header {
        ipv4::Header {
            header_len: 20,
            tos: 0x2f,
            total_len: 20 + payload_len as u16,
            id: 7,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 1,
            protocol: 17,
            checksum: 0,
            src: POD_4,
            dst: FAR_4,
        }
    }

    fn packet_4(header: ipv4::Header, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        header.emit(&mut packet).unwrap();
        packet.extend(payload);
        packet
    }

    fn header_6(payload_len: usize) -> ipv6::Header {
        ipv6::Header {
            traffic_class: 0x2f,
            flow_label: 9,
            payload_len: payload_len as u16,
            next_header: 17,
            hop_limit: 1,
            src: POD_6,
            dst: FAR_6,
        }
    }

    fn packet_6(header: ipv6::Header, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        header.emit(&mut packet).unwrap();
        packet.extend(payload);
        packet
    }

    fn report_4(offender: &[u8]) -> usize {
        v4_error(&mut [0; 600], FROM_4, V4Error::TimeExceeded, 64, offender, 8)
    }

    fn report_6(offender: &[u8], kind: V6Error) -> usize {
        v6_error(&mut [0; 1300], FROM_6, kind, 64, offender)
    }

    #[test]
    fn each_v4_error_has_its_type_code_and_quote() {
        let offender = packet_4(header_4(8), &[1; 8]);
        for (kind, head) in [
            (V4Error::NetUnreachable, [3, 0, 0, 0, 0, 0]),
            (V4Error::TooBig { mtu: 1450 }, [3, 4, 0, 0, 5, 170]),
            (V4Error::TimeExceeded, [11, 0, 0, 0, 0, 0]),
        ] {
            let mut out = [0xee; 600];
            let len = v4_error(&mut out, FROM_4, kind, 8, &offender, 8);
            assert_eq!(len, 56);
            let header = ipv4::Header::parse(&out[..len]).unwrap();
            assert_eq!((header.src, header.dst, header.ttl, header.protocol), (FROM_4, POD_4, 8, 1));
            assert_eq!(header.tos, 0xcc, "internetwork control, no ECN");
            assert_eq!([out[20], out[21], out[24], out[25], out[26], out[27]], head);
            assert_eq!(out[28..len], offender);
        }
    }

    #[test]
    fn each_v6_error_has_its_type_code_and_quote() {
        let offender = packet_6(header_6(8), &[1; 8]);
        for (kind, head) in [
            (V6Error::NoRoute, [1, 0, 0, 0, 0, 0]),
            (V6Error::TooBig { mtu: 0x0001_05aa }, [2, 0, 0, 1, 5, 170]),
            (V6Error::TimeExceeded, [3, 0, 0, 0, 0, 0]),
        ] {
            let mut out = [0xee; 1300];
            let len = v6_error(&mut out, FROM_6, kind, 8, &offender);
            assert_eq!(len, 96);
            let header = ipv6::Header::parse(&out[..len]).unwrap();
            assert_eq!(
                (header.src, header.dst, header.hop_limit, header.next_header),
                (FROM_6, POD_6, 8, 58)
            );
            assert_eq!([out[40], out[41], out[44], out[45], out[46], out[47]], head);
            assert_eq!(out[48..len], offender);
        }
    }

    #[test]
    fn quotes_are_bounded() {
        let offender = packet_4(header_4(1000), &[1; 1000]);
        let quoting = |quote| v4_error(&mut [0; 600], FROM_4, V4Error::TimeExceeded, 64, &offender, quote);
        assert_eq!(quoting(0), 20 + 8 + 20 + 8);
        assert_eq!(quoting(100), 20 + 8 + 20 + 100);
        assert_eq!(quoting(usize::MAX), V4_MAX_LEN);
        // Trailing bytes are not part of the offender.
        let mut padded = packet_4(header_4(4), &[1; 4]);
        padded.extend([9; 30]);
        assert_eq!(report_4(&padded), 20 + 8 + 24);

        let offender = packet_6(header_6(2000), &[1; 2000]);
        assert_eq!(report_6(&offender, V6Error::TimeExceeded), V6_MAX_LEN);
    }

    #[test]
    fn nothing_is_written_to_a_short_buffer() {
        let offender = packet_4(header_4(8), &[1; 8]);
        assert_eq!(v4_error(&mut [0; 55], FROM_4, V4Error::TimeExceeded, 64, &offender, 8), 0);
        let offender = packet_6(header_6(8), &[1; 8]);
        assert_eq!(v6_error(&mut [0; 95], FROM_6, V6Error::TimeExceeded, 64, &offender), 0);
    }

    // RFC 1122 section 3.2.2: the source must be a single host, and the destination must not be several.
    #[test]
    fn no_v4_error_is_sent_for_these_addresses() {
        assert_eq!(report_4(&packet_4(header_4(8), &[1; 8])), 56);
        for src in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
            let header = ipv4::Header { src: src.parse().unwrap(), ..header_4(8) };
            assert_eq!(report_4(&packet_4(header, &[1; 8])), 0, "{src}");
        }
        for dst in ["224.0.0.251", "239.255.255.250", "255.255.255.255"] {
            let header = ipv4::Header { dst: dst.parse().unwrap(), ..header_4(8) };
            assert_eq!(report_4(&packet_4(header, &[1; 8])), 0, "{dst}");
        }
    }

    #[test]
    fn no_v4_error_is_sent_for_later_fragments_and_bad_headers() {
        let first = ipv4::Header { more_fragments: true, ..header_4(8) };
        assert_eq!(report_4(&packet_4(first, &[1; 8])), 56);
        let later = ipv4::Header { fragment_offset: 1, ..header_4(8) };
        assert_eq!(report_4(&packet_4(later, &[1; 8])), 0);
        let mut damaged = packet_4(header_4(8), &[1; 8]);
        damaged[10] ^= 1;
        assert_eq!(report_4(&damaged), 0);
        assert_eq!(report_4(&packet_4(header_4(8), &[1; 7])), 0, "shorter than its length field");
    }

    #[test]
    fn v4_errors_are_sent_only_for_icmp_queries_and_replies() {
        let header = ipv4::Header { protocol: V4_PROTOCOL, ..header_4(8) };
        let reported: Vec<u8> = (0..=255)
            .filter(|kind| report_4(&packet_4(header, &[*kind, 0, 0, 0, 0, 0, 0, 0])) != 0)
            .collect();
        assert_eq!(reported, [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43]);
        let empty = ipv4::Header { total_len: 20, ..header };
        assert_eq!(report_4(&packet_4(empty, &[8, 0])), 0, "the type is beyond the end of the packet");
    }

    // RFC 4443 section 2.4 (e.3) to (e.6).
    #[test]
    fn no_v6_error_is_sent_for_these_addresses() {
        for src in ["::", "::1", "ff02::1"] {
            let header = ipv6::Header { src: src.parse().unwrap(), ..header_6(8) };
            assert_eq!(report_6(&packet_6(header, &[1; 8]), V6Error::TooBig { mtu: 1280 }), 0, "{src}");
        }
        let header = ipv6::Header { dst: "ff0e::1".parse().unwrap(), ..header_6(8) };
        let offender = packet_6(header, &[1; 8]);
        assert_eq!(report_6(&offender, V6Error::NoRoute), 0);
        assert_eq!(report_6(&offender, V6Error::TimeExceeded), 0);
        assert_eq!(report_6(&offender, V6Error::TooBig { mtu: 1280 }), 96, "the exception");
    }

    // RFC 4443 section 2.4 (e.1) and (e.2).
    #[test]
    fn no_v6_error_is_sent_for_errors_and_redirects() {
        let header = ipv6::Header { next_header: V6_PROTOCOL, ..header_6(8) };
        for kind in 0..=255 {
            let len = report_6(&packet_6(header, &[kind, 0, 0, 0, 0, 0, 0, 0]), V6Error::TimeExceeded);
            assert_eq!(len != 0, kind >= 128 && kind != 137, "{kind}");
        }
        // The same behind an extension header.
        let hidden = ipv6::Header { next_header: 60, ..header_6(16) };
        let options = [58, 0, 1, 4, 0, 0, 0, 0];
        let with = |kind| [&options[..], &[kind, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(report_6(&packet_6(hidden, &with(3)), V6Error::TimeExceeded), 0);
        assert_eq!(report_6(&packet_6(hidden, &with(128)), V6Error::TimeExceeded), 104);
        let endless = ipv6::Header { next_header: 60, ..header_6(80) };
        let chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(10);
        assert_eq!(report_6(&packet_6(endless, &chain), V6Error::TimeExceeded), 0);
    }

    #[test]
    fn v6_errors_are_sent_for_later_fragments_unless_those_may_be_errors() {
        let header = ipv6::Header { next_header: 44, ..header_6(16) };
        let later = |protocol| [protocol, 0, 0, 8, 0, 0, 0, 7, 128, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(report_6(&packet_6(header, &later(17)), V6Error::TooBig { mtu: 1280 }), 104);
        assert_eq!(report_6(&packet_6(header, &later(58)), V6Error::TooBig { mtu: 1280 }), 0);
    }

    proptest! {
        #[test]
        fn errors_are_well_formed_with_valid_checksums(
            payload in prop::collection::vec(any::<u8>(), 0..1400),
            quote in 0_usize..700,
            mtu: u16,
        ) {
            let offender = packet_4(header_4(payload.len()), &payload);
            let mut out = [0xee; V4_MAX_LEN];
            let len = v4_error(&mut out, FROM_4, V4Error::TooBig { mtu }, 64, &offender, quote);
            let header = ipv4::Header::parse(&out[..len]).unwrap();
            prop_assert_eq!(usize::from(header.total_len), len);
            prop_assert!(ipv4::checksum_is_valid(&out[..20]));
            prop_assert_eq!(Sum::of(&out[20..len]).finish(), 0);
            prop_assert!(len >= 28 + offender.len().min(28));
            prop_assert!(offender.starts_with(&out[28..len]));
            prop_assert_eq!(report_4(&out[..len]), 0, "no error about an error");

            let offender = packet_6(header_6(payload.len()), &payload);
            let mut out = [0xee; V6_MAX_LEN];
            let kind = V6Error::TooBig { mtu: u32::from(mtu) };
            let len = v6_error(&mut out, FROM_6, kind, 64, &offender);
            let header = ipv6::Header::parse(&out[..len]).unwrap();
            prop_assert_eq!(len, V6_MAX_LEN.min(48 + offender.len()));
            let pseudo = pseudo_v6(header.src, header.dst, V6_PROTOCOL, u32::from(header.payload_len));
            prop_assert_eq!(pseudo.add(&out[40..len]).finish(), 0);
            prop_assert!(offender.starts_with(&out[48..len]));
            prop_assert_eq!(report_6(&out[..len], kind), 0, "no error about an error");
        }

        #[test]
        fn random_bytes_never_panic(
            mut bytes: Vec<u8>,
            room in 0_usize..1400,
            quote: usize,
            first in 0x40_u8..0x70,
        ) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let mut out = vec![0; room];
            let four = v4_error(&mut out, FROM_4, V4Error::NetUnreachable, 64, &bytes, quote);
            prop_assert!(four <= room.min(V4_MAX_LEN));
            let six = v6_error(&mut out, FROM_6, V6Error::NoRoute, 64, &bytes);
            prop_assert!(six <= room.min(V6_MAX_LEN));
        }
    }
}
