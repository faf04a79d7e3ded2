//! The two kinds of port a worker owns, and the plain records that cross them.

use std::io;
use std::ops::Range;

use batch::{Received, Transmit};

use crate::wait::Waiter;

/// How a port wants the arena to be laid out that it fills: how many receives one call brings at most, and how large
/// each may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Slots, each for one [`Received`].
    pub slots: usize,
    /// Bytes of each.
    pub len: usize,
}

impl Shape {
    /// Bytes of all slots.
    pub const fn bytes(self) -> usize {
        self.slots * self.len
    }
}

/// What became of a batch of [`Transmit`]s, in datagrams as they go on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitOutcome {
    /// Taken by the kernel.
    pub sent: u32,
    /// Dropped because the send buffer or the device's queue was full.
    pub dropped_full: u32,
    /// Dropped because the kernel refused them, or because their spans made no sense.
    pub dropped_error: u32,
}

impl TransmitOutcome {
    /// Every datagram of the batch, sent or not.
    pub fn total(&self) -> u32 {
        self.sent + self.dropped_full + self.dropped_error
    }
}

/// Plain counters of one port; they only grow.
///
/// `read` is from the kernel to us and `write` from us to the kernel, whichever side the port is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Units handed to the caller: packets, super-packets, or runs of joined datagrams.
    pub reads: u64,
    /// Units taken by the kernel.
    pub writes: u64,
    /// Datagrams inside `reads`; equals `reads` on a TUN queue.
    pub read_datagrams: u64,
    /// Datagrams inside `writes`; equals `writes` on a TUN queue.
    pub write_datagrams: u64,
    /// Bytes handed to the caller.
    pub read_bytes: u64,
    /// Bytes taken by the kernel.
    pub write_bytes: u64,
    /// System calls made to read, also those that found nothing.
    pub read_calls: u64,
    /// System calls made to write, also those that failed.
    pub write_calls: u64,
    /// Read calls that found nothing.
    pub would_block: u64,
    /// Datagrams or packets dropped because the kernel had no room.
    pub write_full: u64,
    /// Datagrams that did not fit their slot, cut by the kernel and skipped.
    pub truncated: u64,
    /// Times a feature was switched off for good because the kernel refused it in use.
    pub downgrades: u64,
    /// Datagrams sent a second time, plainly, because the kernel refused the joined send.
    pub resent: u64,
    /// Calls or packets that failed for any other reason.
    pub errors: u64,
}

impl PortCounters {
    /// System calls of both directions.
    pub fn calls(&self) -> u64 {
        self.read_calls + self.write_calls
    }

    /// The counters of two ports together.
    pub fn plus(&self, other: &PortCounters) -> PortCounters {
        PortCounters {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            read_datagrams: self.read_datagrams + other.read_datagrams,
            write_datagrams: self.write_datagrams + other.write_datagrams,
            read_bytes: self.read_bytes + other.read_bytes,
            write_bytes: self.write_bytes + other.write_bytes,
            read_calls: self.read_calls + other.read_calls,
            write_calls: self.write_calls + other.write_calls,
            would_block: self.would_block + other.would_block,
            write_full: self.write_full + other.write_full,
            truncated: self.truncated + other.truncated,
            downgrades: self.downgrades + other.downgrades,
            resent: self.resent + other.resent,
            errors: self.errors + other.errors,
        }
    }

    /// Every counter with its name, in a fixed order.
    pub fn named(&self) -> [(&'static str, u64); 14] {
        [
            ("reads", self.reads),
            ("writes", self.writes),
            ("read_datagrams", self.read_datagrams),
            ("write_datagrams", self.write_datagrams),
            ("read_bytes", self.read_bytes),
            ("write_bytes", self.write_bytes),
            ("read_calls", self.read_calls),
            ("write_calls", self.write_calls),
            ("would_block", self.would_block),
            ("write_full", self.write_full),
            ("truncated", self.truncated),
            ("downgrades", self.downgrades),
            ("resent", self.resent),
            ("errors", self.errors),
        ]
    }
}

/// The pod side: a TUN queue, or memory.
pub trait Overlay: Send {
    /// Reads one packet or super-packet into `buffer`, its virtio header first; returns its length.
    /// `WouldBlock` when there is none. A buffer of 65,550 bytes holds any.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet or super-packet gathered from `spans` of `arena`, its virtio header first.
    /// `InvalidInput` when a span lies outside the arena or there are more than [`crate::tun::MAX_SPANS`].
    fn write(&mut self, arena: &[u8], spans: &[Range<u32>]) -> io::Result<()>;

    /// The counters so far.
    fn counters(&self) -> &PortCounters;

    /// Lets `waiter` report under `token` that there may be something to read. Edge-triggered: after a
    /// report, read until `WouldBlock` before the next wait, or remember that more may be waiting.
    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()>;
}

/// The wire side: a worker's UDP sockets, or memory.
pub trait Underlay: Send {
    /// The slots that [`Underlay::receive`] fills.
    fn shape(&self) -> Shape;

    /// Fills `out` with what has arrived; slot *i* begins *i* times the slots' length behind `at` in `arena`.
    ///
    /// Clears `out` and never grows it beyond its capacity, which with the arena's size bounds the batch.
    /// `WouldBlock` when nothing is there; `Ok` with an empty `out` when all that was there was skipped.
    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()>;

    /// Sends all of `batch`, in order; each names its bytes as a run of `spans`, which index `arena`.
    /// What could not be sent is counted and gone: the caller does not send it again.
    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome;

    /// The counters so far.
    fn counters(&self) -> &PortCounters;

    /// As [`Overlay::register`].
    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()>;
}

impl<T: Overlay + ?Sized> Overlay for Box<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).read(buffer)
    }

    fn write(&mut self, arena: &[u8], spans: &[Range<u32>]) -> io::Result<()> {
        (**self).write(arena, spans)
    }

    fn counters(&self) -> &PortCounters {
        (**self).counters()
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        (**self).register(waiter, token)
    }
}

impl<T: Underlay + ?Sized> Underlay for Box<T> {
    fn shape(&self) -> Shape {
        (**self).shape()
    }

    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()> {
        (**self).receive(arena, at, out)
    }

    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        (**self).transmit(arena, spans, batch)
    }

    fn counters(&self) -> &PortCounters {
        (**self).counters()
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        (**self).register(waiter, token)
    }
}

/// The bytes of `span`, or nothing when it is inverted or reaches beyond the arena.
#[inline]
pub(crate) fn slice<'a>(arena: &'a [u8], span: &Range<u32>) -> Option<&'a [u8]> {
    arena.get(span.start as usize..span.end as usize)
}
