//! The IPv6 header and the walk over its extension headers (RFC 8200 sections 3 and 4).

use core::net::Ipv6Addr;

use crate::Malformed;
use crate::bytes::{put, take};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Largest flow label: 20 bits.
pub const MAX_FLOW_LABEL: u32 = 0x000f_ffff;

/// Extension headers a packet may stack before it is refused; the kernel's own limits are of this size.
const MAX_EXTENSIONS: usize = 8;

const PAYLOAD_LEN: usize = 4;
const HOP_LIMIT: usize = 7;

// RFC 8200 sections 4.3 to 4.6.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The fixed IPv6 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// DSCP in the upper six bits, ECN in the lower two.
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    /// Bytes after this header, extension headers included.
    pub payload_len: u16,
    /// What follows: an extension header or an IANA protocol number.
    pub next_header: u8,
    /// In hops.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
}

impl Header {
    /// Reads a header and checks its length: afterwards `40 + payload_len <= packet.len()`.
    ///
    /// A jumbogram (RFC 2675) reads as what it says, an empty payload.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Header, Malformed> {
        let (fixed, payload) = packet.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let (&[v0, v1, v2, v3, l0, l1, next_header, hop_limit], addresses) =
            fixed.split_first_chunk::<8>().ok_or(Malformed::Truncated)?;
        let (src, dst) = addresses.split_first_chunk::<16>().ok_or(Malformed::Truncated)?;
        let dst = dst.first_chunk::<16>().ok_or(Malformed::Truncated)?;
        let word = u32::from_be_bytes([v0, v1, v2, v3]);
        if word >> 28 != 6 {
            return Err(Malformed::BadVersion);
        }
        let payload_len = u16::from_be_bytes([l0, l1]);
        if usize::from(payload_len) > payload.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Header {
            traffic_class: (word >> 20) as u8,
            flow_label: word & MAX_FLOW_LABEL,
            payload_len,
            next_header,
            hop_limit,
            src: Ipv6Addr::from(*src),
            dst: Ipv6Addr::from(*dst),
        })
    }

    /// Writes the 40-byte header.
    ///
    /// [`Malformed::Truncated`] when the buffer is shorter, [`Malformed::Unsupported`] when the flow label
    /// exceeds 20 bits.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        if self.flow_label > MAX_FLOW_LABEL {
            return Err(Malformed::Unsupported);
        }
        let out = out.first_chunk_mut::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        put(out, 0, word.to_be_bytes());
        let [l0, l1] = self.payload_len.to_be_bytes();
        put(out, PAYLOAD_LEN, [l0, l1, self.next_header, self.hop_limit]);
        put(out, 8, self.src.octets());
        put(out, 24, self.dst.octets());
        Ok(())
    }
}

/// Sets the payload length of raw header bytes. A slice too short is left as it was.
#[inline]
pub fn set_payload_len(header: &mut [u8], payload_len: u16) {
    put(header, PAYLOAD_LEN, payload_len.to_be_bytes());
}

/// Sets the hop limit of raw header bytes. A slice too short is left as it was.
#[inline]
pub fn set_hop_limit(header: &mut [u8], hop_limit: u8) {
    put(header, HOP_LIMIT, [hop_limit]);
}

/// Sets the ECN field (RFC 3168 section 5) of raw header bytes to the lower two bits of `ecn`. A slice too short
/// is left as it was.
#[inline]
pub fn set_ecn(header: &mut [u8], ecn: u8) {
    // The traffic class straddles two bytes; its lower two bits are bits 4 and 5 of the second.
    if let Some([second]) = take(header, 1) {
        put(header, 1, [second & !0x30 | (ecn & 0b11) << 4]);
    }
}

/// What lies behind the extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// An IANA protocol number; 59 means that nothing follows (RFC 8200 section 4.7).
    pub protocol: u8,
    /// Where it starts, in bytes from the start of the IPv6 header; never beyond the payload.
    pub offset: usize,
    /// Present when a fragment header was passed, even one with offset 0 and no more to come (RFC 6946).
    pub fragment: Option<Fragment>,
}

/// The fragment header (RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// In units of 8 bytes, 13 bits. Other than 0, the bytes at [`Transport::offset`] are no transport header.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Identification, for reassembly.
    pub id: u32,
}

/// Finds the transport header: walks hop-by-hop, routing, fragment and destination option headers.
///
/// The walk ends behind the fragment header of a fragment that is not the first, since what follows is payload.
/// [`Malformed::Truncated`] when a header runs past the payload, [`Malformed::Unsupported`] for more than eight
/// of them or a second fragment header, and what [`Header::parse`] answers.
#[inline]
pub fn transport(packet: &[u8]) -> Result<Transport, Malformed> {
    let header = Header::parse(packet)?;
    let end = HEADER_LEN + usize::from(header.payload_len);
    let packet = packet.get(..end).ok_or(Malformed::Truncated)?;
    let found = Transport { protocol: header.next_header, offset: HEADER_LEN, fragment: None };
    if is_extension(header.next_header) { walk(packet, found) } else { Ok(found) }
}

// Out of line: the common packet has no extension header.
#[cold]
fn walk(packet: &[u8], mut found: Transport) -> Result<Transport, Malformed> {
    for _ in 0..MAX_EXTENSIONS {
        let [next, len, o0, o1, i0, i1, i2, i3] =
            take::<8>(packet, found.offset).ok_or(Malformed::Truncated)?;
        if found.protocol == FRAGMENT {
            if found.fragment.is_some() {
                return Err(Malformed::Unsupported);
            }
            let word = u16::from_be_bytes([o0, o1]);
            let fragment =
                Fragment { offset: word >> 3, more: word & 1 != 0, id: u32::from_be_bytes([i0, i1, i2, i3]) };
            found = Transport { protocol: next, offset: found.offset + 8, fragment: Some(fragment) };
            if fragment.offset != 0 {
                return Ok(found);
            }
        } else {
            // The length field counts 8-byte units without the first.
            let offset = found.offset + 8 + usize::from(len) * 8;
            if offset > packet.len() {
                return Err(Malformed::Truncated);
            }
            found = Transport { protocol: next, offset, ..found };
        }
        if !is_extension(found.protocol) {
            return Ok(found);
        }
    }
    Err(Malformed::Unsupported)
}

#[inline(always)]
fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}
