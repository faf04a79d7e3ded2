//! ICMP errors that answer a packet we could not forward (RFC 792, RFC 1812 section 4.3, RFC 4443).
//!
//! The builders write a complete IP packet and return its length. They return 0 and send nobody astray when the
//! offender must not be answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)), is not a well-formed packet,
//! or when `out` is too short. Limiting the rate (RFC 1812 section 4.3.2.8) is the caller's task.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::bytes::{put, take};
use crate::checksum::{Sum, pseudo_v6};
use crate::{ipv4, ipv6};

/// IANA protocol number of ICMP.
pub const V4_PROTOCOL: u8 = 1;
/// IANA protocol number of ICMPv6.
pub const V6_PROTOCOL: u8 = 58;
/// Bytes of an ICMP or ICMPv6 error's own header.
pub const HEADER_LEN: usize = 8;
/// Longest packet [`v4_error`] writes (RFC 1812 section 4.3.2.3).
pub const V4_MAX_LEN: usize = 576;
/// Longest packet [`v6_error`] writes: the minimum IPv6 MTU (RFC 4443 section 2.4 (c)).
pub const V6_MAX_LEN: usize = 1280;

/// Payload bytes of the offender that are quoted at least (RFC 792): the ports.
const V4_MIN_QUOTE: usize = 8;
/// Precedence 6, internetwork control, for errors (RFC 1812 section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// What to tell the sender of an IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V4Error {
    /// No route to the destination: type 3 code 0.
    NetUnreachable,
    /// Longer than the next hop takes, and DF set: type 3 code 4 (RFC 1191 section 4).
    TooBig {
        /// What the next hop takes, in bytes.
        mtu: u16,
    },
    /// Time to live used up: type 11 code 0.
    TimeExceeded,
}

/// What to tell the sender of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V6Error {
    /// No route to the destination: type 1 code 0 (RFC 4443 section 3.1).
    NoRoute,
    /// Longer than the next hop takes: type 2 code 0 (RFC 4443 section 3.2).
    TooBig {
        /// What the next hop takes, in bytes.
        mtu: u32,
    },
    /// Hop limit used up: type 3 code 0 (RFC 4443 section 3.3).
    TimeExceeded,
}

/// Answers `offender`, a whole IPv4 packet, with an error from `from`; the length of the packet written to `out`,
/// or 0.
///
/// Quotes the offender's header and `quote` bytes of its payload, at least 8 and at most what keeps the packet
/// within 576 bytes, as far as the offender has them.
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

/// Answers `offender`, a whole IPv6 packet, with an error from `from`; the length of the packet written to `out`,
/// or 0.
///
/// Quotes as much of the offender as fits in 1280 bytes.
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
    if !may_answer_v4(&about, offender) {
        return None;
    }
    let room = V4_MAX_LEN - ipv4::MIN_HEADER_LEN - HEADER_LEN;
    let wanted = about.header_len + quote.clamp(V4_MIN_QUOTE, V4_MAX_LEN);
    let quoted = offender.get(..wanted.min(room).min(usize::from(about.total_len)))?;
    let total_len = ipv4::MIN_HEADER_LEN + HEADER_LEN + quoted.len();
    let (header, message) = out.get_mut(..total_len)?.split_at_mut_checked(ipv4::MIN_HEADER_LEN)?;
    ipv4::Header {
        header_len: ipv4::MIN_HEADER_LEN,
        // The offender's DSCP below the precedence, without its ECN mark: an error is not congestion controlled.
        tos: INTERNETWORK_CONTROL | about.tos & 0x1c,
        total_len: total_len as u16,
        // Never fragmented, so the identification says nothing (RFC 6864 section 4.1).
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
    if !may_answer_v6(&about, offender, kind) {
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

/// Writes the 8 header bytes, the quote, and the checksum over both and `pseudo`.
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

/// RFC 1122 section 3.2.2 and RFC 1812 section 4.3.2.7.
fn may_answer_v4(header: &ipv4::Header, packet: &[u8]) -> bool {
    let names_one_host = |a: Ipv4Addr| {
        // Class E (240/4) includes the limited broadcast.
        let [first, ..] = a.octets();
        first != 0 && first < 224 && !a.is_loopback()
    };
    let to_many = header.dst.is_multicast() || header.dst.is_broadcast();
    let whole_header = packet.get(..header.header_len).is_some_and(ipv4::checksum_is_right);
    if !names_one_host(header.src) || to_many || header.fragment_offset != 0 || !whole_header {
        return false;
    }
    if header.protocol != V4_PROTOCOL {
        return true;
    }
    // Queries and their replies may be answered; what is an error, or unknown, may not. Types: RFC 792,
    // RFC 950, RFC 1256, RFC 8335.
    let kind = packet.get(..usize::from(header.total_len)).and_then(|p| take(p, header.header_len));
    matches!(kind, Some([0 | 8 | 9 | 10 | 13..=18 | 42 | 43]))
}

/// RFC 4443 section 2.4 (e).
fn may_answer_v6(header: &ipv6::Header, packet: &[u8], kind: V6Error) -> bool {
    if header.src.is_unspecified() || header.src.is_multicast() || header.src.is_loopback() {
        return false;
    }
    // (e.3): path MTU discovery must work for multicast.
    if header.dst.is_multicast() && !matches!(kind, V6Error::TooBig { .. }) {
        return false;
    }
    // A chain that cannot be followed could end in an error.
    let Ok(transport) = ipv6::transport(packet) else { return false };
    if transport.protocol != V6_PROTOCOL {
        return true;
    }
    // So could a later fragment, whose type is out of sight.
    if transport.fragment.is_some_and(|f| f.offset != 0) {
        return false;
    }
    let payload = packet.get(..ipv6::HEADER_LEN + usize::from(header.payload_len));
    // Errors are below 128 (RFC 4443 section 2.1); 137 is a redirect (e.2).
    matches!(payload.and_then(|p| take(p, transport.offset)), Some([kind]) if kind >= 128 && kind != 137)
}
