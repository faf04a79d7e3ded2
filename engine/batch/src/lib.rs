//! The plain records of a batch: what a port has received, what it is to send, and the numbers in them.
//!
//! `path` decides by these records and `io` moves bytes by them; neither crate knows the other. A record owns no
//! bytes: it names them by their place in an arena.

use std::net::SocketAddr;

/// A peer's number. Two peers of one tunnel never have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A worker's number, from 0 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerIndex(pub u32);

impl WorkerIndex {
    /// The worker's place in a list of all workers.
    #[inline]
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for WorkerIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One filled receive slot: a datagram, or several equal ones of one sender that the kernel joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where in the arena the bytes begin.
    pub at: u32,
    /// How many bytes there are.
    pub len: u32,
    /// Size of each joined datagram; the last may be shorter. 0: the slot holds one datagram.
    pub segment_size: u16,
    /// The two ECN bits of the outer IP header (RFC 3168 section 5).
    pub ecn: u8,
    /// Who sent it.
    pub source: SocketAddr,
}

/// One datagram to send, or a run of equal-sized ones to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The peer's address.
    pub to: SocketAddr,
    /// The peer's number, for a port that keeps something ready for each peer.
    pub peer: PeerId,
    /// Which socket of the fan sends it, modulo the fan's size: one flow, one lane.
    pub lane: u16,
    /// Index of the first of its spans.
    pub first_span: u32,
    /// How many spans it has.
    pub span_count: u32,
    /// Payload bytes of each datagram but the last, which may be shorter; each datagram starts at the
    /// start of a span. 0: all the spans are one datagram.
    pub segment_size: u16,
    /// How many datagrams this is; 0 counts as 1.
    pub segments: u16,
    /// The two ECN bits for the outer IP header.
    pub ecn: u8,
}
