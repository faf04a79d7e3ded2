//! From the underlay to the pods: strips or opens, checks, joins, writes.

use std::io::ErrorKind;

use io::{Overlay, Received};
use path::DropReason;
use path::flow::Spread;
use path::offload::coalesce::{Joins, Run};

use super::sealing::Sink;
use super::{Queue, Tunnel};
use crate::event::Event;

/// Length of the first part of a receive arena, which holds virtio headers and the headers of packets that
/// are cut for an overlay without offloads. The port uses the rest.
pub(crate) const ARENA_HEADERS: usize = 1 << 18;
/// Maximum records from other workers that are opened per turn.
const STRAYS: usize = 16;

impl<O: Overlay> Tunnel<O> {
    /// Forwards the datagrams of one receive call.
    #[inline]
    pub(crate) fn ingress(&mut self, arena: &mut [u8], received: &[Received]) {
        for one in received {
            self.make_room(arena);
            let (sealing, sink) = self.sink();
            sealing.receive(arena, *one, sink);
        }
        self.write_runs(arena);
    }

    /// Opens records that arrived at other workers, as if they had arrived here. Returns whether there were
    /// any.
    #[inline]
    pub(super) fn take_strays(&mut self, arena: &mut [u8]) -> bool {
        if !self.sealing.has_strays() {
            return false;
        }
        // More than this wait for the next turn.
        let mut at = ARENA_HEADERS;
        for _ in 0..STRAYS {
            let Some(stray) = self.sealing.stray() else { break };
            let len = stray.bytes.len();
            if at + len > arena.len() {
                self.write_runs(arena);
                at = ARENA_HEADERS;
            }
            self.make_room(arena);
            let Some(place) = arena.get_mut(at..at + len) else { break };
            place.copy_from_slice(&stray.bytes);
            let (sealing, sink) = self.sink();
            let received = Received {
                at: at as u32,
                len: len as u32,
                segment_size: 0,
                ecn: stray.ecn,
                source: stray.source,
            };
            sealing.receive(arena, received, sink);
            at += len;
        }
        self.write_runs(arena);
        true
    }

    #[inline]
    fn sink(&mut self) -> (&mut super::Sealing, Sink<'_>) {
        let Tunnel { sealing, fib, sizes, coalescer, counters, .. } = self;
        (sealing, Sink { fib: fib.current(), sizes, coalescer, counters })
    }

    /// Makes room for one more receive.
    #[inline]
    fn make_room(&mut self, arena: &mut [u8]) {
        if !self.coalescer.has_room() {
            self.write_runs(arena);
        }
    }

    /// Writes what the coalescer has gathered and empties it.
    fn write_runs(&mut self, arena: &mut [u8]) {
        let Tunnel { coalescer, queues, spread, counters, .. } = self;
        if coalescer.is_empty() {
            return;
        }
        coalescer.seal(arena);
        let counters = &mut counters.ingress;
        let mut joins = self.joins;
        for i in 0..coalescer.runs().len() {
            let run = &coalescer.runs()[i];
            let Some(queue) = choose(queues, spread, run) else { break };
            // The pod's TCP responds to several segments within the write, so read its ACKs before asking the
            // waiter.
            queue.ready |= run.is_super();
            let overlay = &mut queue.overlay;
            let cut = run.is_super() && !allowed(joins, run.is_tcp());
            if !cut {
                match overlay.write(arena, run.spans()) {
                    Ok(()) => {
                        counters.delivered += 1;
                        continue;
                    }
                    // The kernel rejects this kind of super-packet despite the probe. Write the same data
                    // again as single packets, and disable joining.
                    Err(error) if run.is_super() && error.kind() == ErrorKind::InvalidInput => {
                        if run.is_tcp() {
                            joins.tcp = false;
                        } else {
                            joins.udp = false;
                        }
                    }
                    Err(_) => {
                        counters.drop(DropReason::OverlayError, run.segments() as u64);
                        continue;
                    }
                }
            }
            let summed = coalescer.split(i, arena, |arena, spans| match overlay.write(arena, spans) {
                Ok(()) => counters.delivered += 1,
                Err(_) => counters.drop(DropReason::OverlayError, 1),
            });
            counters.summed_bytes += summed.unwrap_or(0) as u64;
        }
        if joins != self.joins {
            self.joins = joins;
            coalescer.set_joins(joins);
            self.notifier.send(Event::OverlayDowngraded { tcp: joins.tcp, udp: joins.udp });
        }
        coalescer.clear();
    }
}

/// Selects the queue for a run. The TUN delivers a flow's replies on the queue that the flow was written to,
/// so a flow keeps its queue. No sender can tell which.
#[inline]
fn choose<'q, O>(queues: &'q mut [Queue<O>], spread: &Spread, run: &Run) -> Option<&'q mut Queue<O>> {
    let index = match queues.len() {
        0 | 1 => 0,
        several => run.place(spread, several),
    };
    queues.get_mut(index)
}

fn allowed(joins: Joins, tcp: bool) -> bool {
    if tcp { joins.tcp } else { joins.udp }
}
