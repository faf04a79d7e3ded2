//! The layer between a tunnel's packets and the wire: none, or WireGuard records. The rest of a tunnel does
//! not know which.

use std::ops::Range;

use io::{Received, TransmitOutcome, Underlay};
use path::offload::coalesce::{Coalescer, SEGMENTS_MAX};
use path::{Counters, DropReason, Fib, SegmentSizes, ingress};

use super::egress::Buffers;
use crate::wireguard::Stray;
use crate::wireguard::crypt::{Crypt, Opened};
use crate::worker::Outlet;

/// Number of full messages that are sent together: enough to share a call, few enough to be still in the
/// cache.
const FULL_BATCH: usize = 4;
/// Number of full messages that are sealed and sent together. Packets and their records share the cache.
const FULL_BATCH_SEALED: usize = 2;

/// How a tunnel's datagrams are sent.
pub(crate) enum Sealing {
    /// Without encryption.
    Plain,
    /// As WireGuard records.
    Wireguard(Box<Crypt>),
}

/// The destination of packets from the wire.
pub(super) struct Sink<'t> {
    pub(super) fib: &'t Fib,
    pub(super) sizes: &'t SegmentSizes,
    pub(super) coalescer: &'t mut Coalescer,
    pub(super) counters: &'t mut Counters,
}

impl Sealing {
    /// Returns the maximum number of bytes by which sealing makes a datagram longer.
    pub(super) fn overhead(&self) -> u32 {
        match self {
            Sealing::Plain => 0,
            Sealing::Wireguard(_) => Crypt::overhead(),
        }
    }

    /// Returns how many full messages are worth a call.
    #[inline]
    pub(super) fn full_batch(&self) -> usize {
        match self {
            Sealing::Plain => FULL_BATCH,
            Sealing::Wireguard(_) => FULL_BATCH_SEALED,
        }
    }

    /// Processes the keeper's mail. Returns whether there was any.
    #[inline]
    pub(super) fn refresh(&mut self, counters: &mut Counters) -> bool {
        let Sealing::Wireguard(crypt) = self else { return false };
        let has_mail = crypt.has_mail();
        crypt.refresh(counters);
        has_mail
    }

    /// Sends the packets that waited for a session which is now there. This comes after the turn's mail and
    /// records, which bring sessions, and before its packets from pods, so that a flow keeps its order.
    #[inline]
    pub(super) fn send_waiting<U: Underlay>(&mut self, out: &mut Outlet<'_, U>, counters: &mut Counters) {
        if let Sealing::Wireguard(crypt) = self
            && crypt.has_unblocked()
        {
            send_staged(crypt, out, counters);
        }
    }

    /// Sends the `count` oldest messages of the outbox.
    pub(super) fn send<U: Underlay>(
        &mut self,
        count: usize,
        egress: &mut Buffers,
        out: &mut Outlet<'_, U>,
        counters: &mut Counters,
    ) {
        match self {
            Sealing::Plain => send_plain(count, egress, out, counters),
            Sealing::Wireguard(crypt) => send_sealed(count, egress, crypt, out, counters),
        }
    }

    /// Extracts the packets from received datagrams and passes them on.
    #[inline]
    pub(super) fn receive(&mut self, arena: &mut [u8], received: Received, sink: Sink<'_>) {
        match self {
            Sealing::Plain => {
                let Sink { fib, sizes, coalescer, counters } = sink;
                ingress::ingress(arena, received, fib, sizes, coalescer, &mut counters.ingress);
            }
            Sealing::Wireguard(crypt) => open(crypt, arena, received, sink),
        }
    }

    /// Whether there are records that arrived at other workers.
    #[inline]
    pub(super) fn has_strays(&self) -> bool {
        matches!(self, Sealing::Wireguard(crypt) if crypt.has_stray())
    }

    /// Takes the oldest record that arrived at another worker.
    pub(super) fn stray(&mut self) -> Option<Stray> {
        match self {
            Sealing::Plain => None,
            Sealing::Wireguard(crypt) => crypt.stray(),
        }
    }
}

fn send_plain<U: Underlay>(
    count: usize,
    egress: &mut Buffers,
    out: &mut Outlet<'_, U>,
    counters: &mut Counters,
) {
    if count == 0 {
        return;
    }
    let Buffers { arena, outbox } = egress;
    outbox.group_by_lane(count);
    tally(out.transmit(arena, outbox.spans(), &outbox.pending()[..count]), counters);
    outbox.mark_sent(count);
}

/// Seals and sends messages, as many at a time as fit the record buffer.
fn send_sealed<U: Underlay>(
    mut count: usize,
    egress: &mut Buffers,
    crypt: &mut Crypt,
    out: &mut Outlet<'_, U>,
    counters: &mut Counters,
) {
    let Buffers { arena, outbox } = egress;
    while count > 0 {
        // There is always room for one message, so this loop ends.
        let done = crypt.seal(arena, outbox, count, counters).max(1);
        transmit(crypt, out, counters);
        outbox.mark_sent(done);
        count -= done;
    }
}

#[cold]
fn send_staged<U: Underlay>(crypt: &mut Crypt, out: &mut Outlet<'_, U>, counters: &mut Counters) {
    while crypt.seal_staged() {
        transmit(crypt, out, counters);
    }
}

#[inline]
fn transmit<U: Underlay>(crypt: &Crypt, out: &mut Outlet<'_, U>, counters: &mut Counters) {
    let sealed = crypt.sealed();
    if !sealed.batch.is_empty() {
        tally(out.transmit(sealed.records, sealed.spans, sealed.batch), counters);
    }
}

#[inline]
fn tally(outcome: TransmitOutcome, counters: &mut Counters) {
    counters.egress.delivered += u64::from(outcome.sent);
    counters.egress.drop(DropReason::UnderlayFull, u64::from(outcome.dropped_full));
    counters.egress.drop(DropReason::UnderlayError, u64::from(outcome.dropped_error));
}

/// Opens the records of one receive slot in place, one by one.
#[inline]
fn open(crypt: &mut Crypt, arena: &mut [u8], received: Received, mut sink: Sink<'_>) {
    let Received { mut at, len, segment_size, .. } = received;
    let end = at + len;
    let size = if segment_size == 0 { len } else { u32::from(segment_size) };
    for _ in 0..2 * SEGMENTS_MAX {
        let record = at..at + size.min(end - at);
        open_one(crypt, arena, record.clone(), received, &mut sink);
        at = record.end;
        if at >= end {
            return;
        }
    }
    sink.counters.ingress.drop(DropReason::TooManySegments, 1);
}

#[inline]
fn open_one(
    crypt: &mut Crypt,
    arena: &mut [u8],
    record: Range<u32>,
    received: Received,
    sink: &mut Sink<'_>,
) {
    let Sink { fib, sizes, coalescer, counters } = sink;
    counters.ingress.packets += 1;
    match crypt.open(arena, record, received.source, received.ecn, counters) {
        Ok(Some(Opened { peer, packet: (at, len) })) if len > 0 => {
            let packet = Received { at, len, segment_size: 0, ..received };
            ingress::opened(arena, packet, peer, fib, sizes, coalescer, &mut counters.ingress);
        }
        // A keepalive, or a message that was forwarded.
        Ok(_) => {}
        Err(reason) => counters.ingress.drop(reason, 1),
    }
}
