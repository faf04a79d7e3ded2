//! Limits the ICMP errors to pods.
//!
//! The kernel limits errors to each destination (icmp_ratelimit) and all errors together (icmp_msgs_per_sec),
//! but no announcements of a path MTU (net/ipv4/icmp.c, icmpv4_mask_allow). Here those are limited too, since
//! a source address can be forged, and therefore more finely: first by flow, so that a flood leaves other
//! flows of the same address their errors, then by address, then all together. What one limit refuses uses
//! up nothing of the others.
//!
//! "Packet too big" has limits of its own: its loss is a black hole, and other errors are cheap to provoke
//! from every address of a node.

use std::hash::{BuildHasher, RandomState};

use crate::inner::Inner;
use crate::reply::Complaint;
use crate::wireguard::session::Millis;

/// Errors about one flow, as from the kernel to one destination: icmp_ratelimit and XRLIM_BURST_FACTOR
/// (net/ipv4/icmp.c).
const FLOW: Rate = Rate { interval: 1_000, burst: 6 };
/// Errors to one address.
const ADDRESS: Rate = Rate { interval: 20, burst: 50 };
/// All errors of one kind of a worker: icmp_msgs_per_sec.
const ALL: Rate = Rate { interval: 1, burst: 200 };

/// Number of sets of each table.
const SETS: usize = 256;
/// Number of buckets in each set.
const WAYS: usize = 4;

/// The limits of one worker. Their memory is fixed.
#[derive(Debug)]
pub struct Limiter {
    key: RandomState,
    too_big: Kind,
    others: Kind,
}

/// The limits of one kind of error.
#[derive(Debug)]
struct Kind {
    flows: Table,
    addresses: Table,
    all: Millis,
}

/// Tokens that come back one each interval, up to a number.
#[derive(Clone, Copy, Debug)]
struct Rate {
    interval: Millis,
    burst: u64,
}

/// The buckets of flows or addresses, found by a hash with a secret key. A new one takes the bucket of its
/// set that is the first to be full.
#[derive(Debug)]
struct Table(Box<[[Bucket; WAYS]; SETS]>);

/// A bucket holds the time at which all of its tokens will have come back, in place of their number.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    key: u64,
    full_at: Millis,
}

impl Limiter {
    /// Creates a limiter with all tokens.
    pub fn new() -> Limiter {
        Limiter { key: RandomState::new(), too_big: Kind::new(), others: Kind::new() }
    }

    /// Whether this error about this packet may be sent at `now`. If so, it is counted.
    pub fn admits(&mut self, complaint: Complaint, offender: &Inner, now: Millis) -> bool {
        let Inner { v6, src, dst, .. } = *offender;
        let flow = self.key.hash_one((v6, src, dst, offender.flow_hash()));
        let address = self.key.hash_one((v6, src));
        let kind = match complaint {
            Complaint::TooBig(_) => &mut self.too_big,
            Complaint::NoRoute | Complaint::TimeExceeded => &mut self.others,
        };
        kind.admits(flow, address, now)
    }
}

impl Kind {
    fn new() -> Kind {
        Kind { flows: Table::new(), addresses: Table::new(), all: 0 }
    }

    fn admits(&mut self, flow: u64, address: u64, now: Millis) -> bool {
        let (flow, address) = (self.flows.bucket(flow, now), self.addresses.bucket(address, now));
        let taken =
            (FLOW.take(flow.full_at, now), ADDRESS.take(address.full_at, now), ALL.take(self.all, now));
        let (Some(flow_full), Some(address_full), Some(all_full)) = taken else { return false };
        (flow.full_at, address.full_at, self.all) = (flow_full, address_full, all_full);
        true
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::new()
    }
}

impl Rate {
    /// Takes a token of a bucket that will be full at `full_at`. Returns when it will be full then, or `None`
    /// if it is empty.
    fn take(self, full_at: Millis, now: Millis) -> Option<Millis> {
        let full_at = full_at.max(now) + self.interval;
        (full_at - now <= self.interval * self.burst).then_some(full_at)
    }
}

impl Table {
    fn new() -> Table {
        Table(Box::new([[Bucket::default(); WAYS]; SETS]))
    }

    /// Returns the bucket with this key, or a full one in place of another.
    fn bucket(&mut self, key: u64, now: Millis) -> &mut Bucket {
        let set = &mut self.0[key as usize % SETS];
        let found = set.iter().position(|bucket| bucket.key == key);
        let index = found.unwrap_or_else(|| {
            let full_at = |way: &usize| set[*way].full_at;
            let first = (0..WAYS).min_by_key(full_at).unwrap_or_default();
            set[first] = Bucket { key, full_at: now };
            first
        });
        &mut set[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inner::UDP;

    const NOW: Millis = 1_000_000;

    fn packet(src: u32, dst: u32, port: u16) -> Inner {
        Inner {
            v6: false,
            len: 1500,
            transport: 20,
            protocol: UDP,
            fragment: false,
            tos: 0,
            ttl: 64,
            id: 0,
            dont_fragment: true,
            src: (0x0a01_0000 + src).into(),
            dst: (0x0a02_0000 + dst).into(),
            ports: u32::from(port) << 16 | 53,
        }
    }

    fn admitted(limiter: &mut Limiter, packets: impl Iterator<Item = Inner>, now: Millis) -> usize {
        packets.filter(|packet| limiter.admits(Complaint::NoRoute, packet, now)).count()
    }

    #[test]
    fn a_flood_gets_a_burst_and_then_one_error_a_second() {
        let mut limiter = Limiter::new();
        let mut seconds = |now| admitted(&mut limiter, std::iter::repeat_n(packet(5, 7, 1), 50_000), now);
        let answers: Vec<_> = (0..4).map(|second| seconds(NOW + 1_000 * second)).collect();
        assert_eq!(answers, [6, 1, 1, 1]);
        assert_eq!(seconds(NOW + 3_999), 0);
        assert_eq!(seconds(NOW + 60_000), 6);
    }

    #[test]
    fn a_flood_leaves_other_flows_and_other_pods_their_errors() {
        let mut limiter = Limiter::new();
        assert_eq!(admitted(&mut limiter, std::iter::repeat_n(packet(5, 7, 1), 50_000), NOW), 6);
        for other in
            [packet(5, 7, 2), packet(5, 8, 1), packet(6, 7, 1), Inner { v6: true, ..packet(5, 7, 1) }]
        {
            assert!(limiter.admits(Complaint::NoRoute, &other, NOW), "{other:?}");
        }
        // From all ports of one pod, and from an address that it forges.
        for src in [5, 9] {
            let flood = (0..50_000).map(|port| packet(src, 7, port));
            assert!((40..=50).contains(&admitted(&mut limiter, flood, NOW)));
        }
        assert!(limiter.admits(Complaint::NoRoute, &packet(6, 7, 2), NOW));
        assert!(
            !limiter.admits(Complaint::NoRoute, &packet(5, 7, 3), NOW)
                && limiter.admits(Complaint::NoRoute, &packet(5, 7, 3), NOW + 20)
        );
    }

    #[test]
    fn errors_to_many_addresses_are_limited_together() {
        let mut limiter = Limiter::new();
        let flood = |second: u32| (0..50_000).map(move |src| packet(second << 16 | src, 7, 1));
        assert_eq!(admitted(&mut limiter, flood(0), NOW), 200);
        assert_eq!(admitted(&mut limiter, flood(1), NOW + 100), 100);
        // New addresses take the place of old ones, not of those that are limited.
        let mut limiter = Limiter::new();
        admitted(&mut limiter, std::iter::repeat_n(packet(5, 7, 1), 50_000), NOW);
        let quiet = (0..150).map(|src| packet(src + 100, 7, 1));
        assert_eq!(admitted(&mut limiter, quiet, NOW), 150);
        assert!(!limiter.admits(Complaint::NoRoute, &packet(5, 7, 1), NOW + 900));
    }

    #[test]
    fn other_errors_leave_packets_that_are_too_big_their_own() {
        let too_big = Complaint::TooBig(1400);
        for cheap in [Complaint::NoRoute, Complaint::TimeExceeded] {
            let mut limiter = Limiter::new();
            // From every address of the node, the quiet pod's and its flow's among them.
            let flood = (0..50_000).map(|index| packet(index % 254 + 1, 7, (index / 254) as u16));
            assert_eq!(flood.filter(|packet| limiter.admits(cheap, packet, NOW)).count(), 200);
            assert!(!limiter.admits(cheap, &packet(9, 8, 1), NOW));
            for quiet in [packet(9, 8, 1), packet(9, 7, 0), Inner { v6: true, ..packet(9, 8, 1) }] {
                assert!(limiter.admits(too_big, &quiet, NOW), "{quiet:?}");
            }
        }
        let mut limiter = Limiter::new();
        let flood = std::iter::repeat_n(packet(5, 7, 1), 50_000);
        assert_eq!(flood.filter(|packet| limiter.admits(too_big, packet, NOW)).count(), 6);
        assert!(limiter.admits(Complaint::NoRoute, &packet(5, 7, 1), NOW));
    }
}
