//! The flow hash, which gives each flow one outer source port and spreads flows over the ports of the fan,
//! and a keyed one, which spreads flows over queues.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::inner::Inner;

/// Hashes an IPv4 flow. Does not resist crafted collisions: flows that collide share a source port, and are
/// joined less. Where more depends on it, [`Spread`] chooses.
#[inline]
pub fn hash_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ports: u32) -> u32 {
    mix(
        u64::from(u32::from(src)) << 32 | u64::from(u32::from(dst)),
        u64::from(protocol) << 32 | u64::from(ports),
    )
}

/// Hashes an IPv6 flow; see [`hash_v4`].
#[inline]
pub fn hash_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, ports: u32) -> u32 {
    let (src, dst) = (u128::from(src), u128::from(dst));
    let folded =
        (src >> 64) as u64 ^ (src as u64).rotate_left(29) ^ (dst >> 64) as u64 ^ (dst as u64).rotate_left(43);
    mix(folded, u64::from(protocol) << 32 | u64::from(ports))
}

// Odd constants: the golden ratio and splitmix64's finaliser.
#[inline]
fn mix(a: u64, b: u64) -> u32 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32
}

/// Spreads flows over a few places by a secret of its own, so that no sender can aim its flows at one place,
/// or at that of another flow.
#[derive(Debug)]
pub struct Spread {
    secret: [u64; 2],
}

impl Spread {
    /// Creates a spread with a random secret.
    pub fn random() -> Spread {
        let state = RandomState::new();
        Spread { secret: [state.hash_one(0), state.hash_one(1)] }
    }

    /// Selects one of `places` evenly for a packet's flow.
    #[inline]
    pub fn place(&self, inner: &Inner, places: usize) -> usize {
        let [first, second] = self.secret;
        let halves = |address: u128| ((address >> 64) as u64, address as u64);
        let ((src_high, src_low), (dst_high, dst_low)) = (halves(inner.src), halves(inner.dst));
        let src = fold(src_high ^ first, src_low ^ second);
        let both = fold(dst_high ^ src, dst_low ^ second);
        let flow = fold(both, (u64::from(inner.protocol) << 32 | u64::from(inner.ports)) ^ first);
        ((u128::from(flow) * places as u128) >> 64) as usize
    }
}

/// Multiplies and folds the two halves of the product. Each bit of both factors reaches all others.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Selects one of `lanes` evenly by hash.
#[inline]
pub fn lane(hash: u32, lanes: u16) -> u16 {
    ((u64::from(hash) * u64::from(lanes)) >> 32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_spread_over_lanes() {
        let mut seen = [0u32; 16];
        for port in 40_000u32..40_256 {
            let hash = hash_v4(Ipv4Addr::new(10, 1, 0, 5), Ipv4Addr::new(10, 2, 0, 7), 6, port << 16 | 5201);
            seen[usize::from(lane(hash, 16))] += 1;
        }
        assert!(seen.iter().all(|n| (4..=40).contains(n)), "{seen:?}");
    }

    fn inner(src: u128, dst: u128, ports: u32) -> Inner {
        Inner {
            v6: src > u128::from(u32::MAX),
            len: 100,
            transport: 20,
            protocol: 17,
            fragment: false,
            tos: 0,
            ttl: 64,
            id: 0,
            dont_fragment: true,
            src,
            dst,
            ports,
        }
    }

    /// In both families, when only one field differs.
    #[test]
    fn flows_spread_over_places_by_each_field() {
        const V6: u128 = 0xfd00_0244_0000_0001_0000_0000_0000_0000;
        const PLACES: usize = 16;
        let spread = Spread::random();
        let port = |number: u128| (number as u32) << 16 | 5201;
        for (what, flow) in [
            ("IPv4 source", (|n| inner(0x0a01_0000 + n, 0x0a02_0007, 9)) as fn(u128) -> Inner),
            ("IPv4 destination", |n| inner(0x0a01_0005, 0x0a02_0000 + n, 9)),
            ("IPv6 source", |n| inner(V6 + n, V6 + (9 << 64), 9)),
            ("IPv6 subnet", |n| inner(V6 + (n << 64) + 2, V6 + (999 << 64), 9)),
            ("IPv6 destination", |n| inner(V6, V6 + (9 << 64) + n, 9)),
        ] {
            let mut seen = [0u32; PLACES];
            (0..1024).for_each(|number| seen[spread.place(&flow(number), PLACES)] += 1);
            assert!(seen.iter().all(|count| (20..=120).contains(count)), "{what}: {seen:?}");
        }
        let mut seen = [0u32; PLACES];
        (0..1024).for_each(|n| seen[spread.place(&inner(0x0a01_0005, 0x0a02_0007, port(n)), PLACES)] += 1);
        assert!(seen.iter().all(|count| (20..=120).contains(count)), "ports: {seen:?}");
    }

    #[test]
    fn flows_with_one_hash_are_spread_and_by_each_secret_otherwise() {
        // Whoever knows the plain hash finds flows of one value.
        let start = inner(0x0a01_0005, 0x0a02_0007, 0);
        let same: Vec<Inner> = (0..200_000u32)
            .map(|ports| Inner { ports, ..start })
            .filter(|flow| flow.flow_hash() % 16 == 3)
            .take(200)
            .collect();
        let places = |spread: &Spread| same.iter().map(|flow| spread.place(flow, 16)).collect::<Vec<usize>>();
        let (one, other) = (Spread::random(), Spread::random());
        for place in 0..16 {
            assert!(places(&one).iter().filter(|found| **found == place).count() < 60, "{:?}", places(&one));
        }
        assert_eq!(places(&one), places(&one));
        assert_ne!(places(&one), places(&other));
    }

    #[test]
    fn places_stay_in_range() {
        for places in [1, 2, 3, 16] {
            let spread = Spread::random();
            assert!((0..1000).all(|ports| spread.place(&inner(1, 2, ports), places) < places));
        }
    }

    #[test]
    fn lanes_stay_in_range() {
        assert_eq!(lane(u32::MAX, 16), 15);
        assert_eq!(lane(0, 16), 0);
        assert_eq!(lane(u32::MAX, 1), 0);
    }
}
