//! Sends batches of datagrams: runs are joined where the kernel accepts that, and sent one by one elsewhere.

use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::Socket;

use super::address::Address;
use super::control::Control;
use super::{MAX_PAYLOAD, MAX_SEGMENTS};
use crate::port::slice;
use crate::{PeerId, PortCounters, Transmit, TransmitOutcome, sys};

/// Maximum messages in one call.
const MAX_MESSAGES: usize = 64;

/// Maximum vectors in one call, and therefore spans of one transmit: UIO_MAXIOV (linux/uio.h).
const MAX_VECTORS: usize = 1024;

/// Consecutive rejections of joined sends to one peer before its datagrams are sent singly. A rejection may
/// concern one route or one device, so it says nothing about other peers.
const REJECTIONS_MAX: u16 = 8;

/// Runs to a peer that are sent singly before the next one is tried joined, since its route may have changed.
pub(super) const SINGLY: u16 = 1024;

/// Peers whose rejections are counted at a time. Peers with the same slot displace each other.
const SLOTS: usize = 64;

/// Scratch buffers for sending, allocated once.
pub(crate) struct Sender {
    messages: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[Address]>,
    controls: Box<[Control]>,
    staged: Box<[Staged]>,
    segment: bool,
    /// Set by another thread while datagrams must not be joined.
    paused: Arc<AtomicBool>,
    rejections: Rejections,
    mmsg: bool,
    ipv6: bool,
}

// SAFETY: the pointers in `messages` and `vectors` are followed only during the `transmit` call that has just
// set them; they point to memory that the same value owns or that is borrowed for that call.
unsafe impl Send for Sender {}

/// The datagrams that a staged message carries.
#[derive(Clone, Copy, Default)]
struct Staged {
    /// Index in the batch.
    transmit: usize,
    datagrams: u32,
    bytes: u32,
    /// Sent as one message that the kernel segments.
    joined: bool,
}

/// Position in the batch. It lies inside a transmit only if that is sent datagram by datagram.
#[derive(Clone, Copy)]
struct Cursor {
    transmit: usize,
    /// Spans of the transmit that are already staged.
    span: usize,
}

/// The result of sending the staged messages.
enum Flushed {
    /// Every staged message was sent or dropped.
    All,
    /// This transmit must be staged again as single datagrams, and those after it as before.
    RetrySingly(usize),
}

/// The arguments of one `transmit` call.
#[derive(Clone, Copy)]
struct Work<'a> {
    arena: &'a [u8],
    spans: &'a [Range<u32>],
    batch: &'a [Transmit],
    lanes: usize,
}

/// The counts of one `transmit` call.
struct Tally<'a> {
    outcome: TransmitOutcome,
    counters: &'a mut PortCounters,
}

impl Work<'_> {
    /// Returns the index of the socket in the fan that sends `transmit`.
    fn lane(&self, transmit: &Transmit) -> usize {
        usize::from(transmit.lane) % self.lanes
    }
}

/// The peers to which the kernel has rejected joined sends.
#[derive(Default)]
struct Rejections {
    /// Empty until the first rejection.
    slots: Vec<Rejected>,
}

#[derive(Clone, Copy, Default)]
struct Rejected {
    peer: PeerId,
    /// Rejections in a row.
    count: u16,
    /// Runs that are still sent singly.
    singly: u16,
}

impl Rejections {
    /// Whether the next run to `peer` is sent joined.
    #[inline]
    fn allow(&mut self, peer: PeerId) -> bool {
        self.slots.is_empty() || self.allow_some(peer)
    }

    #[cold]
    fn allow_some(&mut self, peer: PeerId) -> bool {
        let Some(slot) = self.slots.get_mut(peer.0 as usize % SLOTS).filter(|slot| slot.peer == peer) else {
            return true;
        };
        slot.singly = slot.singly.saturating_sub(1);
        slot.singly == 0
    }

    /// Counts a rejection. Returns whether the peer's datagrams are sent singly from now on.
    #[cold]
    fn add(&mut self, peer: PeerId) -> bool {
        self.slots.resize(SLOTS, Rejected::default());
        let slot = &mut self.slots[peer.0 as usize % SLOTS];
        if slot.peer != peer {
            *slot = Rejected { peer, ..Rejected::default() };
        }
        slot.count = (slot.count + 1).min(REJECTIONS_MAX);
        if slot.count == REJECTIONS_MAX {
            slot.singly = SINGLY;
        }
        slot.count == REJECTIONS_MAX
    }

    /// Forgets the rejections of a peer that has accepted a joined send.
    #[inline]
    fn forget(&mut self, peer: PeerId) {
        if let Some(slot) = self.slots.get_mut(peer.0 as usize % SLOTS)
            && slot.peer == peer
        {
            *slot = Rejected { peer, ..Rejected::default() };
        }
    }
}

impl Sender {
    pub(crate) fn new(segment: bool, mmsg: bool, ipv6: bool) -> Sender {
        // SAFETY: an mmsghdr consists of integers and pointers, for which zero is valid.
        let message: libc::mmsghdr = unsafe { mem::zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Sender {
            messages: vec![message; MAX_MESSAGES].into(),
            vectors: vec![vector; MAX_VECTORS].into(),
            addresses: vec![Address::empty(); MAX_MESSAGES].into(),
            controls: vec![Control::empty(); MAX_MESSAGES].into(),
            staged: vec![Staged::default(); MAX_MESSAGES].into(),
            segment,
            paused: Arc::default(),
            rejections: Rejections::default(),
            mmsg,
            ipv6,
        }
    }

    /// Sends datagrams singly while `paused` is set.
    pub(super) fn pause_by(&mut self, paused: &Arc<AtomicBool>) {
        self.paused = Arc::clone(paused);
    }

    pub(super) fn segment(&self) -> bool {
        self.segment
    }

    pub(crate) fn mmsg(&self) -> bool {
        self.mmsg
    }

    pub(super) fn stop_batching(&mut self) {
        self.mmsg = false;
    }

    /// Implements [`crate::Underlay::transmit`]. `sockets` is the fan and is never empty.
    pub(crate) fn transmit(
        &mut self,
        sockets: &[Socket],
        arena: &[u8],
        spans: &[Range<u32>],
        batch: &[Transmit],
        counters: &mut PortCounters,
    ) -> TransmitOutcome {
        let work = Work { arena, spans, batch, lanes: sockets.len().max(1) };
        let mut tally = Tally { outcome: TransmitOutcome::default(), counters };
        let mut at = Cursor { transmit: 0, span: 0 };
        let mut singly = None;
        while let Some(next) = batch.get(at.transmit) {
            let Some(socket) = sockets.get(work.lane(next)) else { break };
            let (after, count) = self.stage(work, at, singly, &mut tally);
            at = match self.flush(socket.as_fd(), work, count, &mut tally) {
                Flushed::All => after,
                Flushed::RetrySingly(transmit) => {
                    singly = Some(transmit);
                    Cursor { transmit, span: 0 }
                }
            };
        }
        tally.outcome
    }

    /// Stages messages from `at` on, as many as fit one call and share the first one's lane. Returns where
    /// the next call continues and the number of staged messages. Drops invalid transmits.
    fn stage(
        &mut self,
        work: Work<'_>,
        mut at: Cursor,
        singly: Option<usize>,
        tally: &mut Tally<'_>,
    ) -> (Cursor, usize) {
        let (mut count, mut vectors) = (0, 0);
        let lane = work.batch.get(at.transmit).map(|first| work.lane(first));
        let paused = self.paused.load(Ordering::Relaxed);
        while let Some(transmit) = work.batch.get(at.transmit) {
            if count == MAX_MESSAGES || Some(work.lane(transmit)) != lane {
                break;
            }
            let Some((own, bytes)) = self.validate(work, transmit, at) else {
                tally.outcome.dropped_error += u32::from(transmit.segments.max(1));
                tally.counters.errors += 1;
                at = Cursor { transmit: at.transmit + 1, span: 0 };
                continue;
            };
            let several = transmit.segment_size > 0 && transmit.segments > 1;
            let joined = several
                && self.segment
                && !paused
                && at.span == 0
                && singly != Some(at.transmit)
                && self.rejections.allow(transmit.peer);
            let (take, bytes, datagrams) = if joined || !several {
                (own.len(), bytes, u32::from(transmit.segments.max(1)))
            } else {
                let (take, bytes) = first_datagram(&own[at.span..], transmit.segment_size);
                (take, bytes, 1)
            };
            if vectors + take > MAX_VECTORS {
                break;
            }
            let staged = Staged { transmit: at.transmit, datagrams, bytes, joined };
            self.fill(count, vectors, work.arena, &own[at.span..at.span + take], transmit, staged);
            count += 1;
            vectors += take;
            at.span += take;
            if at.span == own.len() {
                at = Cursor { transmit: at.transmit + 1, span: 0 };
            }
        }
        (at, count)
    }

    /// Returns a transmit's spans and their total length, or `None` if it cannot be sent. Checks each
    /// transmit once, when the cursor enters it.
    #[inline]
    fn validate<'a>(
        &self,
        work: Work<'a>,
        transmit: &Transmit,
        at: Cursor,
    ) -> Option<(&'a [Range<u32>], u32)> {
        let first = transmit.first_span as usize;
        let own = work.spans.get(first..first.checked_add(transmit.span_count as usize)?)?;
        if at.span > 0 {
            return Some((own, 0));
        }
        if own.len() > MAX_VECTORS || own.is_empty() || transmit.to.is_ipv6() != self.ipv6 {
            return None;
        }
        let several = transmit.segment_size > 0 && transmit.segments > 1;
        let segment_size = if several { usize::from(transmit.segment_size) } else { usize::MAX };
        let (mut total, mut open, mut closed) = (0, 0, 0);
        for span in own {
            let len = slice(work.arena, span)?.len();
            total += len;
            open += len;
            if open > segment_size || total > MAX_PAYLOAD {
                return None;
            }
            if open == segment_size {
                (open, closed) = (0, closed + 1);
            }
        }
        let datagrams = closed + usize::from(open > 0);
        let valid = !several || (datagrams == usize::from(transmit.segments) && datagrams <= MAX_SEGMENTS);
        valid.then_some((own, total as u32))
    }

    /// Fills message `index`, with its vectors from `first` on. The spans are already validated.
    #[inline]
    fn fill(
        &mut self,
        index: usize,
        first: usize,
        arena: &[u8],
        spans: &[Range<u32>],
        transmit: &Transmit,
        staged: Staged,
    ) {
        let vectors = &mut self.vectors[first..first + spans.len()];
        for (vector, span) in vectors.iter_mut().zip(spans) {
            let bytes = slice(arena, span).unwrap_or_default();
            *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        }
        let address = &mut self.addresses[index];
        let control = &mut self.controls[index];
        let segment_size = if staged.joined { transmit.segment_size } else { 0 };
        let control_len = control.set(segment_size, transmit.ecn, self.ipv6);
        let header = &mut self.messages[index].msg_hdr;
        header.msg_namelen = address.set(&transmit.to);
        header.msg_name = (&raw mut *address).cast();
        header.msg_iov = vectors.as_mut_ptr();
        header.msg_iovlen = vectors.len() as _;
        header.msg_control =
            if control_len == 0 { std::ptr::null_mut() } else { control.as_mut_ptr().cast() };
        header.msg_controllen = control_len as _;
        header.msg_flags = 0;
        self.staged[index] = staged;
    }

    /// Sends the first `count` messages, in order.
    fn flush(&mut self, fd: BorrowedFd<'_>, work: Work<'_>, count: usize, tally: &mut Tally<'_>) -> Flushed {
        let Tally { outcome, counters } = tally;
        let mut base = 0;
        let mut retried = None;
        while base < count {
            counters.write_calls += 1;
            let answer = if self.mmsg && count - base > 1 {
                // SAFETY: `fill` has just pointed these messages at the borrowed arena and at `self`'s
                // buffers.
                unsafe { sys::send_many(fd, &mut self.messages[base..count]) }
            } else {
                // SAFETY: as above, for one message.
                unsafe { sys::send_one(fd, &self.messages[base].msg_hdr) }.map(|_| 1)
            };
            let error = match answer {
                Ok(sent) => {
                    for staged in &self.staged[base..base + sent] {
                        if staged.joined
                            && let Some(transmit) = work.batch.get(staged.transmit)
                        {
                            self.rejections.forget(transmit.peer);
                        }
                        counters.writes += 1;
                        counters.write_datagrams += u64::from(staged.datagrams);
                        counters.write_bytes += u64::from(staged.bytes);
                        outcome.sent += staged.datagrams;
                    }
                    base += sent;
                    continue;
                }
                Err(error) => error.raw_os_error().unwrap_or(0),
            };
            let failed = self.staged[base];
            let to = work.batch.get(failed.transmit).map(|transmit| (transmit.peer, transmit.to));
            match error {
                libc::EINTR => {}
                libc::ENOSYS if self.mmsg => {
                    self.mmsg = false;
                    counters.downgrades += 1;
                }
                // The socket's send buffer is full; the remaining messages would fail as well.
                libc::EAGAIN => {
                    for staged in &self.staged[base..count] {
                        counters.write_full += u64::from(staged.datagrams);
                        outcome.dropped_full += staged.datagrams;
                    }
                    return Flushed::All;
                }
                // The device's queue is full; the next message may use another device.
                libc::ENOBUFS => {
                    counters.write_full += u64::from(failed.datagrams);
                    outcome.dropped_full += failed.datagrams;
                    base += 1;
                }
                // EIO: the route's device cannot complete checksums (net/ipv4/udp.c udp_send_skb). EINVAL:
                // the kernel or device accepted the option but rejects the packet; before Linux 6.14 also a
                // datagram above the route's MTU.
                libc::EIO | libc::EINVAL if failed.joined => {
                    if let Some((peer, _)) = to
                        && self.rejections.add(peer)
                    {
                        counters.downgrades += 1;
                    }
                    if error == libc::EINVAL {
                        outcome.too_big = to;
                    }
                    counters.resent += u64::from(failed.datagrams);
                    return Flushed::RetrySingly(failed.transmit);
                }
                // A datagram exceeds the route's MTU; the kernel fragments it when it is sent singly.
                libc::EMSGSIZE if failed.joined => {
                    outcome.too_big = to;
                    counters.resent += u64::from(failed.datagrams);
                    return Flushed::RetrySingly(failed.transmit);
                }
                // The error may be an ICMP error for an earlier datagram. The kernel reports that once, so
                // retrying sends the current datagram.
                libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                    if retried != Some(base) =>
                {
                    retried = Some(base);
                }
                _ => {
                    if error == libc::EMSGSIZE {
                        outcome.too_big = to;
                    }
                    counters.errors += 1;
                    outcome.dropped_error += failed.datagrams;
                    base += 1;
                }
            }
        }
        Flushed::All
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("segment", &self.segment)
            .field("mmsg", &self.mmsg)
            .finish_non_exhaustive()
    }
}

/// Returns the number of spans and bytes of the first datagram. The spans are validated: a datagram ends at
/// the end of a span. Empty spans that follow belong to it; at the end of a run they must not form another
/// datagram.
fn first_datagram(spans: &[Range<u32>], segment_size: u16) -> (usize, u32) {
    let (mut count, mut bytes) = (0, 0);
    for span in spans {
        let len = span.end - span.start;
        if bytes >= u32::from(segment_size) && len > 0 {
            break;
        }
        bytes += len;
        count += 1;
    }
    (count, bytes)
}
