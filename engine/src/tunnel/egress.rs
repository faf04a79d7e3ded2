//! From the pods to the underlay: reads, checks, cuts, prepends, sends.

use io::{Overlay, Underlay};
use path::egress::{self, HEADROOM};
use path::outbox::Outbox;
use path::{Counters, DropReason, Verdict};

use super::Tunnel;
use crate::worker::Outlet;

/// What one datagram costs besides its payload, in bytes that cost as much to move. Without it, a
/// super-packet of 860 small segments would count as much as one of 46 large ones.
const DATAGRAM_COST: usize = 512;
/// Maximum cost of one turn, beyond which only the packet that exceeds it is read: about 16 super-packets.
/// The ports and the other tunnels have to wait for that long.
const TURN_COST: usize = 1408 << 10;
/// Maximum packets read in one turn.
const TURN_PACKETS: usize = 128;
/// Cost of what one queue may bring before it is the next queue's turn: two super-packets. A single packet in
/// another queue thus waits for a quantum of each queue, not for all that they hold.
const QUANTUM_COST: usize = 128 << 10;
/// Packets that one queue may bring before it is the next queue's turn.
const QUANTUM_PACKETS: usize = 64;
/// Space for the largest packet that a TUN delivers, with its headers and the headroom.
const READ_ROOM: usize = HEADROOM + wire::virtio::HEADER_LEN + 65_535;
/// Space for headers of cut packets and for ICMP errors, more than any super-packet needs.
const HEADERS: usize = 1 << 19;
/// Space for packets as read: many small ones, or eight large ones.
const PACKETS: usize = 1 << 19;
/// Packets begin on a cache line.
const ALIGN: usize = 64;

/// The arena that packets are read into, and the datagrams made from them.
pub(super) struct Buffers {
    pub(super) arena: Box<[u8]>,
    pub(super) outbox: Outbox,
}

impl Buffers {
    /// Creates buffers for datagrams that grow by up to `overhead` bytes before they are sent.
    pub(super) fn new(overhead: u32) -> Buffers {
        Buffers {
            arena: vec![0; HEADERS + PACKETS].into_boxed_slice(),
            outbox: Outbox::with_overhead(0..HEADERS as u32, overhead),
        }
    }
}

impl<O: Overlay> Tunnel<O> {
    /// Sends what has waited, and forwards packets of all queues that may have some, a quantum of each queue
    /// in turn. Returns whether there were any.
    #[inline]
    pub(crate) fn egress<U: Underlay>(&mut self, mut out: Outlet<'_, U>) -> bool {
        self.sealing.send_waiting(&mut out, &mut self.counters);
        let mut pass = Pass { cost: TURN_COST, packets: TURN_PACKETS, at: HEADERS, last: None };
        let mut ready = self.queues.iter().filter(|queue| queue.ready).count();
        let count = self.queues.len();
        // Each pass reads something, so the budget ends this loop if the queues do not.
        while ready > 0 && !pass.is_over() {
            ready = 0;
            for _ in 0..count {
                let queue = self.next;
                self.next = if queue + 1 == count { 0 } else { queue + 1 };
                if self.queues[queue].ready {
                    self.read_quantum(queue, &mut pass, &mut out);
                    ready += usize::from(self.queues[queue].ready);
                }
                if pass.is_over() {
                    break;
                }
            }
        }
        if let Some(queue) = pass.last {
            self.flush(queue, &mut out);
        }
        pass.last.is_some()
    }

    /// Forwards packets of one queue until it is empty or has had its share.
    fn read_quantum<U: Underlay>(&mut self, queue: usize, pass: &mut Pass, out: &mut Outlet<'_, U>) {
        let full_batch = self.sealing.full_batch();
        let mut left = QUANTUM_COST.min(pass.cost);
        for _ in 0..QUANTUM_PACKETS.min(pass.packets) {
            if pass.at + READ_ROOM > self.egress.arena.len() {
                self.flush(queue, out);
                pass.at = HEADERS;
            }
            let Tunnel { queues, egress, fib, sizes, sealing, counters, clock, replies, .. } = self;
            let Buffers { arena, outbox } = egress;
            let overlay = &mut queues[queue].overlay;
            let start = pass.at + HEADROOM;
            let Ok(len) = overlay.read(&mut arena[start..pass.at + READ_ROOM]) else {
                queues[queue].ready = false;
                return;
            };
            let read = start as u32..(start + len) as u32;
            pass.took(queue, start, len);
            counters.egress.packets += 1;
            counters.egress.bytes += len.saturating_sub(wire::virtio::HEADER_LEN) as u64;
            let fib = fib.current();
            let verdict = match egress::check(arena, read.clone(), fib, sizes) {
                Ok(bound) => {
                    if !bound.fits(outbox) {
                        flush(overlay, &mut self.egress, sealing, out, counters);
                    }
                    let Buffers { arena, outbox } = &mut self.egress;
                    if bound.fits(outbox) {
                        egress::queue(arena, &bound, self.lanes, outbox, &mut counters.egress)
                    } else {
                        Verdict::Drop(DropReason::BadOffload)
                    }
                }
                Err(refusal) => egress::refuse(arena, read, refusal, fib, outbox, (replies, clock.now())),
            };
            let mut datagrams = 1;
            match verdict {
                Verdict::ToUnderlay(count) => datagrams = count as usize,
                Verdict::ToOverlay => {}
                Verdict::Reply(reason) => {
                    counters.egress.replies += 1;
                    counters.egress.drop(reason, 1);
                }
                Verdict::Suppressed(reason) => {
                    counters.egress.suppressed_replies += 1;
                    counters.egress.drop(reason, 1);
                }
                Verdict::Drop(reason) => counters.egress.drop(reason, 1),
            }
            let full = self.egress.outbox.full();
            if full >= full_batch {
                self.sealing.send(full, &mut self.egress, out, &mut self.counters);
            }
            let cost = len + datagrams * DATAGRAM_COST;
            pass.cost = pass.cost.saturating_sub(cost);
            left = left.saturating_sub(cost);
            if left == 0 {
                return;
            }
        }
    }

    fn flush<U: Underlay>(&mut self, queue: usize, out: &mut Outlet<'_, U>) {
        let Tunnel { queues, egress, sealing, counters, .. } = self;
        flush(&mut queues[queue].overlay, egress, sealing, out, counters);
    }
}

/// What a turn may still read, and where to.
struct Pass {
    cost: usize,
    packets: usize,
    /// Where the next packet begins in the arena.
    at: usize,
    /// The queue that the last packet came from.
    last: Option<usize>,
}

impl Pass {
    fn is_over(&self) -> bool {
        self.cost == 0 || self.packets == 0
    }

    /// Notes a packet of `len` bytes that was read to `start`.
    fn took(&mut self, queue: usize, start: usize, len: usize) {
        self.at = (start + len).next_multiple_of(ALIGN);
        self.packets -= 1;
        self.last = Some(queue);
    }
}

/// Sends all messages, writes the ICMP errors to the pods, and clears the outbox.
fn flush<O: Overlay, U: Underlay>(
    overlay: &mut O,
    egress: &mut Buffers,
    sealing: &mut super::Sealing,
    out: &mut Outlet<'_, U>,
    counters: &mut Counters,
) {
    sealing.send(egress.outbox.pending().len(), egress, out, counters);
    for reply in egress.outbox.replies() {
        if overlay.write(&egress.arena, std::slice::from_ref(reply)).is_err() {
            counters.egress.drop(DropReason::OverlayError, 1);
        }
    }
    egress.outbox.clear();
}
