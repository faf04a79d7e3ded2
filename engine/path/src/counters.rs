//! Plain integers, one set per worker and tunnel. The worker copies them into its public page.

use crate::verdict::DropReason;

/// The counters of one direction of one tunnel.
#[derive(Clone, Debug)]
pub struct Direction {
    /// Packets read; a super-packet counts once.
    pub packets: u64,
    /// IP bytes read.
    pub bytes: u64,
    /// Packets or datagrams delivered; a super-packet counts once.
    pub delivered: u64,
    /// Segments that super-packets were cut into (egress) or joined from (ingress).
    pub segments: u64,
    /// Payload bytes summed by the engine to compute or verify a checksum.
    pub summed_bytes: u64,
    /// ICMP errors sent to pods.
    pub replies: u64,
    /// ICMP errors to pods that were not sent, because there were too many.
    pub suppressed_replies: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Default for Direction {
    fn default() -> Self {
        Direction {
            packets: 0,
            bytes: 0,
            delivered: 0,
            segments: 0,
            summed_bytes: 0,
            replies: 0,
            suppressed_replies: 0,
            drops: [0; DropReason::ALL.len()],
        }
    }
}

impl Direction {
    /// Counts `n` packets as dropped.
    #[inline]
    pub fn drop(&mut self, reason: DropReason, n: u64) {
        self.drops[reason as usize] += n;
    }

    /// Returns the number of packets dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Returns the number of packets dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().sum()
    }
}

/// The counters of both directions of one tunnel.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// From the pods to the underlay.
    pub egress: Direction,
    /// From the underlay to the pods.
    pub ingress: Direction,
}
