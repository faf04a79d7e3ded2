//! One worker's share of one tunnel: its queue, its sockets, its buffers, and the two batches.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Range;

use io::{Overlay, Received, Transmit, TransmitOutcome, Underlay};
use path::egress::{self, HEADROOM};
use path::ingress::{self, Datagrams};
use path::offload::coalesce::{Coalescer, Joins, SEGMENTS_MAX};
use path::outbox::{Message, Outbox};
use path::{Counters, DropReason, Fib, Verdict};

use crate::config::Switches;
use crate::event::{Event, Events};
use crate::snapshot::Reader;
use crate::wireguard::crypt::{Crypt, Opened};

/// Packets read from the overlay in one turn at most.
const EGRESS_BUDGET: usize = 128;
/// Receive calls in one turn at most.
const INGRESS_BUDGET: usize = 4;
/// Messages one receive call fills at most. A slot holds the largest datagram or train of them.
const SLOTS: usize = 16;
const SLOT_LEN: usize = 1 << 16;
/// The largest packet a TUN hands over, with its headers and the room in front.
const READ_ROOM: usize = HEADROOM + wire::virtio::HEADER_LEN + 65_535;
/// Headers of cut packets and ICMP replies; more than the header bytes of any super-packet that is cut.
const EGRESS_HEADERS: usize = 1 << 19;
/// Packets as read. Small ones lie close together, large ones fill it in eight reads.
const EGRESS_PACKETS: usize = 1 << 19;
/// Virtio headers, and headers of packets that had to be cut for an overlay without offloads.
const INGRESS_HEADERS: usize = 1 << 18;
/// Full messages that go at once: enough to share a call, few enough to be still in the cache.
const FULL_BATCH: usize = 4;
/// The same where they are sealed first: what was read and its records lie in the cache side by side.
const FULL_BATCH_SEALED: usize = 2;
/// Sends handed over in one call.
const BATCH: usize = 128;
/// Packets start on a cache line.
const ALIGN: usize = 64;

/// One worker's share of one tunnel.
pub(crate) struct Tunnel<O, U> {
    overlay: O,
    underlay: U,
    fib: Reader<Fib>,
    mtu: u16,
    lanes: u16,
    /// May have something to read: set by the waiter, cleared when a read finds nothing.
    pub(crate) overlay_ready: bool,
    /// As `overlay_ready`.
    pub(crate) underlay_ready: bool,
    egress: EgressBuffers,
    ingress: IngressBuffers,
    joins: Joins,
    pub(crate) counters: Counters,
    events: Events,
    downgrades: u64,
    /// For a format that seals.
    crypt: Option<Box<Crypt>>,
}

struct EgressBuffers {
    arena: Box<[u8]>,
    outbox: Outbox,
    spans: Vec<Range<u32>>,
    batch: Vec<Transmit>,
}

struct IngressBuffers {
    arena: Box<[u8]>,
    coalescer: Coalescer,
    received: Vec<Received>,
}

/// What a tunnel is made of, besides its ports.
pub(crate) struct Parts {
    pub(crate) fib: Reader<Fib>,
    pub(crate) mtu: u16,
    pub(crate) lanes: u16,
    pub(crate) switches: Switches,
    pub(crate) events: Events,
    pub(crate) crypt: Option<Box<Crypt>>,
}

impl<O: Overlay, U: Underlay> Tunnel<O, U> {
    pub(crate) fn new(overlay: O, underlay: U, parts: Parts) -> Self {
        let joins = Joins { tcp: parts.switches.tso, udp: parts.switches.uso };
        let packets = SLOTS * SLOT_LEN;
        let overhead = parts.crypt.as_ref().map_or(0, |_| Crypt::overhead());
        Tunnel {
            overlay,
            underlay,
            fib: parts.fib,
            mtu: parts.mtu,
            lanes: parts.lanes,
            overlay_ready: true,
            underlay_ready: true,
            egress: EgressBuffers {
                arena: vec![0; EGRESS_HEADERS + EGRESS_PACKETS].into_boxed_slice(),
                outbox: Outbox::with_overhead(0..EGRESS_HEADERS as u32, overhead),
                spans: Vec::with_capacity(BATCH * 2 * usize::from(path::outbox::SEGMENTS_MAX)),
                batch: Vec::with_capacity(BATCH),
            },
            ingress: IngressBuffers {
                arena: vec![0; packets + INGRESS_HEADERS].into_boxed_slice(),
                coalescer: Coalescer::new(packets as u32..(packets + INGRESS_HEADERS) as u32, joins),
                received: Vec::with_capacity(SLOTS),
            },
            joins,
            counters: Counters::default(),
            events: parts.events,
            downgrades: 0,
            crypt: parts.crypt,
        }
    }

    pub(crate) fn overlay(&self) -> &O {
        &self.overlay
    }

    pub(crate) fn underlay(&self) -> &U {
        &self.underlay
    }

    /// Picks up the newest table, and what is new of sessions. Returns whether it did anything that counts.
    #[inline]
    pub(crate) fn refresh(&mut self) -> bool {
        self.fib.refresh();
        let Some(crypt) = &mut self.crypt else { return false };
        let has_mail = crypt.has_mail();
        if crypt.refresh(&mut self.counters) {
            self.send_staged();
        }
        has_mail | self.take_strays()
    }

    /// Whether records wait that arrived at another worker.
    #[inline]
    pub(crate) fn has_strays(&self) -> bool {
        self.crypt.as_ref().is_some_and(|crypt| crypt.has_stray())
    }

    /// Underlay to pods: receives, strips, joins, writes. Returns whether it did anything.
    #[inline]
    pub(crate) fn ingress_batch(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..INGRESS_BUDGET {
            if !self.underlay_ready {
                break;
            }
            let IngressBuffers { arena, received, .. } = &mut self.ingress;
            match self.underlay.receive(&mut arena[..SLOTS * SLOT_LEN], SLOT_LEN, received) {
                Ok(()) => {}
                Err(_) => {
                    // Empty, or an error that the port has counted: either way the next arrival is reported.
                    self.underlay_ready = false;
                    break;
                }
            }
            worked = true;
            // Fewer than asked for: the queue was empty at that moment, and what comes later is reported.
            self.underlay_ready = self.ingress.received.len() == SLOTS;
            for i in 0..self.ingress.received.len() {
                if !self.ingress.coalescer.has_room() {
                    self.write_runs();
                }
                if self.crypt.is_some() {
                    self.open(self.ingress.received[i]);
                    continue;
                }
                let Received { at, len, segment_size, ecn, .. } = self.ingress.received[i];
                let IngressBuffers { arena, coalescer, .. } = &mut self.ingress;
                let datagrams = Datagrams { at, len, segment_size, ecn };
                ingress::ingress(
                    arena,
                    datagrams,
                    self.fib.current(),
                    self.mtu,
                    coalescer,
                    &mut self.counters.ingress,
                );
            }
            self.write_runs();
            // The pod's TCP answers within the write: look for its ACKs before asking the waiter.
            self.overlay_ready |= self.ingress.received.iter().any(|one| one.segment_size > 0);
        }
        worked
    }

    /// Pods to underlay: reads, cuts, prepends, sends. Returns whether it did anything.
    #[inline]
    pub(crate) fn egress_batch(&mut self) -> bool {
        if !self.overlay_ready {
            return false;
        }
        let full_batch = if self.crypt.is_some() { FULL_BATCH_SEALED } else { FULL_BATCH };
        let mut worked = false;
        let mut at = EGRESS_HEADERS;
        for _ in 0..EGRESS_BUDGET {
            let EgressBuffers { arena, .. } = &mut self.egress;
            if at + READ_ROOM > arena.len() {
                self.send_all();
                at = EGRESS_HEADERS;
            }
            let EgressBuffers { arena, outbox, .. } = &mut self.egress;
            let start = at + HEADROOM;
            let len = match self.overlay.read(&mut arena[start..at + READ_ROOM]) {
                Ok(len) => len,
                Err(_) => {
                    self.overlay_ready = false;
                    break;
                }
            };
            worked = true;
            let read = start as u32..(start + len) as u32;
            at = (start + len).next_multiple_of(ALIGN);
            self.counters.egress.packets += 1;
            self.counters.egress.bytes += len.saturating_sub(wire::virtio::HEADER_LEN) as u64;
            let fib = self.fib.current();
            let verdict = match egress::check(arena, read.clone(), fib) {
                Ok(bound) => {
                    if !outbox.has_room(bound.datagrams(), bound.header_len()) {
                        let Tunnel { underlay, overlay, egress, counters, crypt, .. } = self;
                        send(underlay, egress, crypt, Send::All, counters);
                        write_replies(overlay, egress, counters);
                        egress.outbox.clear();
                    }
                    let EgressBuffers { arena, outbox, .. } = &mut self.egress;
                    if outbox.has_room(bound.datagrams(), bound.header_len()) {
                        egress::queue(arena, &bound, self.lanes, outbox, &mut self.counters.egress)
                    } else {
                        Verdict::Drop(DropReason::BadOffload)
                    }
                }
                Err(refusal) => egress::refuse(arena, read, refusal, fib, outbox),
            };
            match verdict {
                Verdict::ToUnderlay(_) | Verdict::ToOverlay => {}
                Verdict::Reply(reason) => {
                    self.counters.egress.replies += 1;
                    self.counters.egress.drop(reason, 1);
                }
                Verdict::Drop(reason) => self.counters.egress.drop(reason, 1),
            }
            if self.egress.outbox.full().len() >= full_batch {
                self.send(Send::Full);
            }
        }
        self.send_all();
        worked
    }

    /// Tells control of what the kernel refused since the last call.
    pub(crate) fn report_downgrades(&mut self) {
        let now = self.underlay.counters().downgrades;
        if now != self.downgrades {
            self.downgrades = now;
            self.events.send(Event::UnderlayDowngraded);
        }
    }

    fn send(&mut self, which: Send) {
        let Tunnel { underlay, egress, counters, crypt, .. } = self;
        send(underlay, egress, crypt, which, counters);
    }

    /// Opens what one receive call brought, record by record, each where it stands.
    #[inline]
    fn open(&mut self, received: Received) {
        let Received { mut at, len, segment_size, ecn, source } = received;
        let end = at + len;
        let size = if segment_size == 0 { len } else { u32::from(segment_size) };
        for _ in 0..2 * SEGMENTS_MAX {
            let record = at..at + size.min(end - at);
            self.open_one(record.clone(), source, ecn);
            at = record.end;
            if at >= end {
                return;
            }
        }
        self.counters.ingress.drop(DropReason::TooManySegments, 1);
    }

    #[inline]
    fn open_one(&mut self, record: Range<u32>, source: SocketAddr, ecn: u8) {
        let Tunnel { crypt, ingress, counters, fib, mtu, .. } = self;
        let Some(crypt) = crypt else { return };
        counters.ingress.packets += 1;
        let IngressBuffers { arena, coalescer, .. } = ingress;
        match crypt.open(arena, record, source, ecn, counters) {
            Ok(Some(Opened { peer, packet: (at, len) })) if len > 0 => {
                let packet = Datagrams { at, len, segment_size: 0, ecn };
                ingress::opened(arena, packet, peer, fib.current(), *mtu, coalescer, &mut counters.ingress);
            }
            // A keepalive, or a message that went elsewhere.
            Ok(_) => {}
            Err(reason) => counters.ingress.drop(reason, 1),
        }
    }

    /// Sends what has waited for a session.
    #[cold]
    fn send_staged(&mut self) {
        let Tunnel { underlay, egress, counters, crypt, .. } = self;
        let Some(crypt) = crypt else { return };
        let EgressBuffers { spans, batch, .. } = egress;
        loop {
            spans.clear();
            batch.clear();
            if !crypt.seal_staged(spans, batch) {
                return;
            }
            count(underlay.transmit(crypt.records(), spans, batch), counters);
        }
    }

    /// Opens records that arrived at another worker, as if they had arrived here.
    #[inline]
    fn take_strays(&mut self) -> bool {
        if !self.has_strays() {
            return false;
        }
        // As many as one receive call brings; the rest waits for the next turn.
        for slot in 0..SLOTS {
            let Some(stray) = self.crypt.as_mut().and_then(|crypt| crypt.stray()) else { break };
            if !self.ingress.coalescer.has_room() {
                self.write_runs();
            }
            let (at, len) = (slot * SLOT_LEN, stray.bytes.len().min(SLOT_LEN));
            let Some(place) = self.ingress.arena.get_mut(at..at + len) else { break };
            place.copy_from_slice(&stray.bytes[..len]);
            self.open_one(at as u32..(at + len) as u32, stray.source, stray.ecn);
        }
        self.write_runs();
        true
    }

    fn send_all(&mut self) {
        self.send(Send::All);
        write_replies(&mut self.overlay, &mut self.egress, &mut self.counters);
        self.egress.outbox.clear();
    }

    /// Writes what the coalescer has gathered and empties it.
    fn write_runs(&mut self) {
        let IngressBuffers { arena, coalescer, .. } = &mut self.ingress;
        if coalescer.is_empty() {
            return;
        }
        coalescer.seal(arena);
        let mut joins = self.joins;
        for i in 0..coalescer.runs().len() {
            let run = &coalescer.runs()[i];
            let cut = run.is_super() && !allowed(joins, run.is_tcp());
            if !cut {
                match self.overlay.write(arena, run.spans()) {
                    Ok(()) => {
                        self.counters.ingress.delivered += 1;
                        continue;
                    }
                    // A kernel that does not take this kind of super-packet after all: write the same data
                    // again in pieces, and do not try again.
                    Err(error) if run.is_super() && error.kind() == ErrorKind::InvalidInput => {
                        if run.is_tcp() {
                            joins.tcp = false;
                        } else {
                            joins.udp = false;
                        }
                    }
                    Err(_) => {
                        self.counters.ingress.drop(DropReason::OverlayError, run.segments() as u64);
                        continue;
                    }
                }
            }
            let counters = &mut self.counters.ingress;
            let overlay = &mut self.overlay;
            let summed = coalescer.split(i, arena, |arena, spans| match overlay.write(arena, spans) {
                Ok(()) => counters.delivered += 1,
                Err(_) => counters.drop(DropReason::OverlayError, 1),
            });
            self.counters.ingress.summed_bytes += summed.unwrap_or(0) as u64;
        }
        if joins != self.joins {
            self.joins = joins;
            coalescer.set_joins(joins);
            self.events.send(Event::OverlayDowngraded { tcp: joins.tcp, udp: joins.udp });
        }
        coalescer.clear();
    }
}

fn allowed(joins: Joins, tcp: bool) -> bool {
    if tcp { joins.tcp } else { joins.udp }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Send {
    Full,
    All,
}

/// Hands pending messages to the underlay, sealed where the format seals.
fn send<U: Underlay>(
    underlay: &mut U,
    buffers: &mut EgressBuffers,
    crypt: &mut Option<Box<Crypt>>,
    which: Send,
    counters: &mut Counters,
) {
    match crypt {
        Some(crypt) => send_sealed(underlay, buffers, crypt, which, counters),
        None => send_plain(underlay, buffers, which, counters),
    }
}

/// A bounded batch at a time.
fn send_plain<U: Underlay>(
    underlay: &mut U,
    buffers: &mut EgressBuffers,
    which: Send,
    counters: &mut Counters,
) {
    let EgressBuffers { arena, outbox, spans, batch } = buffers;
    loop {
        let messages: &[Message] = if which == Send::Full { outbox.full() } else { outbox.pending() };
        let messages = &messages[..messages.len().min(BATCH)];
        if messages.is_empty() {
            return;
        }
        spans.clear();
        batch.clear();
        for message in messages {
            batch.push(Transmit {
                to: message.to,
                lane: message.lane,
                first_span: spans.len() as u32,
                span_count: message.spans().len() as u32,
                segment_size: if message.segments > 1 { message.segment_size } else { 0 },
                segments: message.segments,
                ecn: message.ecn,
            });
            spans.extend_from_slice(message.spans());
        }
        // Sends of one source port share a call. A flow has one port, so its order stands.
        batch.sort_unstable_by_key(|transmit| (transmit.lane, transmit.first_span));
        count(underlay.transmit(arena, spans, batch), counters);
        let sent = batch.len();
        outbox.mark_sent(sent);
    }
}

/// As many at a time as there is room for records.
fn send_sealed<U: Underlay>(
    underlay: &mut U,
    buffers: &mut EgressBuffers,
    crypt: &mut Crypt,
    which: Send,
    counters: &mut Counters,
) {
    let EgressBuffers { arena, outbox, spans, batch } = buffers;
    loop {
        let messages: &[Message] = if which == Send::Full { outbox.full() } else { outbox.pending() };
        if messages.is_empty() {
            return;
        }
        spans.clear();
        batch.clear();
        let done = crypt.seal(arena, messages, spans, batch, counters);
        if !batch.is_empty() {
            count(underlay.transmit(crypt.records(), spans, batch), counters);
        }
        // There is always room for one, so this ends.
        outbox.mark_sent(done.max(1));
    }
}

fn count(outcome: TransmitOutcome, counters: &mut Counters) {
    counters.egress.delivered += u64::from(outcome.sent);
    counters.egress.drop(DropReason::UnderlayFull, u64::from(outcome.dropped_full));
    counters.egress.drop(DropReason::UnderlayError, u64::from(outcome.dropped_error));
}

fn write_replies<O: Overlay>(overlay: &mut O, buffers: &mut EgressBuffers, counters: &mut Counters) {
    for reply in buffers.outbox.replies() {
        if overlay.write(&buffers.arena, std::slice::from_ref(reply)).is_err() {
            counters.egress.drop(DropReason::OverlayError, 1);
        }
    }
}
