//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Arguments and results are in host order; `finish().to_be_bytes()` gives the bytes of the field.

use core::net::{Ipv4Addr, Ipv6Addr};

/// Bytes that [`add_blocks`] sums per iteration.
const BLOCK: usize = 64;

/// An unfolded ones' complement sum of 16-bit words.
///
/// The sum is kept in memory byte order and swapped once, when it is folded (RFC 1071 section 2B), so adding
/// bytes needs no swap. Parts of a packet that start at an even offset can be summed separately and
/// [joined](Sum::join).
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Sums `data`, which starts at an even offset. An odd last byte is padded with zero.
    #[inline]
    pub fn of(data: &[u8]) -> Sum {
        Sum(add_bytes(0, data))
    }

    /// Adds bytes that start at an even offset. An odd last byte is padded with zero.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub fn add(self, data: &[u8]) -> Sum {
        Sum(add_bytes(self.0, data))
    }

    /// Adds one big-endian word, given in host order.
    #[inline]
    #[must_use]
    pub fn add_u16(self, word: u16) -> Sum {
        Sum(end_around(self.0, u64::from(word.to_be())))
    }

    /// Adds two big-endian words, given as one host-order number.
    #[inline]
    #[must_use]
    pub fn add_u32(self, words: u32) -> Sum {
        Sum(end_around(self.0, u64::from(words.to_be())))
    }

    /// Adds another sum.
    #[inline]
    #[must_use]
    pub fn join(self, other: Sum) -> Sum {
        Sum(end_around(self.0, other.0))
    }

    /// Folds the sum to 16 bits without complementing it. Of a pseudo-header, this is the value that the
    /// kernel leaves in the checksum field for hardware to complete.
    #[inline]
    pub fn fold(self) -> u16 {
        let wide = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        // Three more folds reduce 33 bits to 18, then 17, then 16.
        let wide = (wide >> 16) + (wide & 0xffff);
        let wide = (wide >> 16) + (wide & 0xffff);
        let wide = (wide >> 16) + (wide & 0xffff);
        u16::from_be(wide as u16)
    }

    /// Returns the value of the checksum field: the complement of [`fold`](Sum::fold). The result is zero for
    /// data that includes its own correct checksum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

/// Sums the pseudo-header of TCP and UDP over IPv4 (RFC 793 section 3.1, RFC 768). `len` is the size of the
/// transport header and its payload in bytes.
#[inline]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u32) -> Sum {
    Sum::default().add_u32(src.to_bits()).add_u32(dst.to_bits()).add_u32(u32::from(protocol)).add_u32(len)
}

/// Sums the pseudo-header of upper-layer protocols over IPv6 (RFC 8200 section 8.1). `len` is the size of the
/// upper-layer header and its payload in bytes.
#[inline]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Sum {
    Sum::of(&src.octets()).add(&dst.octets()).add_u32(len).add_u32(u32::from(protocol))
}

/// Returns the checksum after one 16-bit word has changed from `old` to `new` (RFC 1624 equation 3).
///
/// The result equals a recomputed checksum if some covered word is not zero, which the version field of an IP
/// header and the addresses of a pseudo-header guarantee.
#[inline]
pub fn update16(check: u16, old: u16, new: u16) -> u16 {
    Sum::default().add_u16(!check).add_u16(!old).add_u16(new).finish()
}

/// Returns the checksum after two adjacent words have changed from `old` to `new`; see [`update16`].
#[inline]
pub fn update32(check: u16, old: u32, new: u32) -> u16 {
    Sum::default().add_u16(!check).add_u32(!old).add_u32(new).finish()
}

/// Adds 64-bit numbers in ones' complement: the carry is added to the lowest bit.
#[inline(always)]
fn end_around(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[inline]
fn add_bytes(sum: u64, data: &[u8]) -> u64 {
    let (blocks, rest) = data.as_chunks::<BLOCK>();
    let mut sum = sum;
    if !blocks.is_empty() {
        sum = end_around(sum, add_blocks(blocks));
    }
    let (words, mut rest) = rest.as_chunks::<8>();
    for word in words {
        sum = end_around(sum, u64::from_ne_bytes(*word));
    }
    // At most seven bytes remain, as 4, 2 and 1. Their sum fits in 64 bits.
    let mut last = 0;
    if let Some((word, after)) = rest.split_first_chunk() {
        last += u64::from(u32::from_ne_bytes(*word));
        rest = after;
    }
    if let Some((word, after)) = rest.split_first_chunk() {
        last += u64::from(u16::from_ne_bytes(*word));
        rest = after;
    }
    if let [byte] = rest {
        last += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    end_around(sum, last)
}

/// Sums whole blocks. Four accumulators make the carry chains independent. Their 128 bits hold the carries
/// without a branch, since no slice has 2^64 words. Add-with-carry is faster than baseline x86-64 vector
/// instructions.
fn add_blocks(blocks: &[[u8; BLOCK]]) -> u64 {
    let mut lanes = [0_u128; 4];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (n, word) in words.iter().enumerate() {
            lanes[n % 4] += u128::from(u64::from_ne_bytes(*word));
        }
    }
    lanes.iter().fold(0, |sum, lane| end_around(end_around(sum, *lane as u64), (*lane >> 64) as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// Sums word by word, as in RFC 1071 section 4.1.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Generates bytes with many runs of 0x00 and 0xff, the two zeros of ones' complement.
    fn bytes(len: core::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], len)
    }

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    #[test]
    fn rfc_1624_examples() {
        // Section 4: equation 2 would give 0xffff, which is wrong.
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
        assert_eq!(update16(0x0000, 0x3285, 0x5555), 0xdd2f);
    }

    #[test]
    fn empty_and_all_ones_input() {
        assert_eq!(Sum::of(&[]).fold(), 0);
        assert_eq!(Sum::of(&[0; 200]).finish(), 0xffff);
        assert_eq!(Sum::of(&[0xff; 65_536]).fold(), 0xffff);
        assert_eq!(Sum::of(&[0xff; 65_537]).fold(), naive(&[0xff; 65_537]));
    }

    #[test]
    fn pseudo_headers_equal_the_sum_of_their_bytes() {
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(203, 0, 113, 9));
        let flat = [192, 0, 2, 1, 203, 0, 113, 9, 0, 17, 0xab, 0xcd];
        assert_eq!(pseudo_v4(a, b, 17, 0xabcd).fold(), naive(&flat));

        let (a, b) =
            (Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6), Ipv6Addr::new(0xfd00, 0, 0, 0, 9, 8, 7, 6));
        let mut flat = [a.octets(), b.octets()].concat();
        flat.extend([0, 1, 0xab, 0xcd, 0, 0, 0, 58]);
        assert_eq!(pseudo_v6(a, b, 58, 0x0001_abcd).fold(), naive(&flat));
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_sum(data in bytes(0..2000), from in 0_usize..9) {
            // Various start addresses, so that no alignment is special.
            let data = data.get(from..).unwrap_or(&[]);
            prop_assert_eq!(Sum::of(data).fold(), naive(data));
            prop_assert_eq!(Sum::of(data).finish(), !naive(data));
        }

        #[test]
        fn the_sum_of_the_parts_is_the_sum_of_the_whole(
            data in bytes(0..400),
            cuts in prop::collection::vec(0_usize..200, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * 2).min(data.len() & !1)).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &data[pair[0]..pair[1]]).collect();
            let added = parts.iter().fold(Sum::default(), |sum, part| sum.add(part));
            prop_assert_eq!(added.fold(), naive(&data));
            let joined = parts.iter().rev().fold(Sum::default(), |sum, part| Sum::of(part).join(sum));
            prop_assert_eq!(joined.fold(), naive(&data));
        }

        #[test]
        fn words_equal_their_bytes(data in bytes(0..80), a: u16, b: u32) {
            let data = &data[..data.len() & !1];
            let whole = [data, &a.to_be_bytes(), &b.to_be_bytes()].concat();
            prop_assert_eq!(Sum::of(data).add_u16(a).add_u32(b).fold(), naive(&whole));
        }

        #[test]
        fn updates_equal_recomputed_checksums(
            mut data in bytes(8..64),
            at in 0_usize..64,
            new16 in prop_oneof![any::<u16>(), Just(0), Just(0xffff)],
            new32 in prop_oneof![any::<u32>(), Just(0), Just(0xffff), Just(0xffff_0000), Just(u32::MAX)],
        ) {
            // A covered word that is not zero and does not change.
            data.extend([0, 1]);
            if data.len() % 2 != 0 {
                data.insert(0, 7);
            }
            let at = at % (data.len() / 2 - 2) * 2;
            let check = Sum::of(&data).finish();

            let mut other = data.clone();
            other[at..at + 2].copy_from_slice(&new16.to_be_bytes());
            let old = u16::from_be_bytes([data[at], data[at + 1]]);
            prop_assert_eq!(update16(check, old, new16), Sum::of(&other).finish());

            let mut other = data.clone();
            other[at..at + 4].copy_from_slice(&new32.to_be_bytes());
            let old = u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            prop_assert_eq!(update32(check, old, new32), Sum::of(&other).finish());
        }
    }
}
