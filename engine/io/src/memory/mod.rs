//! In-memory ports of both kinds, for testing the code between them without a kernel.
//!
//! Packets pass through queues that a test's handle, or the peer port, fills and drains. Buffers are
//! recycled, so a port allocates nothing once its queues have grown.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::port::slice;
use crate::wait::{self, Waiter, Waker};
use crate::{Overlay, PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay};

/// How an in-memory underlay behaves.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// The slots of one receive call.
    pub shape: Shape,
    /// Whether a run of datagrams counts as one write, as with UDP_SEGMENT. Does not affect the datagrams.
    pub segment: bool,
    /// Whether consecutive datagrams of equal size from one sender are joined on receipt, as with UDP_GRO.
    pub gro: bool,
    /// Maximum datagrams in transit; any more are dropped as full.
    pub capacity: usize,
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig { shape: Shape { slots: 16, len: 1 << 16 }, segment: true, gro: true, capacity: 4096 }
    }
}

/// One datagram on the in-memory wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The sender's address and port.
    pub from: SocketAddr,
    /// The destination.
    pub to: SocketAddr,
    /// The sending lane.
    pub lane: u16,
    /// ECN bits of the outer header.
    pub ecn: u8,
    /// Payload.
    pub bytes: Vec<u8>,
}

/// An in-memory TUN queue.
#[derive(Debug)]
pub struct MemoryOverlay {
    incoming: Arc<Queue<Vec<u8>>>,
    outgoing: Arc<Queue<Vec<u8>>>,
    counters: PortCounters,
}

/// The pod's end of a [`MemoryOverlay`].
#[derive(Clone, Debug)]
pub struct OverlayHandle {
    to_port: Arc<Queue<Vec<u8>>>,
    from_port: Arc<Queue<Vec<u8>>>,
}

/// An in-memory set of UDP sockets.
#[derive(Debug)]
pub struct MemoryUnderlay {
    local: SocketAddr,
    options: MemoryConfig,
    incoming: Arc<Queue<Datagram>>,
    outgoing: Arc<Queue<Datagram>>,
    counters: PortCounters,
}

/// The wire's end of a [`MemoryUnderlay`].
#[derive(Clone, Debug)]
pub struct UnderlayHandle {
    to_port: Arc<Queue<Datagram>>,
    from_port: Arc<Queue<Datagram>>,
}

/// Creates a TUN queue and its pod end. Packets begin with their virtio header in both directions.
pub fn overlay() -> (MemoryOverlay, OverlayHandle) {
    let (incoming, outgoing) = (Arc::default(), Arc::default());
    let handle = OverlayHandle { to_port: Arc::clone(&incoming), from_port: Arc::clone(&outgoing) };
    (MemoryOverlay { incoming, outgoing, counters: PortCounters::default() }, handle)
}

/// Creates sockets that listen on `local` and send from its address, and their wire end.
pub fn underlay(local: SocketAddr, options: MemoryConfig) -> (MemoryUnderlay, UnderlayHandle) {
    let (incoming, outgoing) = (Arc::default(), Arc::default());
    let handle = UnderlayHandle { to_port: Arc::clone(&incoming), from_port: Arc::clone(&outgoing) };
    (MemoryUnderlay { local, options, incoming, outgoing, counters: PortCounters::default() }, handle)
}

/// Creates two sets of sockets joined by a wire. Each receives whatever the other sends, to any address.
pub fn underlay_pair(
    a: SocketAddr,
    b: SocketAddr,
    options: MemoryConfig,
) -> (MemoryUnderlay, MemoryUnderlay) {
    let (to_a, to_b) = (Arc::<Queue<Datagram>>::default(), Arc::<Queue<Datagram>>::default());
    let counters = PortCounters::default();
    let left = MemoryUnderlay {
        local: a,
        options,
        incoming: Arc::clone(&to_a),
        outgoing: Arc::clone(&to_b),
        counters,
    };
    (left, MemoryUnderlay { local: b, options, incoming: to_b, outgoing: to_a, counters })
}

impl OverlayHandle {
    /// Queues a packet, virtio header first, for the port to read.
    pub fn inject(&self, packet: &[u8]) {
        self.to_port.push(|spare: &mut Vec<u8>| spare.extend_from_slice(packet));
    }

    /// Returns and removes everything that the port has written, in order.
    pub fn collect(&self) -> Vec<Vec<u8>> {
        self.from_port.lock().items.drain(..).collect()
    }
}

impl UnderlayHandle {
    /// Queues a datagram for the port to receive.
    pub fn inject(&self, datagram: Datagram) {
        self.to_port.push(|spare| *spare = datagram);
    }

    /// Returns and removes every datagram that the port has sent, in order.
    pub fn collect(&self) -> Vec<Datagram> {
        self.from_port.lock().items.drain(..).collect()
    }
}

impl Overlay for MemoryOverlay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.counters.read_calls += 1;
        let mut queue = self.incoming.lock();
        let Some(packet) = queue.items.pop_front() else {
            self.counters.would_block += 1;
            return Err(io::ErrorKind::WouldBlock.into());
        };
        // A TUN truncates a packet that does not fit (drivers/net/tun.c tun_put_user).
        let len = packet.len().min(buffer.len());
        buffer[..len].copy_from_slice(&packet[..len]);
        queue.spare.push(packet);
        self.counters.reads += 1;
        self.counters.read_datagrams += 1;
        self.counters.read_bytes += len as u64;
        Ok(len)
    }

    fn write(&mut self, arena: &[u8], spans: &[Range<u32>]) -> io::Result<()> {
        let valid = spans.len() <= crate::tun::MAX_SPANS && spans.iter().all(|s| slice(arena, s).is_some());
        if !valid {
            self.counters.errors += 1;
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut len = 0;
        self.outgoing.push(|spare: &mut Vec<u8>| {
            for bytes in spans.iter().filter_map(|span| slice(arena, span)) {
                spare.extend_from_slice(bytes);
            }
            len = spare.len();
        });
        self.counters.write_calls += 1;
        self.counters.writes += 1;
        self.counters.write_datagrams += 1;
        self.counters.write_bytes += len as u64;
        Ok(())
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        self.incoming.register(waiter, token)
    }
}

impl Underlay for MemoryUnderlay {
    fn shape(&self) -> Shape {
        self.options.shape
    }

    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()> {
        out.clear();
        let Shape { slots, len: slot_len } = self.options.shape;
        let room = arena.get_mut(at..).unwrap_or_default();
        let slots = room.len().checked_div(slot_len).unwrap_or(0).min(slots).min(out.capacity());
        if slots == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.counters.read_calls += 1;
        let mut queue = self.incoming.lock();
        if queue.items.is_empty() {
            self.counters.would_block += 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for (index, slot) in room.chunks_exact_mut(slot_len).enumerate().take(slots) {
            let Some(first) = queue.items.pop_front() else { break };
            let Some(room) = slot.get_mut(..first.bytes.len()) else {
                self.counters.truncated += 1;
                queue.spare.push(first);
                continue;
            };
            room.copy_from_slice(&first.bytes);
            let size = first.bytes.len();
            let (mut len, mut datagrams) = (size, 1);
            // As in the kernel, datagrams of one flow with equal size and ECN are joined; a shorter one ends
            // the run.
            while self.options.gro && len == size * datagrams && size > 0 && datagrams < 64 {
                let fits = |next: &Datagram| {
                    (next.from, next.to, next.ecn) == (first.from, first.to, first.ecn)
                        && (1..=size).contains(&next.bytes.len())
                        && len + next.bytes.len() <= slot.len()
                };
                if !queue.items.front().is_some_and(fits) {
                    break;
                }
                let Some(next) = queue.items.pop_front() else { break };
                slot[len..len + next.bytes.len()].copy_from_slice(&next.bytes);
                len += next.bytes.len();
                datagrams += 1;
                queue.spare.push(next);
            }
            let segment_size = if datagrams > 1 { size as u16 } else { 0 };
            out.push(Received {
                at: (at + index * slot_len) as u32,
                len: len as u32,
                segment_size,
                ecn: first.ecn,
                source: first.from,
            });
            queue.spare.push(first);
            self.counters.reads += 1;
            self.counters.read_datagrams += datagrams as u64;
            self.counters.read_bytes += len as u64;
        }
        Ok(())
    }

    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        let mut outcome = TransmitOutcome::default();
        for transmit in batch {
            let first = transmit.first_span as usize;
            let own = spans.get(first..first.saturating_add(transmit.span_count as usize));
            let valid = own.filter(|own| !own.is_empty() && own.iter().all(|s| slice(arena, s).is_some()));
            let Some(own) = valid else {
                self.counters.errors += 1;
                outcome.dropped_error += u32::from(transmit.segments.max(1));
                continue;
            };
            let several = transmit.segment_size > 0 && transmit.segments > 1;
            let size = if several { usize::from(transmit.segment_size) } else { usize::MAX };
            let mut rest = own;
            let mut units = 0;
            while !rest.is_empty() {
                let (mut count, mut bytes) = (0, 0);
                while count < rest.len() && (bytes < size || rest[count].is_empty()) {
                    bytes += rest[count].len();
                    count += 1;
                }
                let (datagram, after) = rest.split_at(count);
                rest = after;
                if self.outgoing.len() >= self.options.capacity {
                    self.counters.write_full += 1;
                    outcome.dropped_full += 1;
                    continue;
                }
                // Each lane has its own source port, as in a fan.
                let from = SocketAddr::new(self.local.ip(), 49_152 + transmit.lane % 16_384);
                self.outgoing.push(|spare: &mut Datagram| {
                    (spare.from, spare.to) = (from, transmit.to);
                    (spare.lane, spare.ecn) = (transmit.lane, transmit.ecn);
                    for bytes in datagram.iter().filter_map(|span| slice(arena, span)) {
                        spare.bytes.extend_from_slice(bytes);
                    }
                });
                units += 1;
                outcome.sent += 1;
                self.counters.write_datagrams += 1;
                self.counters.write_bytes += bytes as u64;
            }
            let units = if self.options.segment { units.min(1) } else { units };
            self.counters.writes += units;
            self.counters.write_calls += units;
        }
        outcome
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        self.incoming.register(waiter, token)
    }
}

/// A queue entry that can be cleared and reused.
trait Item {
    fn blank() -> Self;
    fn clear(&mut self);
}

impl Item for Vec<u8> {
    fn blank() -> Self {
        Vec::new()
    }

    fn clear(&mut self) {
        Vec::clear(self);
    }
}

impl Item for Datagram {
    fn blank() -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Datagram { from: nowhere, to: nowhere, lane: 0, ecn: 0, bytes: Vec::new() }
    }

    fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[derive(Debug)]
struct Queue<T>(Mutex<Inner<T>>);

struct Inner<T> {
    items: VecDeque<T>,
    spare: Vec<T>,
    reader: Option<(Waker, usize)>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue(Mutex::new(Inner { items: VecDeque::new(), spare: Vec::new(), reader: None }))
    }
}

impl<T> std::fmt::Debug for Inner<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waiting", self.items.len())
    }
}

impl<T> Queue<T> {
    /// Locks the queue. Ignores poisoning: no panic leaves a queue inconsistent.
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.lock().items.len()
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        wait::check(token)?;
        let waker = waiter.waker();
        let mut inner = self.lock();
        if !inner.items.is_empty() {
            waker.report(token)?;
        }
        inner.reader = Some((waker, token));
        Ok(())
    }
}

impl<T: Item> Queue<T> {
    fn push(&self, fill: impl FnOnce(&mut T)) {
        let mut inner = self.lock();
        let mut item = inner.spare.pop().unwrap_or_else(T::blank);
        item.clear();
        fill(&mut item);
        inner.items.push_back(item);
        if let Some((waker, token)) = &inner.reader {
            // Fails only if the reader no longer exists.
            let _ = waker.report(*token);
        }
    }
}

#[cfg(test)]
mod tests;
