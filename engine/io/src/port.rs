//! The traits for a worker's two kinds of port, and the plain records that they exchange.

use std::io;
use std::ops::Range;

use batch::{Received, Transmit};

use crate::wait::Waiter;

/// The layout of the slots that one receive call fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Maximum number of slots, each for one [`Received`].
    pub slots: usize,
    /// Bytes of each slot.
    pub len: usize,
}

impl Shape {
    /// Returns the number of bytes in all slots.
    pub const fn bytes(self) -> usize {
        self.slots * self.len
    }
}

/// The result of sending a batch of [`Transmit`]s, counted in datagrams on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitOutcome {
    /// Accepted by the kernel.
    pub sent: u32,
    /// Dropped because the send buffer or the device's queue was full.
    pub dropped_full: u32,
    /// Dropped because the kernel rejected them or their spans were invalid.
    pub dropped_error: u32,
}

impl TransmitOutcome {
    /// Returns the number of datagrams in the batch, sent or not.
    pub fn total(&self) -> u32 {
        self.sent + self.dropped_full + self.dropped_error
    }
}

/// Monotonic counters of one port.
///
/// `read` means from the kernel to the process and `write` the reverse, for overlay and underlay alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Units handed to the caller: packets, super-packets, or runs of joined datagrams.
    pub reads: u64,
    /// Units accepted by the kernel.
    pub writes: u64,
    /// Datagrams inside `reads`; equals `reads` on a TUN queue.
    pub read_datagrams: u64,
    /// Datagrams inside `writes`; equals `writes` on a TUN queue.
    pub write_datagrams: u64,
    /// Bytes handed to the caller.
    pub read_bytes: u64,
    /// Bytes accepted by the kernel.
    pub write_bytes: u64,
    /// System calls made to read, including those that found nothing.
    pub read_calls: u64,
    /// System calls made to write, including those that failed.
    pub write_calls: u64,
    /// Read calls that found nothing.
    pub would_block: u64,
    /// Datagrams or packets dropped because the kernel had no room.
    pub write_full: u64,
    /// Datagrams dropped because they were longer than their slot and the kernel truncated them.
    pub truncated: u64,
    /// Features disabled permanently because the kernel rejected them in use.
    pub downgrades: u64,
    /// Datagrams sent again one by one because the kernel rejected the joined send.
    pub resent: u64,
    /// Calls or packets that failed for any other reason.
    pub errors: u64,
}

impl PortCounters {
    /// Returns the number of system calls in both directions.
    pub fn calls(&self) -> u64 {
        self.read_calls + self.write_calls
    }

    /// Adds the counters of another port.
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

    /// Returns every counter with its name, in a fixed order.
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

/// The port towards the pods: a TUN queue, or memory in tests.
pub trait Overlay: Send {
    /// Reads one packet or super-packet into `buffer`, virtio header first, and returns its length.
    /// Fails with `WouldBlock` if there is none. A buffer of 65,550 bytes holds any packet.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet or super-packet gathered from `spans` of `arena`, virtio header first.
    /// Fails with `InvalidInput` if a span lies outside the arena or there are more than
    /// [`crate::tun::MAX_SPANS`].
    fn write(&mut self, arena: &[u8], spans: &[Range<u32>]) -> io::Result<()>;

    /// Returns the current counters.
    fn counters(&self) -> &PortCounters;

    /// Makes `waiter` report `token` when there may be something to read. Edge-triggered: after a report,
    /// read until `WouldBlock` before the next wait, or remember that more may be waiting.
    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()>;
}

/// The port towards the other hosts: a worker's sockets, or memory in tests.
pub trait Underlay: Send {
    /// Returns the slots that [`Underlay::receive`] fills.
    fn shape(&self) -> Shape;

    /// Receives a batch of datagrams into `out`, each run of joined datagrams into a slot of the arena. The
    /// first slot begins at `at`.
    ///
    /// Clears `out` and never grows it beyond its capacity; shape, capacity and arena size bound the batch.
    /// Fails with `WouldBlock` if nothing has arrived. Returns `Ok` with an empty `out` if every datagram
    /// was skipped.
    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()>;

    /// Sends all of `batch` in order. Each entry names its bytes as a range of `spans` into `arena`.
    /// Datagrams that cannot be sent are counted and dropped: the caller does not send them again.
    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome;

    /// Returns the current counters.
    fn counters(&self) -> &PortCounters;

    /// Registers the port with `waiter`; see [`Overlay::register`].
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

/// Returns the bytes of `span`, or `None` if the span is inverted or reaches beyond the arena.
#[inline]
pub(crate) fn slice<'a>(arena: &'a [u8], span: &Range<u32>) -> Option<&'a [u8]> {
    arena.get(span.start as usize..span.end as usize)
}
