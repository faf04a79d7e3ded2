//! The IPv6 header and its extension headers (RFC 8200 sections 3 and 4).

use core::net::Ipv6Addr;

use crate::Malformed;
use crate::bytes::{put, take};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Maximum flow label: 20 bits.
pub const MAX_FLOW_LABEL: u32 = 0x000f_ffff;

/// Maximum number of extension headers in a packet, of the same order as the kernel's limits.
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
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes after this header, including extension headers.
    pub payload_len: u16,
    /// Type of the extension header that follows, or IANA protocol number of the payload.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
}

impl Header {
    /// Parses a header and checks its length, so that `40 + payload_len <= packet.len()`.
    ///
    /// A jumbogram (RFC 2675), whose length field is zero, is treated as an empty payload.
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
    /// Fails with [`Malformed::Truncated`] if the buffer is shorter, and with [`Malformed::Unsupported`] if
    /// the flow label exceeds 20 bits.
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

/// Sets the payload length in raw header bytes. Does nothing if the slice is too short.
#[inline]
pub fn set_payload_len(header: &mut [u8], payload_len: u16) {
    put(header, PAYLOAD_LEN, payload_len.to_be_bytes());
}

/// Sets the hop limit in raw header bytes. Does nothing if the slice is too short.
#[inline]
pub fn set_hop_limit(header: &mut [u8], hop_limit: u8) {
    put(header, HOP_LIMIT, [hop_limit]);
}

/// Sets the ECN field (RFC 3168 section 5) in raw header bytes to the lower two bits of `ecn`. Does nothing
/// if the slice is too short.
#[inline]
pub fn set_ecn(header: &mut [u8], ecn: u8) {
    // The traffic class spans two bytes; its lower two bits are bits 4 and 5 of the second byte.
    if let Some([second]) = take(header, 1) {
        put(header, 1, [second & !0x30 | (ecn & 0b11) << 4]);
    }
}

/// The transport header after the extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// IANA protocol number; 59 means that there is no transport header (RFC 8200 section 4.7).
    pub protocol: u8,
    /// Offset of the transport header from the start of the IPv6 header, never beyond the payload.
    pub offset: usize,
    /// The fragment header, if there is one, even with offset 0 and no more fragments (RFC 6946).
    pub fragment: Option<Fragment>,
}

/// The fragment header (RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Fragment offset in units of 8 bytes, 13 bits. Unless this is 0, the bytes at [`Transport::offset`] are
    /// not a transport header.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Identification, for reassembly.
    pub id: u32,
}

/// Finds the transport header by skipping hop-by-hop, routing, fragment and destination options headers.
///
/// The search ends after the fragment header of a later fragment, because payload follows. Fails with
/// [`Malformed::Truncated`] if a header extends past the payload, with [`Malformed::Unsupported`] for more
/// than eight extension headers or a second fragment header, and with the errors of [`Header::parse`].
#[inline]
pub fn transport(packet: &[u8]) -> Result<Transport, Malformed> {
    let header = Header::parse(packet)?;
    let end = HEADER_LEN + usize::from(header.payload_len);
    let packet = packet.get(..end).ok_or(Malformed::Truncated)?;
    let found = Transport { protocol: header.next_header, offset: HEADER_LEN, fragment: None };
    if is_extension(header.next_header) { walk(packet, found) } else { Ok(found) }
}

// Out of line, because few packets have extension headers.
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
            // The length field counts 8-byte units, excluding the first.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// Builds a packet with the given payload.
    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_LEN];
        let header = Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: payload.len() as u16,
            next_header,
            hop_limit: 64,
            src: Ipv6Addr::LOCALHOST,
            dst: Ipv6Addr::LOCALHOST,
        };
        header.emit(&mut packet).unwrap();
        packet.extend(payload);
        packet
    }

    #[test]
    fn each_invalid_header_has_its_own_error() {
        let good = packet(17, &[0; 8]);
        assert_eq!(Header::parse(&good[..39]), Err(Malformed::Truncated));
        assert_eq!(Header::parse(&good[..47]), Err(Malformed::Truncated));
        let mut bad = good.clone();
        bad[0] = 0x45;
        assert_eq!(Header::parse(&bad), Err(Malformed::BadVersion));
        let header = Header::parse(&good).unwrap();
        assert_eq!(header.emit(&mut [0; 39]), Err(Malformed::Truncated));
        let wide = Header { flow_label: MAX_FLOW_LABEL + 1, ..header };
        assert_eq!(wide.emit(&mut [0; 40]), Err(Malformed::Unsupported));
    }

    #[test]
    fn a_chain_of_extension_headers_is_skipped() {
        let mut chain = vec![];
        chain.extend([ROUTING, 1, 5, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend([FRAGMENT, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend([DESTINATION_OPTIONS, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef]);
        chain.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        chain.extend([9; 20]);
        let fragment = Some(Fragment { offset: 0, more: true, id: 0xdead_beef });
        let expected = Transport { protocol: 6, offset: HEADER_LEN + 40, fragment };
        assert_eq!(transport(&packet(HOP_BY_HOP, &chain)), Ok(expected));
    }

    #[test]
    fn the_search_ends_after_the_header_of_a_later_fragment() {
        // The payload could be parsed as another extension header.
        let payload = [DESTINATION_OPTIONS, 0, 0x05, 0xa8, 0, 0, 0, 7, 60, 255, 0, 0, 0, 0, 0, 0];
        let fragment = Some(Fragment { offset: 181, more: false, id: 7 });
        let expected = Transport { protocol: DESTINATION_OPTIONS, offset: HEADER_LEN + 8, fragment };
        assert_eq!(transport(&packet(FRAGMENT, &payload)), Ok(expected));
    }

    #[test]
    fn the_number_of_extension_headers_is_limited() {
        let options = |count: usize| {
            let mut chain = [DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0].repeat(count);
            chain[(count - 1) * 8] = 17;
            packet(DESTINATION_OPTIONS, &chain)
        };
        let longest = Transport { protocol: 17, offset: HEADER_LEN + MAX_EXTENSIONS * 8, fragment: None };
        assert_eq!(transport(&options(MAX_EXTENSIONS)), Ok(longest));
        assert_eq!(transport(&options(MAX_EXTENSIONS + 1)), Err(Malformed::Unsupported));
        let twice = [FRAGMENT, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(transport(&packet(FRAGMENT, &twice)), Err(Malformed::Unsupported));
    }

    #[test]
    fn a_header_that_extends_past_the_payload_is_rejected() {
        assert_eq!(transport(&packet(HOP_BY_HOP, &[17, 1, 0, 0, 0, 0, 0, 0])), Err(Malformed::Truncated));
        assert_eq!(transport(&packet(FRAGMENT, &[17, 0, 0, 0])), Err(Malformed::Truncated));
        // Bytes after the payload are not part of the packet.
        let mut trailing = packet(HOP_BY_HOP, &[17, 1, 0, 0, 0, 0, 0, 0]);
        trailing.extend([0; 64]);
        assert_eq!(transport(&trailing), Err(Malformed::Truncated));
    }

    proptest! {
        #[test]
        fn round_trip(
            (traffic_class, flow_label, payload_len) in (any::<u8>(), 0..=MAX_FLOW_LABEL, 0_u16..60),
            (next_header, hop_limit, src, dst) in any::<(u8, u8, u128, u128)>(),
            ecn: u8,
        ) {
            let (src, dst) = (Ipv6Addr::from_bits(src), Ipv6Addr::from_bits(dst));
            let header = Header { traffic_class, flow_label, payload_len, next_header, hop_limit, src, dst };
            let mut bytes = [0xee; 100];
            header.emit(&mut bytes).unwrap();
            prop_assert_eq!(Header::parse(&bytes), Ok(header));

            set_ecn(&mut bytes, ecn);
            set_hop_limit(&mut bytes, hop_limit ^ 1);
            set_payload_len(&mut bytes, payload_len ^ 1);
            let expected = Header {
                traffic_class: traffic_class & 0xfc | ecn & 3,
                hop_limit: hop_limit ^ 1,
                payload_len: payload_len ^ 1,
                ..header
            };
            prop_assert_eq!(Header::parse(&bytes), Ok(expected));
        }

        #[test]
        fn random_bytes_never_panic(
            mut bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), 0_u8..2, Just(43), Just(44), Just(60)],
                0..300,
            ),
            force: bool,
        ) {
            if let (true, Some(field)) = (force, bytes.first_chunk_mut::<6>()) {
                *field = [0x60, 0, 0, 0, 0, 200];
            }
            if let Ok(found) = transport(&bytes) {
                let header = Header::parse(&bytes).unwrap();
                prop_assert!(found.offset <= HEADER_LEN + usize::from(header.payload_len));
                prop_assert!(HEADER_LEN + usize::from(header.payload_len) <= bytes.len());
            }
            set_ecn(&mut bytes, 3);
            set_hop_limit(&mut bytes, 3);
            set_payload_len(&mut bytes, 3);
        }
    }
}
