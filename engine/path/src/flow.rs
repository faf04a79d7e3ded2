//! The flow hash, which gives each flow one outer source port and spreads flows over the ports of the fan.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Hashes an IPv4 flow. Does not resist crafted collisions. Flows that collide share a source port, are
/// joined less, and share a queue of the TUN device, where each sender's share is limited whatever its flows.
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

    #[test]
    fn lanes_stay_in_range() {
        assert_eq!(lane(u32::MAX, 16), 15);
        assert_eq!(lane(0, 16), 0);
        assert_eq!(lane(u32::MAX, 1), 0);
    }
}
