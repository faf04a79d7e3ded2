//! One worker's part in a WireGuard tunnel: seals what leaves, opens what comes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;
use io::Transmit;
use path::outbox::Message;
use path::space::{bytes, bytes_mut};
use path::wireguard::session::{Millis, OVERHEAD, Standing};
use path::wireguard::{Gate, Pulse, Session, Window};
use path::{Counters, DropReason};
use wire::wireguard::{HEADER_LEN, Kind, PADDING};

use super::mail::{Arrival, Event, Mailbox, Stray, Update};
use super::{Clock, Parts};

/// Room for sealed messages of one call: eight full ones.
const RECORDS: usize = 1 << 19;
/// Packets kept for a peer while there is no session, as many as the kernel keeps
/// (MAX_STAGED_PACKETS, drivers/net/wireguard/messages.h).
const STAGED: usize = 128;
/// The keeper hears of a peer's moves so often at most.
const TELL_EVERY: Millis = 100;
/// A peer without a session is asked for so often.
const ASK_EVERY: Millis = 1_000;
/// Senders of unknown sessions of whom the keeper hears in that time: enough for peers to come back by the dozen, few
/// enough that a flood from made-up addresses keeps nobody busy.
const STRANGERS: usize = 256;

/// A worker's sessions and peers.
pub(crate) struct Crypt {
    worker: u32,
    mtu: usize,
    clock: Clock,
    now: Millis,
    mailbox: Arc<Mailbox>,
    gate: Gate,
    events: Sender<Event>,
    arrivals: Sender<Arrival>,
    peers: HashMap<u32, Slot>,
    inbound: HashMap<u32, Inbound>,
    /// Where records are made, and where strays are opened.
    records: Box<[u8]>,
    strays: VecDeque<Stray>,
    /// Peers for whose session packets have waited, and it is there.
    freed: Vec<u32>,
    /// Who has sent records of no session since then, as far as the keeper has heard of it.
    strangers: HashSet<SocketAddr>,
    strangers_since: Millis,
}

struct Slot {
    endpoint: Option<SocketAddr>,
    /// What the keeper knows of it, and when it was told.
    told: Option<SocketAddr>,
    told_at: Option<Millis>,
    pulse: Arc<Pulse>,
    session: Option<Arc<Session>>,
    staged: VecDeque<Box<[u8]>>,
    /// When a session was last asked for.
    asked: Option<Millis>,
}

struct Inbound {
    session: Arc<Session>,
    /// Made by the worker that owns the session.
    window: Option<Box<Window>>,
    /// The peer has proved that it has the session too.
    confirmed: bool,
}

/// A record that was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    /// Whose it is.
    pub(crate) peer: u32,
    /// Where the packet is in the arena; empty for a keepalive.
    pub(crate) packet: (u32, u32),
}

impl Crypt {
    /// The part of worker number `worker`; packets are padded to no more than `mtu`.
    pub(crate) fn new(parts: &Parts, worker: usize, mtu: u16) -> Crypt {
        Crypt {
            worker: worker as u32,
            mtu: usize::from(mtu),
            clock: parts.clock,
            now: parts.clock.now(),
            mailbox: Arc::clone(&parts.mailboxes[worker]),
            gate: parts.gate.clone(),
            events: parts.events.0.clone(),
            arrivals: parts.arrivals.0.clone(),
            peers: HashMap::new(),
            inbound: HashMap::new(),
            records: vec![0; RECORDS].into_boxed_slice(),
            strays: VecDeque::new(),
            freed: Vec::new(),
            strangers: HashSet::with_capacity(STRANGERS),
            strangers_since: 0,
        }
    }

    /// Bytes by which a packet may grow.
    pub(crate) const fn overhead() -> u32 {
        (OVERHEAD + PADDING - 1) as u32
    }

    /// Looks at the clock, and at what the keeper has sent. `true` if packets were waiting for a session that is there now:
    /// see [`Crypt::seal_staged`].
    #[inline]
    pub(crate) fn refresh(&mut self, counters: &mut Counters) -> bool {
        self.now = self.clock.now();
        if self.mailbox.is_full() {
            self.take_updates(counters);
        }
        !self.freed.is_empty()
    }

    /// Whether the keeper has sent anything.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.mailbox.is_full()
    }

    #[cold]
    fn take_updates(&mut self, counters: &mut Counters) {
        let mut gone = HashSet::new();
        for update in self.mailbox.take() {
            match update {
                Update::Peer(id, endpoint, pulse) => {
                    let new = || Slot {
                        endpoint,
                        told: endpoint,
                        told_at: None,
                        pulse: Arc::clone(&pulse),
                        session: None,
                        staged: VecDeque::new(),
                        asked: None,
                    };
                    let slot = self.peers.entry(id).or_insert_with(new);
                    (slot.endpoint, slot.told) = (endpoint, endpoint);
                }
                Update::Gone(id) => {
                    let staged = self.peers.remove(&id).map_or(0, |slot| slot.staged.len());
                    counters.egress.drop(DropReason::WgNoSession, staged as u64);
                    gone.insert(id);
                }
                Update::Session(session, send) => {
                    let inbound = self.inbound.entry(session.local).or_insert_with(|| Inbound {
                        session: Arc::clone(&session),
                        window: None,
                        confirmed: false,
                    });
                    inbound.confirmed |= send;
                    if send && let Some(slot) = self.peers.get_mut(&session.peer) {
                        if !slot.staged.is_empty() {
                            self.freed.push(session.peer);
                        }
                        slot.session = Some(session);
                    }
                }
                Update::Forget(name) => {
                    if let Some(inbound) = self.inbound.remove(&name)
                        && let Some(slot) = self.peers.get_mut(&inbound.session.peer)
                    {
                        slot.session.take_if(|session| session.local == name);
                    }
                }
                Update::GiveUp(id) => {
                    let staged = self.peers.get_mut(&id).map_or(0, |slot| slot.staged.drain(..).len());
                    counters.egress.drop(DropReason::WgNoSession, staged as u64);
                }
                Update::Stray(stray) => self.strays.push_back(stray),
                Update::Dropped(reason, count) => counters.ingress.drop(reason, count),
            }
        }
        // Once for all of them.
        if !gone.is_empty() {
            self.inbound.retain(|_, inbound| !gone.contains(&inbound.session.peer));
        }
    }

    /// Seals messages, as many as there is room for, into `batch` and `spans`, which index [`Crypt::records`]; gives
    /// how many of them are done with. What has no session is kept for it.
    pub(crate) fn seal(
        &mut self,
        arena: &[u8],
        messages: &[Message],
        spans: &mut Vec<Range<u32>>,
        batch: &mut Vec<Transmit>,
        counters: &mut Counters,
    ) -> usize {
        let mut at = 0;
        for (done, message) in messages.iter().enumerate() {
            let grown = message.bytes() as usize + usize::from(message.segments) * Crypt::overhead() as usize;
            if at + grown > self.records.len() || batch.len() == batch.capacity() {
                return done;
            }
            let Some(slot) = self.peers.get_mut(&message.peer()) else {
                counters.egress.drop(DropReason::WgNoSession, u64::from(message.segments));
                continue;
            };
            let Some((session, to)) = usable(slot, message.peer(), self.now, &self.events) else {
                let lost = stage(slot, arena, message);
                counters.egress.drop(DropReason::WgNoSession, lost);
                continue;
            };
            let first_span = spans.len() as u32;
            let mut counter = session.take_counters(u64::from(message.segments));
            let start = at;
            let mut size = 0;
            for packet in Packets::of(message) {
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
                spans.push(at as u32..(at + len) as u32);
                counter += 1;
                at += len;
            }
            let segments = (spans.len() as u32 - first_span) as u16;
            batch.push(Transmit {
                to,
                lane: 0,
                first_span,
                span_count: u32::from(segments),
                segment_size: if segments > 1 { size as u16 } else { 0 },
                segments,
                ecn: message.ecn,
            });
            if slot.pulse.note_sent(self.now, true, (at - start) as u64)
                && self.events.try_send(Event::Sent(message.peer())).is_err()
            {
                slot.pulse.sent_unheard();
            }
        }
        messages.len()
    }

    /// Seals what waited for a session, one packet a transmit; `false` when there is no more.
    pub(crate) fn seal_staged(&mut self, spans: &mut Vec<Range<u32>>, batch: &mut Vec<Transmit>) -> bool {
        let mut at = 0;
        while let Some(id) = self.freed.last().copied() {
            while let Some(slot) = self.peers.get_mut(&id).filter(|slot| !slot.staged.is_empty()) {
                let Some((session, to)) = usable(slot, id, self.now, &self.events) else { break };
                let len = slot.staged.front().map_or(0, |packet| packet.len());
                if at + len + Crypt::overhead() as usize > self.records.len()
                    || batch.len() == batch.capacity()
                {
                    return true;
                }
                let Some(packet) = slot.staged.pop_front() else { break };
                self.records[at + HEADER_LEN..at + HEADER_LEN + len].copy_from_slice(&packet);
                let counter = session.take_counters(1);
                let Some(size) = session.seal(&mut self.records[at..], len, self.mtu, counter) else {
                    continue;
                };
                let first_span = spans.len() as u32;
                spans.push(at as u32..(at + size) as u32);
                batch.push(Transmit {
                    to,
                    lane: 0,
                    first_span,
                    span_count: 1,
                    segment_size: 0,
                    segments: 1,
                    ecn: 0,
                });
                at += size;
                if slot.pulse.note_sent(self.now, true, size as u64)
                    && self.events.try_send(Event::Sent(id)).is_err()
                {
                    slot.pulse.sent_unheard();
                }
            }
            self.freed.pop();
        }
        !batch.is_empty()
    }

    /// Where the sealed records are.
    pub(crate) fn records(&self) -> &[u8] {
        &self.records
    }

    /// Opens the message at `at` in place. `Ok(None)`: it was no data, and went elsewhere.
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
            Kind::Handshake => {
                if !self.gate.admits(record) {
                    return Err(DropReason::WgStranger);
                }
                let message = Arrival::Message(source, Box::from(&*record));
                return self.arrivals.try_send(message).map(|()| None).map_err(|_| DropReason::WgBusy);
            }
        };
        // The session may have been told of since the turn began.
        if self.mailbox.is_full() && !self.inbound.contains_key(&header.receiver) {
            self.take_updates(counters);
        }
        let Some(inbound) = self.inbound.get_mut(&header.receiver) else {
            self.tell_of_stranger(source);
            return Err(DropReason::WgUnknownSession);
        };
        let owner = inbound.session.owner();
        if let Some(owner) = owner.filter(|owner| *owner != self.worker) {
            let stray = Arrival::Stray(owner, Stray { source, ecn, bytes: Box::from(&*record) });
            return self.arrivals.try_send(stray).map(|()| None).map_err(|_| DropReason::WgBusy);
        }
        let peer = inbound.session.peer;
        match inbound.session.to_receive(self.now) {
            Standing::Good => {}
            Standing::Rekey => {
                if self.events.try_send(Event::Want(peer)).is_err() {
                    inbound.session.rekey_unheard();
                }
            }
            Standing::Void => return Err(DropReason::WgExpired),
        }
        let len = inbound.session.open(record, header.counter).ok_or(DropReason::WgForged)?;
        // Two workers with the first record at the same moment: the other one has the window.
        let ours = owner.is_some() || inbound.session.own(self.worker);
        if !ours || !inbound.window.get_or_insert_default().accept(header.counter) {
            return Err(DropReason::WgReplay);
        }
        let slot = self.peers.get_mut(&peer).ok_or(DropReason::WgUnknownSession)?;
        if !inbound.confirmed {
            if !slot.staged.is_empty() {
                self.freed.push(peer);
            }
            slot.session = Some(Arc::clone(&inbound.session));
            // Unheard, it is told again with the next record.
            inbound.confirmed = self.events.try_send(Event::Confirmed(peer, header.receiver)).is_ok();
        }
        slot.endpoint = Some(source);
        // A peer that is heard at two places by turns must not keep the keeper busy.
        if slot.told != slot.endpoint
            && slot.told_at.is_none_or(|then| self.now >= then + TELL_EVERY)
            && self.events.try_send(Event::Roamed(peer, source)).is_ok()
        {
            (slot.told, slot.told_at) = (slot.endpoint, Some(self.now));
        }
        if slot.pulse.note_received(self.now, len > 0, u64::from(span.end - span.start))
            && self.events.try_send(Event::Received(peer)).is_err()
        {
            slot.pulse.received_unheard();
        }
        let at = span.start + HEADER_LEN as u32;
        Ok(Some(Opened { peer, packet: (at, len as u32) }))
    }

    /// It may be a peer that does not know that we have begun anew.
    #[cold]
    fn tell_of_stranger(&mut self, source: SocketAddr) {
        if self.now >= self.strangers_since + ASK_EVERY {
            self.strangers_since = self.now;
            self.strangers.clear();
        }
        if self.strangers.len() < STRANGERS && self.strangers.insert(source) {
            let _ = self.events.try_send(Event::Unknown(source));
        }
    }

    /// A record that arrived at another worker.
    pub(crate) fn stray(&mut self) -> Option<Stray> {
        let stray = self.strays.pop_front();
        self.mailbox.stray_taken(stray.is_some());
        stray
    }

    /// Whether there is one.
    #[inline]
    pub(crate) fn has_stray(&self) -> bool {
        !self.strays.is_empty()
    }
}

/// The session and the address to send to now, if there are any; asks for a session where one is due.
#[inline]
fn usable(
    slot: &mut Slot,
    id: u32,
    now: Millis,
    events: &Sender<Event>,
) -> Option<(Arc<Session>, SocketAddr)> {
    let standing = slot.session.as_ref().map_or(Standing::Void, |session| session.to_send(now));
    let asked = slot.asked.is_some_and(|asked| now < asked + ASK_EVERY);
    if standing == Standing::Rekey || (standing == Standing::Void && !asked) {
        slot.asked = Some(now);
        if events.try_send(Event::Want(id)).is_err()
            && let Some(session) = &slot.session
        {
            session.rekey_unheard();
        }
    }
    if standing == Standing::Void {
        return None;
    }
    slot.session.clone().zip(slot.endpoint)
}

/// Keeps the packets of a message until there is a session; gives how many older ones went for it.
#[cold]
fn stage(slot: &mut Slot, arena: &[u8], message: &Message) -> u64 {
    let mut lost = 0;
    for packet in Packets::of(message) {
        if slot.staged.len() == STAGED {
            slot.staged.pop_front();
            lost += 1;
        }
        slot.staged.push_back(packet.flat_map(|span| bytes(arena, &span)).copied().collect());
    }
    lost
}

/// The packets of a message, each as its spans.
struct Packets<'a> {
    spans: &'a [Range<u32>],
    size: u32,
}

impl<'a> Packets<'a> {
    fn of(message: &'a Message) -> Packets<'a> {
        Packets { spans: message.spans(), size: u32::from(message.segment_size) }
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = std::iter::Cloned<std::slice::Iter<'a, Range<u32>>>;

    /// All packets but the last have the size of the first, and each begins with a span of its own.
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
