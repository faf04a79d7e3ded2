//! One worker's part of a WireGuard tunnel: sealing and opening records.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;
use io::Transmit;
use path::outbox::{MESSAGES, Outbox, SEGMENTS_MAX};
use path::space::{bytes, bytes_mut};
use path::wireguard::session::{Millis, OVERHEAD, Standing};
use path::wireguard::{Gate, Pulse, Session, SessionIndex, Window};
use path::{Counters, Direction, DropReason, PeerId, WorkerIndex};
use wire::wireguard::{self, HEADER_LEN, Kind, PADDING};

use super::Shared;
use super::awaited::Awaited;
use super::budget::{Budget, Kept};
use super::mail::{FromWorker, Mailbox, Message, Stray, ToWorker};
use crate::clock::Clock;

/// Space for the sealed messages of one call: eight full ones.
const RECORDS: usize = 1 << 19;
/// Maximum packets that wait for a peer's session, as in the kernel (MAX_STAGED_PACKETS,
/// drivers/net/wireguard/messages.h).
const STAGED: usize = 128;
/// Minimum interval between reports to the keeper that a peer has a new address.
const REPORT_INTERVAL: Millis = 100;
/// Minimum interval between requests for a session with a peer that has none.
const REQUEST_INTERVAL: Millis = 1_000;
/// Maximum senders of unknown sessions reported to the keeper per request interval: enough for dozens of
/// peers to return, few enough that a flood from forged addresses does not keep the keeper busy.
const STRANGERS: usize = 256;

/// A worker's sessions and peers.
pub(crate) struct Crypt {
    worker: WorkerIndex,
    mtu: usize,
    clock: Clock,
    now: Millis,
    mailbox: Arc<Mailbox>,
    gate: Gate,
    to_keeper: Sender<FromWorker>,
    handshakes: Sender<Message>,
    cookies: Sender<Message>,
    awaited: Arc<Awaited>,
    to_others: Sender<Stray>,
    waiting: Budget,
    astray: Budget,
    peers: HashMap<PeerId, PeerState>,
    inbound: HashMap<SessionIndex, Inbound>,
    /// The buffer for records.
    records: Box<[u8]>,
    /// The records of one call, as spans of `records`.
    batch: Vec<Transmit>,
    spans: Vec<Range<u32>>,
    strays: VecDeque<Stray>,
    /// Peers with waiting packets that have a session now.
    unblocked: Vec<PeerId>,
    /// Senders of unknown sessions that were reported to the keeper since `strangers_since`.
    strangers: HashSet<SocketAddr>,
    strangers_since: Millis,
}

/// A worker's state of a peer.
struct PeerState {
    endpoint: Option<SocketAddr>,
    /// The endpoint that was last reported to the keeper.
    reported: Option<SocketAddr>,
    reported_at: Option<Millis>,
    pulse: Arc<Pulse>,
    session: Option<Arc<Session>>,
    staged: VecDeque<Kept>,
    /// When a session was last requested.
    requested: Option<Millis>,
    /// Whether the keeper will report a session, or give up. Packets wait for that only.
    awaiting: bool,
}

/// A session for receiving.
struct Inbound {
    session: Arc<Session>,
    /// The replay window, created by the worker that owns the session.
    window: Option<Box<Window>>,
    /// Whether the peer has proved that it has the session.
    confirmed: bool,
}

/// An opened record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    /// The peer that sealed it.
    pub(crate) peer: PeerId,
    /// Offset and length of the packet in the arena; empty for a keepalive.
    pub(crate) packet: (u32, u32),
}

/// Sealed records that are ready to be sent.
pub(crate) struct Sealed<'c> {
    pub(crate) records: &'c [u8],
    pub(crate) spans: &'c [Range<u32>],
    pub(crate) batch: &'c [Transmit],
}

impl Crypt {
    /// Creates one worker's part. Packets are padded to at most `mtu`.
    pub(crate) fn new(shared: &Shared, worker: WorkerIndex, mtu: u16) -> Crypt {
        Crypt {
            worker,
            mtu: usize::from(mtu),
            clock: shared.clock.clone(),
            now: shared.clock.now(),
            mailbox: Arc::clone(&shared.mailboxes[worker.place()]),
            gate: shared.gate.clone(),
            to_keeper: shared.from_worker.0.clone(),
            handshakes: shared.handshakes.0.clone(),
            cookies: shared.cookies.0.clone(),
            awaited: Arc::clone(&shared.awaited),
            to_others: shared.strays.0.clone(),
            waiting: shared.waiting.clone(),
            astray: shared.astray.clone(),
            peers: HashMap::new(),
            inbound: HashMap::new(),
            records: vec![0; RECORDS].into_boxed_slice(),
            batch: Vec::with_capacity(MESSAGES),
            spans: Vec::with_capacity(MESSAGES * usize::from(SEGMENTS_MAX)),
            strays: VecDeque::new(),
            unblocked: Vec::new(),
            strangers: HashSet::with_capacity(STRANGERS),
            strangers_since: 0,
        }
    }

    /// Returns the maximum number of bytes by which sealing makes a packet longer.
    pub(crate) const fn overhead() -> u32 {
        (OVERHEAD + PADDING - 1) as u32
    }

    /// Reads the clock and processes the keeper's mail.
    #[inline]
    pub(crate) fn refresh(&mut self, counters: &mut Counters) {
        self.now = self.clock.now();
        if self.mailbox.is_full() {
            self.take_mail(counters);
        }
    }

    /// Whether waiting packets now have a session; see [`Crypt::seal_staged`].
    #[inline]
    pub(crate) fn has_unblocked(&self) -> bool {
        !self.unblocked.is_empty()
    }

    /// Whether there is mail from the keeper.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.mailbox.is_full()
    }

    #[cold]
    fn take_mail(&mut self, counters: &mut Counters) {
        let mut gone = HashSet::new();
        for mail in self.mailbox.take() {
            match mail {
                ToWorker::Peer(id, endpoint, pulse) => {
                    let new = || PeerState {
                        endpoint,
                        reported: endpoint,
                        reported_at: None,
                        pulse: Arc::clone(&pulse),
                        session: None,
                        staged: VecDeque::new(),
                        requested: None,
                        awaiting: false,
                    };
                    let peer = self.peers.entry(id).or_insert_with(new);
                    (peer.endpoint, peer.reported) = (endpoint, endpoint);
                    if peer.session.is_some() && !peer.staged.is_empty() {
                        self.unblocked.push(id);
                    }
                }
                ToWorker::Gone(id) => {
                    let staged = self.peers.remove(&id).map_or(0, |peer| peer.staged.len());
                    counters.egress.drop(DropReason::WgNoSession, staged as u64);
                    gone.insert(id);
                }
                ToWorker::Session(session, send) => {
                    let inbound = self.inbound.entry(session.local).or_insert_with(|| Inbound {
                        session: Arc::clone(&session),
                        window: None,
                        confirmed: false,
                    });
                    inbound.confirmed |= send;
                    if send && let Some(peer) = self.peers.get_mut(&session.peer) {
                        if !peer.staged.is_empty() {
                            self.unblocked.push(session.peer);
                        }
                        (peer.session, peer.awaiting) = (Some(session), false);
                    }
                }
                ToWorker::Forget(index) => {
                    if let Some(inbound) = self.inbound.remove(&index)
                        && let Some(peer) = self.peers.get_mut(&inbound.session.peer)
                    {
                        peer.session.take_if(|session| session.local == index);
                    }
                }
                ToWorker::GiveUp(id) => {
                    let staged = self.peers.get_mut(&id).map_or(0, |peer| {
                        peer.awaiting = false;
                        std::mem::take(&mut peer.staged).len()
                    });
                    counters.egress.drop(DropReason::WgNoSession, staged as u64);
                }
                ToWorker::Stray(stray) => self.strays.push_back(stray),
                ToWorker::Dropped(reason, count) => counters.ingress.drop(reason, count),
            }
        }
        // One pass for all removed peers.
        if !gone.is_empty() {
            self.inbound.retain(|_, inbound| !gone.contains(&inbound.session.peer));
        }
    }

    /// Seals the `count` oldest messages of the outbox, as many as fit, and returns how many were processed.
    /// Keeps packets without a session until there is one. [`Crypt::sealed`] returns the records.
    pub(crate) fn seal(
        &mut self,
        arena: &[u8],
        outbox: &Outbox,
        count: usize,
        counters: &mut Counters,
    ) -> usize {
        self.spans.clear();
        self.batch.clear();
        let mut at = 0;
        for (done, message) in outbox.pending().iter().take(count).enumerate() {
            let grown = u32::from(message.segments) * (u32::from(message.segment_size) + Crypt::overhead());
            if at + grown as usize > self.records.len() || self.batch.len() == self.batch.capacity() {
                return done;
            }
            let Some(peer) = self.peers.get_mut(&message.peer) else {
                counters.egress.drop(DropReason::WgNoSession, u64::from(message.segments));
                continue;
            };
            let packets = Packets { spans: outbox.spans_of(message), size: u32::from(message.segment_size) };
            let Some((session, to)) = usable_session(peer, message.peer, self.now, &self.to_keeper) else {
                stage(peer, arena, packets, &self.waiting, &mut counters.egress);
                continue;
            };
            let first_span = self.spans.len() as u32;
            let mut counter = session.take_counters(u64::from(message.segments));
            let start = at;
            let mut size = 0;
            for packet in packets {
                let room = at + HEADER_LEN;
                let mut end = room;
                for span in packet {
                    let piece = bytes(arena, &span);
                    if let Some(place) = self.records.get_mut(end..end + piece.len()) {
                        place.copy_from_slice(piece);
                    }
                    end += piece.len();
                }
                let Some(len) = session.seal(&mut self.records[at..], end - room, self.mtu, counter) else {
                    counters.egress.drop(DropReason::BadOffload, 1);
                    continue;
                };
                size = size.max(len);
                self.spans.push(at as u32..(at + len) as u32);
                counter += 1;
                at += len;
            }
            let segments = (self.spans.len() as u32 - first_span) as u16;
            self.batch.push(Transmit {
                to,
                lane: 0,
                first_span,
                span_count: u32::from(segments),
                segment_size: size as u16,
                segments,
                ..*message
            });
            if peer.pulse.note_sent(self.now, true, (at - start) as u64)
                && self.to_keeper.try_send(FromWorker::Sent(message.peer)).is_err()
            {
                peer.pulse.retry_sent();
            }
        }
        count
    }

    /// Seals packets that have waited for a session, as many as fit, one per transmit. Returns whether there
    /// were any. [`Crypt::sealed`] returns the records.
    pub(crate) fn seal_staged(&mut self) -> bool {
        self.spans.clear();
        self.batch.clear();
        let mut at = 0;
        while let Some(id) = self.unblocked.last().copied() {
            while let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.staged.is_empty()) {
                let Some((session, to)) = usable_session(peer, id, self.now, &self.to_keeper) else { break };
                let len = peer.staged.front().map_or(0, |packet| packet.len());
                if at + len + Crypt::overhead() as usize > self.records.len()
                    || self.batch.len() == self.batch.capacity()
                {
                    return true;
                }
                let Some(packet) = peer.staged.pop_front() else { break };
                self.records[at + HEADER_LEN..at + HEADER_LEN + len].copy_from_slice(&packet);
                let counter = session.take_counters(1);
                let Some(size) = session.seal(&mut self.records[at..], len, self.mtu, counter) else {
                    continue;
                };
                let first_span = self.spans.len() as u32;
                self.spans.push(at as u32..(at + size) as u32);
                self.batch.push(Transmit {
                    to,
                    peer: id,
                    lane: 0,
                    first_span,
                    span_count: 1,
                    segment_size: 0,
                    segments: 1,
                    ecn: 0,
                });
                at += size;
                if peer.pulse.note_sent(self.now, true, size as u64)
                    && self.to_keeper.try_send(FromWorker::Sent(id)).is_err()
                {
                    peer.pulse.retry_sent();
                }
            }
            if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.staged.is_empty()) {
                // Returns the memory of the queue.
                peer.staged = VecDeque::new();
            }
            self.unblocked.pop();
        }
        !self.batch.is_empty()
    }

    /// Returns the records of the last sealing call.
    #[inline]
    pub(crate) fn sealed(&self) -> Sealed<'_> {
        Sealed { records: &self.records, spans: &self.spans, batch: &self.batch }
    }

    /// Opens the message at `span` in place. Returns `None` if the message was forwarded to the keeper.
    #[inline]
    pub(crate) fn open(
        &mut self,
        arena: &mut [u8],
        span: Range<u32>,
        source: SocketAddr,
        ecn: u8,
        counters: &mut Counters,
    ) -> Result<Option<Opened>, DropReason> {
        let record = bytes_mut(arena, &span);
        let header = match Kind::parse(record).map_err(|_| DropReason::WgMalformed)? {
            Kind::Data(header) => header,
            Kind::Handshake => return self.hand_over(source, record).map(|()| None),
        };
        let index = SessionIndex(header.receiver);
        // The session may have been created since the turn began.
        if self.mailbox.is_full() && !self.inbound.contains_key(&index) {
            self.take_mail(counters);
        }
        let Some(inbound) = self.inbound.get_mut(&index) else {
            self.report_stranger(source);
            return Err(DropReason::WgUnknownSession);
        };
        let owner = inbound.session.owner();
        if let Some(owner) = owner.filter(|owner| *owner != self.worker) {
            return self.pass_on(owner, source, ecn, record).map(|()| None);
        }
        let id = inbound.session.peer;
        if inbound.session.has_expired(self.now) {
            return Err(DropReason::WgExpired);
        }
        let len = inbound.session.open(record, header.counter).ok_or(DropReason::WgForged)?;
        // If two workers open a first record at the same moment, the other one may have claimed the window.
        let ours = owner.is_some() || inbound.session.claim(self.worker);
        if !ours || !inbound.window.get_or_insert_default().accept(header.counter) {
            return Err(DropReason::WgReplay);
        }
        if inbound.session.is_rekey_due(self.now) && self.to_keeper.try_send(FromWorker::Want(id)).is_err() {
            inbound.session.retry_rekey();
        }
        let peer = self.peers.get_mut(&id).ok_or(DropReason::WgUnknownSession)?;
        // A session, or the address that was missing.
        if (!inbound.confirmed || peer.endpoint.is_none()) && !peer.staged.is_empty() {
            self.unblocked.push(id);
        }
        if !inbound.confirmed {
            (peer.session, peer.awaiting) = (Some(Arc::clone(&inbound.session)), false);
            // If the channel is full, the next record confirms it.
            inbound.confirmed = self.to_keeper.try_send(FromWorker::Confirmed(id, index)).is_ok();
        }
        peer.endpoint = Some(source);
        // A peer that alternates between two addresses must not keep the keeper busy.
        if peer.reported != peer.endpoint
            && peer.reported_at.is_none_or(|then| self.now >= then + REPORT_INTERVAL)
            && self.to_keeper.try_send(FromWorker::Roamed(id, source)).is_ok()
        {
            (peer.reported, peer.reported_at) = (peer.endpoint, Some(self.now));
        }
        if peer.pulse.note_received(self.now, len > 0, u64::from(span.end - span.start))
            && self.to_keeper.try_send(FromWorker::Received(id)).is_err()
        {
            peer.pulse.retry_received();
        }
        let at = span.start + HEADER_LEN as u32;
        Ok(Some(Opened { peer: id, packet: (at, len as u32) }))
    }

    /// Reports the sender of an unknown session to the keeper. It may be a peer that does not know that this
    /// node has restarted.
    #[cold]
    fn report_stranger(&mut self, source: SocketAddr) {
        if self.now >= self.strangers_since + REQUEST_INTERVAL {
            self.strangers_since = self.now;
            self.strangers.clear();
        }
        if self.strangers.len() < STRANGERS && self.strangers.insert(source) {
            let _ = self.to_keeper.try_send(FromWorker::Unknown(source));
        }
    }

    /// Passes a handshake message to the keeper, unless it is not for this node, or answers no message of
    /// this node. Cookie replies have a channel of their own, because they can be forged without any key.
    fn hand_over(&self, source: SocketAddr, bytes: &[u8]) -> Result<(), DropReason> {
        let answered = wireguard::answered(bytes).map(SessionIndex);
        if answered.is_some_and(|index| !self.awaited.contains(index)) || !self.gate.admits(bytes) {
            return Err(DropReason::WgStranger);
        }
        let is_cookie = bytes.first() == Some(&wireguard::COOKIE);
        let channel = if is_cookie { &self.cookies } else { &self.handshakes };
        let message = Message { source, bytes: Box::from(bytes) };
        channel.try_send(message).map_err(|_| DropReason::WgBusy)
    }

    /// Passes a record to the worker that opens its session's records. Anyone who has seen the session's
    /// index can forge such records, so what is kept of them is bounded.
    #[cold]
    fn pass_on(
        &self,
        owner: WorkerIndex,
        source: SocketAddr,
        ecn: u8,
        record: &[u8],
    ) -> Result<(), DropReason> {
        if record.len() > self.mtu + Crypt::overhead() as usize {
            return Err(DropReason::WgTooLong);
        }
        let bytes = self.astray.keep([record].into_iter()).ok_or(DropReason::WgBusy)?;
        let stray = Stray { owner, source, ecn, bytes };
        self.to_others.try_send(stray).map_err(|_| DropReason::WgBusy)
    }

    /// Takes the oldest record that arrived at another worker.
    pub(crate) fn stray(&mut self) -> Option<Stray> {
        self.strays.pop_front().inspect(|_| self.mailbox.stray_taken())
    }

    /// Whether [`Crypt::stray`] has any.
    #[inline]
    pub(crate) fn has_stray(&self) -> bool {
        !self.strays.is_empty()
    }
}

/// Returns a peer's session and address for sending, if there are any. Requests a new session if one is due.
#[inline]
fn usable_session(
    peer: &mut PeerState,
    id: PeerId,
    now: Millis,
    to_keeper: &Sender<FromWorker>,
) -> Option<(Arc<Session>, SocketAddr)> {
    let standing = peer.session.as_ref().map_or(Standing::Expired, |session| session.send_standing(now));
    let requested = peer.requested.is_some_and(|then| now < then + REQUEST_INTERVAL);
    if standing == Standing::Rekey || (standing == Standing::Expired && !requested) {
        let delivered = to_keeper.try_send(FromWorker::Want(id)).is_ok();
        peer.requested = delivered.then_some(now);
        peer.awaiting |= delivered;
        if !delivered && let Some(session) = &peer.session {
            session.retry_rekey();
        }
    }
    if standing == Standing::Expired {
        return None;
    }
    let both = peer.session.clone().zip(peer.endpoint);
    if both.is_none() {
        // The session is there, and the mail with the address is on its way.
        peer.awaiting = true;
    }
    both
}

/// Keeps packets until there is a session, as far as there is room. A peer's new packets displace its old
/// ones, as in the kernel, but not those of other peers.
#[cold]
fn stage(
    peer: &mut PeerState,
    arena: &[u8],
    packets: Packets<'_>,
    budget: &Budget,
    counters: &mut Direction,
) {
    for packet in packets {
        if !peer.awaiting {
            counters.drop(DropReason::WgNoSession, 1);
            continue;
        }
        if peer.staged.len() == STAGED {
            peer.staged.pop_front();
            counters.drop(DropReason::WgNoSession, 1);
        }
        let pieces = packet.map(|span| bytes(arena, &span));
        let mut kept = budget.keep(pieces.clone());
        while kept.is_none() && peer.staged.pop_front().is_some() {
            counters.drop(DropReason::WgWaitingFull, 1);
            kept = budget.keep(pieces.clone());
        }
        counters.drop(DropReason::WgWaitingFull, u64::from(kept.is_none()));
        peer.staged.extend(kept);
    }
}

/// Iterates over the packets of a message, each as its spans.
struct Packets<'a> {
    spans: &'a [Range<u32>],
    size: u32,
}

impl<'a> Iterator for Packets<'a> {
    type Item = std::iter::Cloned<std::slice::Iter<'a, Range<u32>>>;

    /// Returns the next packet. All but the last have the size of the first, and each begins with a new span.
    fn next(&mut self) -> Option<Self::Item> {
        let mut len = 0;
        let count = self.spans.iter().take_while(|span| {
            let more = len < self.size;
            len += span.end - span.start;
            more
        });
        let (packet, rest) = self.spans.split_at(count.count());
        self.spans = rest;
        (!packet.is_empty()).then(|| packet.iter().cloned())
    }
}

#[cfg(test)]
mod tests;
