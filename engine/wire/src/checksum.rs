//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Values that cross this interface are host-order readings of the big-endian field: `finish().to_be_bytes()`
//! is what goes on the wire.

use core::net::{Ipv4Addr, Ipv6Addr};

/// Bytes that one round of [`add_blocks`] takes.
const BLOCK: usize = 64;

/// An unfolded ones-complement sum of 16-bit words.
///
/// Kept in memory byte order and swapped once, when folded (RFC 1071 section 2B), so that adding bytes never
/// swaps. Any part of a packet that starts at an even offset can be summed apart and [joined](Sum::join).
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `data`, taken to start at an even offset; an odd last byte is padded with zero.
    #[inline]
    pub fn of(data: &[u8]) -> Sum {
        Sum(add_bytes(0, data))
    }

    /// Adds bytes that start at an even offset; an odd last byte is padded with zero.
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

    /// The sum of both parts.
    #[inline]
    #[must_use]
    pub fn join(self, other: Sum) -> Sum {
        Sum(end_around(self.0, other.0))
    }

    /// The 16-bit ones-complement sum, not complemented: what a kernel leaves in the field for hardware to
    /// finish.
    #[inline]
    pub fn fold(self) -> u16 {
        let wide = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        // Three more folds: 33 bits to 18, to 17, to 16.
        let wide = (wide >> 16) + (wide & 0xffff);
        let wide = (wide >> 16) + (wide & 0xffff);
        let wide = (wide >> 16) + (wide & 0xffff);
        u16::from_be(wide as u16)
    }

    /// The checksum field's value: the complement of [`fold`](Sum::fold). Zero over data that carries its own
    /// right checksum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

/// The pseudo-header of TCP and UDP over IPv4 (RFC 793 section 3.1, RFC 768). `len` counts the transport header
/// and its payload, in bytes.
#[inline]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u32) -> Sum {
    Sum::default().add_u32(src.to_bits()).add_u32(dst.to_bits()).add_u32(u32::from(protocol)).add_u32(len)
}

/// The pseudo-header of upper-layer protocols over IPv6 (RFC 8200 section 8.1). `len` counts the upper-layer
/// header and its payload, in bytes.
#[inline]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Sum {
    Sum::of(&src.octets()).add(&dst.octets()).add_u32(len).add_u32(u32::from(protocol))
}

/// The checksum after one 16-bit word changed from `old` to `new` (RFC 1624 equation 3).
///
/// Equal to recomputing as long as some covered word is not zero, which the version field of an IP header and
/// the addresses of a pseudo-header guarantee.
#[inline]
pub fn update16(check: u16, old: u16, new: u16) -> u16 {
    Sum::default().add_u16(!check).add_u16(!old).add_u16(new).finish()
}

/// The checksum after two neighbouring words changed from `old` to `new`; see [`update16`].
#[inline]
pub fn update32(check: u16, old: u32, new: u32) -> u16 {
    Sum::default().add_u16(!check).add_u32(!old).add_u32(new).finish()
}

/// Ones-complement addition of 64-bit numbers: the carry comes back in at the bottom.
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
    // At most seven bytes: 4, 2, 1. Their sum fits in 64 bits with ease.
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

/// Four accumulators break the carry chain into independent ones; 128 bits keep the carries without a branch,
/// since no slice holds 2^64 words. Add with carry beats what baseline x86-64 vectors can do.
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
