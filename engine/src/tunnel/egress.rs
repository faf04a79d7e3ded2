//! From the pods to the underlay: reads, checks, cuts, prepends, sends.

use io::{Overlay, Underlay};
use path::egress::{self, HEADROOM};
use path::outbox::Outbox;
use path::{Counters, DropReason, Verdict};

use super::Tunnel;
use crate::worker::Outlet;

/// Maximum packets read from one queue per turn.
const BUDGET: usize = 128;
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
    /// Sends what has waited, and forwards a batch from each queue that may have packets. Returns whether
    /// there were any.
    #[inline]
    pub(crate) fn egress<U: Underlay>(&mut self, mut out: Outlet<'_, U>) -> bool {
        self.sealing.send_waiting(&mut out, &mut self.counters);
        let mut worked = false;
        for queue in 0..self.queues.len() {
            if self.queues[queue].ready {
                worked |= self.egress_batch(queue, &mut out);
            }
        }
        worked
    }

    fn egress_batch<U: Underlay>(&mut self, queue: usize, out: &mut Outlet<'_, U>) -> bool {
        let full_batch = self.sealing.full_batch();
        let mut worked = false;
        let mut at = HEADERS;
        for _ in 0..BUDGET {
            if at + READ_ROOM > self.egress.arena.len() {
                self.flush(queue, out);
                at = HEADERS;
            }
            let Tunnel { queues, egress: Buffers { arena, outbox }, fib, sizes, sealing, counters, .. } =
                self;
            let overlay = &mut queues[queue].overlay;
            let start = at + HEADROOM;
            let Ok(len) = overlay.read(&mut arena[start..at + READ_ROOM]) else {
                queues[queue].ready = false;
                break;
            };
            worked = true;
            let read = start as u32..(start + len) as u32;
            at = (start + len).next_multiple_of(ALIGN);
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
                Err(refusal) => egress::refuse(arena, read, refusal, fib, outbox),
            };
            match verdict {
                Verdict::ToUnderlay(_) | Verdict::ToOverlay => {}
                Verdict::Reply(reason) => {
                    counters.egress.replies += 1;
                    counters.egress.drop(reason, 1);
                }
                Verdict::Drop(reason) => counters.egress.drop(reason, 1),
            }
            let full = self.egress.outbox.full();
            if full >= full_batch {
                self.sealing.send(full, &mut self.egress, out, &mut self.counters);
            }
        }
        self.flush(queue, out);
        worked
    }

    fn flush<U: Underlay>(&mut self, queue: usize, out: &mut Outlet<'_, U>) {
        let Tunnel { queues, egress, sealing, counters, .. } = self;
        flush(&mut queues[queue].overlay, egress, sealing, out, counters);
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
