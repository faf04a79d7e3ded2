//! The IPv4 header (RFC 791 section 3.1).
//!
//! [`Header`] represents a whole header. Free functions patch single fields in raw header bytes that the
//! caller has already parsed; they do nothing if the slice is too short.

use core::net::Ipv4Addr;

use crate::Malformed;
use crate::bytes::{put, take};
use crate::checksum::{Sum, update16};

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Maximum of the fragment offset field, in units of 8 bytes.
pub const MAX_FRAGMENT_OFFSET: u16 = 0x1fff;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

const TOS: usize = 1;
const TOTAL_LEN: usize = 2;
const ID: usize = 4;
const TTL: usize = 8;
const CHECKSUM: usize = 10;

/// The fixed part of an IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the header with its options, 20..=60.
    pub header_len: usize,
    /// DSCP in the upper six bits, ECN in the lower two (RFC 2474, RFC 3168).
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Identification, for reassembly.
    pub id: u16,
    /// The DF flag.
    pub dont_fragment: bool,
    /// The MF flag.
    pub more_fragments: bool,
    /// Fragment offset in units of 8 bytes, 13 bits.
    pub fragment_offset: u16,
    /// Time to live, in hops.
    pub ttl: u8,
    /// IANA protocol number of the payload.
    pub protocol: u8,
    /// The checksum as parsed. [`emit`](Header::emit) ignores this field and writes the correct checksum.
    pub checksum: u16,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
}

impl Header {
    /// Parses a header and checks its lengths, so that `header_len <= total_len <= packet.len()`.
    ///
    /// Does not verify the header checksum; see [`checksum_is_valid`].
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Header, Malformed> {
        let &[vihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] =
            packet.first_chunk::<MIN_HEADER_LEN>().ok_or(Malformed::Truncated)?;
        if vihl >> 4 != 4 {
            return Err(Malformed::BadVersion);
        }
        let header_len = usize::from(vihl & 0x0f) * 4;
        if header_len < MIN_HEADER_LEN {
            return Err(Malformed::BadHeaderLength);
        }
        let total_len = u16::from_be_bytes([l0, l1]);
        if usize::from(total_len) < header_len {
            return Err(Malformed::BadTotalLength);
        }
        if usize::from(total_len) > packet.len() {
            return Err(Malformed::Truncated);
        }
        let fragment = u16::from_be_bytes([f0, f1]);
        Ok(Header {
            header_len,
            tos,
            total_len,
            id: u16::from_be_bytes([i0, i1]),
            dont_fragment: fragment & DONT_FRAGMENT != 0,
            more_fragments: fragment & MORE_FRAGMENTS != 0,
            fragment_offset: fragment & MAX_FRAGMENT_OFFSET,
            ttl,
            protocol,
            checksum: u16::from_be_bytes([c0, c1]),
            src: Ipv4Addr::new(s0, s1, s2, s3),
            dst: Ipv4Addr::new(d0, d1, d2, d3),
        })
    }

    /// Writes a 20-byte header with its checksum.
    ///
    /// Fails with [`Malformed::Truncated`] if the buffer is shorter, with [`Malformed::BadHeaderLength`] if
    /// `header_len` includes options, and with [`Malformed::Unsupported`] if the fragment offset exceeds 13
    /// bits.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        if self.header_len != MIN_HEADER_LEN {
            return Err(Malformed::BadHeaderLength);
        }
        if self.fragment_offset > MAX_FRAGMENT_OFFSET {
            return Err(Malformed::Unsupported);
        }
        let out = out.first_chunk_mut::<MIN_HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let mut fragment = self.fragment_offset;
        if self.dont_fragment {
            fragment |= DONT_FRAGMENT;
        }
        if self.more_fragments {
            fragment |= MORE_FRAGMENTS;
        }
        let [l0, l1] = self.total_len.to_be_bytes();
        let [i0, i1] = self.id.to_be_bytes();
        let [f0, f1] = fragment.to_be_bytes();
        let [s0, s1, s2, s3] = self.src.octets();
        let [d0, d1, d2, d3] = self.dst.octets();
        *out = [
            0x45,
            self.tos,
            l0,
            l1,
            i0,
            i1,
            f0,
            f1,
            self.ttl,
            self.protocol,
            0,
            0,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ];
        fill_checksum(out);
        Ok(())
    }

    /// Whether the packet is a fragment, including a first fragment.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }
}

/// Whether the checksum of a header is valid. `header` is exactly the header with its options.
#[inline]
pub fn checksum_is_valid(header: &[u8]) -> bool {
    Sum::of(header).finish() == 0
}

/// Sets the total length without updating the checksum.
#[inline]
pub fn set_total_len(header: &mut [u8], total_len: u16) {
    put(header, TOTAL_LEN, total_len.to_be_bytes());
}

/// Sets the identification without updating the checksum.
#[inline]
pub fn set_id(header: &mut [u8], id: u16) {
    put(header, ID, id.to_be_bytes());
}

/// Sets the time to live without updating the checksum.
#[inline]
pub fn set_ttl(header: &mut [u8], ttl: u8) {
    put(header, TTL, [ttl]);
}

/// Sets DSCP and ECN without updating the checksum.
#[inline]
pub fn set_tos(header: &mut [u8], tos: u8) {
    put(header, TOS, [tos]);
}

/// Computes and writes the checksum of a header. `header` is exactly the header with its options.
#[inline]
pub fn fill_checksum(header: &mut [u8]) {
    // Sum word by word around the field: a wider load would stall on the narrow stores to the length and the
    // identification that usually come just before.
    let (words, _) = header.as_chunks::<2>();
    let others = words.iter().enumerate().filter(|(n, _)| *n != CHECKSUM / 2);
    let checksum =
        others.fold(Sum::default(), |sum, (_, word)| sum.add_u16(u16::from_be_bytes(*word))).finish();
    put(header, CHECKSUM, checksum.to_be_bytes());
}

/// Decrements the time to live, updates the checksum, and returns the new value.
///
/// Returns `None` if the packet must not be forwarded (RFC 1812 section 5.3.1: TTL 0 or 1). The header is
/// then unchanged, so that an ICMP error can quote it as received.
#[inline]
pub fn decrement_ttl(header: &mut [u8]) -> Option<u8> {
    let [ttl, protocol] = take(header, TTL)?;
    let check = u16::from_be_bytes(take(header, CHECKSUM)?);
    if ttl <= 1 {
        return None;
    }
    let new = [ttl - 1, protocol];
    let check = update16(check, u16::from_be_bytes([ttl, protocol]), u16::from_be_bytes(new));
    put(header, TTL, new);
    put(header, CHECKSUM, check.to_be_bytes());
    Some(ttl - 1)
}

/// Sets the ECN field (RFC 3168 section 5) to the lower two bits of `ecn` and updates the checksum.
#[inline]
pub fn set_ecn(header: &mut [u8], ecn: u8) {
    let (Some([vihl, tos]), Some(check)) = (take(header, 0), take(header, CHECKSUM)) else { return };
    let new = [vihl, tos & !0b11 | ecn & 0b11];
    let check = update16(u16::from_be_bytes(check), u16::from_be_bytes([vihl, tos]), u16::from_be_bytes(new));
    put(header, 0, new);
    put(header, CHECKSUM, check.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    fn headers() -> impl Strategy<Value = Header> {
        let lengths = (any::<u8>(), 20_u16..=200, any::<u16>(), any::<(bool, bool)>());
        let rest = (0..=MAX_FRAGMENT_OFFSET, any::<u8>(), any::<u8>(), any::<(u32, u32)>());
        (lengths, rest).prop_map(
            |((tos, total_len, id, flags), (fragment_offset, ttl, protocol, addresses))| Header {
                header_len: MIN_HEADER_LEN,
                tos,
                total_len,
                id,
                dont_fragment: flags.0,
                more_fragments: flags.1,
                fragment_offset,
                ttl,
                protocol,
                checksum: 0,
                src: Ipv4Addr::from_bits(addresses.0),
                dst: Ipv4Addr::from_bits(addresses.1),
            },
        )
    }

    /// Builds a packet that is long enough for any length that [`headers`] generates.
    fn packet(header: &Header) -> [u8; 200] {
        let mut packet = [0xee; 200];
        header.emit(&mut packet).unwrap();
        packet
    }

    fn sample() -> [u8; 200] {
        packet(&Header {
            header_len: MIN_HEADER_LEN,
            tos: 0,
            total_len: 100,
            id: 1,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            protocol: 17,
            checksum: 0,
            src: Ipv4Addr::new(192, 0, 2, 1),
            dst: Ipv4Addr::new(192, 0, 2, 2),
        })
    }

    #[test]
    fn each_invalid_header_has_its_own_error() {
        let with = |at: usize, value: u8| {
            let mut bytes = sample();
            bytes[at] = value;
            Header::parse(&bytes)
        };
        assert_eq!(with(0, 0x65), Err(Malformed::BadVersion));
        assert_eq!(with(0, 0x44), Err(Malformed::BadHeaderLength));
        assert_eq!(with(3, 19), Err(Malformed::BadTotalLength));
        assert_eq!(with(0, 0x4f).map(|h| h.header_len), Ok(60));
        assert_eq!(with(3, 200).map(|h| h.total_len), Ok(200));
        assert_eq!(with(3, 201), Err(Malformed::Truncated));
        assert_eq!(Header::parse(&sample()[..19]), Err(Malformed::Truncated));
    }

    #[test]
    fn emit_rejects_values_that_do_not_fit() {
        let header = Header::parse(&sample()).unwrap();
        assert_eq!(header.emit(&mut [0; 19]), Err(Malformed::Truncated));
        assert_eq!(Header { header_len: 24, ..header }.emit(&mut [0; 60]), Err(Malformed::BadHeaderLength));
        let far = Header { fragment_offset: MAX_FRAGMENT_OFFSET + 1, ..header };
        assert_eq!(far.emit(&mut [0; 60]), Err(Malformed::Unsupported));
    }

    #[test]
    fn a_ttl_of_0_or_1_is_not_decremented() {
        for ttl in [0, 1] {
            let mut bytes = sample();
            set_ttl(&mut bytes, ttl);
            fill_checksum(&mut bytes[..MIN_HEADER_LEN]);
            let before = bytes;
            assert_eq!(decrement_ttl(&mut bytes), None);
            assert_eq!(bytes, before);
        }
    }

    #[test]
    fn short_slices_are_unchanged() {
        let mut short = [0xee; 1];
        set_total_len(&mut short, 1);
        set_id(&mut short, 1);
        set_ttl(&mut short, 1);
        set_tos(&mut short, 1);
        set_ecn(&mut short, 1);
        fill_checksum(&mut short);
        assert_eq!(decrement_ttl(&mut short), None);
        assert_eq!(short, [0xee; 1]);
    }

    proptest! {
        #[test]
        fn round_trip(header in headers()) {
            let bytes = packet(&header);
            prop_assert!(checksum_is_valid(&bytes[..MIN_HEADER_LEN]));
            let parsed = Header::parse(&bytes).unwrap();
            prop_assert_eq!(Header { checksum: 0, ..parsed }, header);
            prop_assert_eq!(parsed.is_fragment(), header.more_fragments || header.fragment_offset > 0);
        }

        #[test]
        fn patches_keep_the_checksum_valid(header in headers(), ecn: u8, hops in 0_usize..5) {
            let mut bytes = packet(&header);
            set_ecn(&mut bytes, ecn);
            let taken = (0..hops).filter(|_| decrement_ttl(&mut bytes).is_some()).count();
            prop_assert_eq!(taken, hops.min(usize::from(header.ttl.max(1)) - 1));
            let mut refilled = bytes;
            fill_checksum(&mut refilled[..MIN_HEADER_LEN]);
            prop_assert_eq!(refilled, bytes);
            let parsed = Header::parse(&bytes).unwrap();
            prop_assert_eq!(parsed.tos, header.tos & 0xfc | ecn & 3);
            prop_assert_eq!(usize::from(parsed.ttl), usize::from(header.ttl) - taken);
        }

        #[test]
        fn raw_setters_set_their_field(
            header in headers(),
            total_len in 20_u16..=200,
            id: u16,
            ttl: u8,
            tos: u8,
        ) {
            let mut bytes = packet(&header);
            set_total_len(&mut bytes, total_len);
            set_id(&mut bytes, id);
            set_ttl(&mut bytes, ttl);
            set_tos(&mut bytes, tos);
            let parsed = Header::parse(&bytes).unwrap();
            prop_assert_eq!(parsed, Header { total_len, id, ttl, tos, checksum: parsed.checksum, ..header });
        }

        #[test]
        fn checksum_with_options(
            header in headers(),
            options in prop::collection::vec(any::<u32>(), 0..=10),
        ) {
            let mut bytes = packet(&header)[..MIN_HEADER_LEN].to_vec();
            bytes.extend(options.iter().flat_map(|word| word.to_be_bytes()));
            bytes[0] = 0x45 + options.len() as u8;
            fill_checksum(&mut bytes);
            prop_assert!(checksum_is_valid(&bytes));
        }

        #[test]
        fn random_bytes_never_panic(mut bytes: Vec<u8>, vihl in 0x40_u8..0x50, force: bool, value: u16) {
            if let (true, Some(first)) = (force, bytes.first_mut()) {
                *first = vihl;
            }
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.header_len <= usize::from(header.total_len));
                prop_assert!(usize::from(header.total_len) <= bytes.len());
            }
            checksum_is_valid(&bytes);
            set_total_len(&mut bytes, value);
            set_id(&mut bytes, value);
            set_ecn(&mut bytes, value as u8);
            decrement_ttl(&mut bytes);
            fill_checksum(&mut bytes);
        }
    }
}
