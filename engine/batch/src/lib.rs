//! The plain records of a batch: received datagrams, datagrams to send, and the numbers of peers and workers.
//!
//! `path` makes decisions about these records and `io` moves the bytes they describe; neither crate depends
//! on the other. A record owns no bytes: it refers to them by their position in an arena.

use std::net::SocketAddr;

/// A peer's number, unique within its tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A worker's number, starting at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerIndex(pub u32);

impl WorkerIndex {
    /// Returns the worker's index in a list of all workers.
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

/// One filled receive slot: a datagram, or several of equal size from one sender that the kernel joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Offset of the first byte in the arena.
    pub at: u32,
    /// Length in bytes.
    pub len: u32,
    /// Size of each joined datagram; the last may be shorter. 0 if the slot holds one datagram.
    pub segment_size: u16,
    /// The two ECN bits of the outer IP header (RFC 3168 section 5).
    pub ecn: u8,
    /// The sender's address and port.
    pub source: SocketAddr,
}

/// One datagram to send, or a run of equal-sized datagrams to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The peer's address.
    pub to: SocketAddr,
    /// The peer's number.
    pub peer: PeerId,
    /// Which socket of the fan sends, modulo the fan's size. A flow always uses the same lane.
    pub lane: u16,
    /// Index of the first span.
    pub first_span: u32,
    /// Number of spans.
    pub span_count: u32,
    /// Payload bytes of each datagram except the last, which may be shorter. Each datagram begins at the
    /// start of a span. Ignored, and may be 0, if all spans form one datagram.
    pub segment_size: u16,
    /// Number of datagrams; 0 counts as 1.
    pub segments: u16,
    /// The two ECN bits for the outer IP header.
    pub ecn: u8,
}
