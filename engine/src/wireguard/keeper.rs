//! A tunnel's handshakes and timers, on a separate thread.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, never, select};
use io::Waker;
use io::udp::Aside;
use path::wireguard::intake::{Intake, Message, Refused};
use path::wireguard::noise::{self, Timestamp};
use path::wireguard::peer::{Action, Moment};
use path::wireguard::session::{Millis, OVERHEAD, Standing};
use path::wireguard::{Peer, PublicKey, SecretKey, SessionIndex};
use path::{DropReason, PeerId};
use rand::Rng;

use super::awaited::Awaited;
use super::budget::Budget;
use super::established::Established;
use super::mail::{FromControl, FromWorker, Mailbox, Message as Incoming, Stray, ToWorker};
use super::{Clock, KeeperHandle, PeerConfig, PeerStatus, Settings, Shared};
use crate::event::{self, Event, Notifier};

/// The period over which the intake counts handshakes.
const SECOND: Millis = 1_000;
/// How often to look for an index whose place among the awaited is free. With ten thousand handshakes
/// pending, every sixth place is taken.
const TRIES: u32 = 64;
/// How often to return the memory of what has waited.
const RETURN_EVERY: Millis = 5_000;
/// Minimum interval between reports of dropped messages.
const COUNT_EVERY: Millis = 100;
/// TAI64N's value for the Unix epoch (<https://cr.yp.to/libtai/tai64.html>): 2^62 and ten leap seconds.
const TAI: u64 = (1 << 62) + 10;

/// The handshakes and timers of one tunnel.
struct Keeper {
    private: SecretKey,
    intake: Intake,
    clock: Clock,
    socket: Aside,
    workers: Vec<(Arc<Mailbox>, Waker)>,
    peers: HashMap<PeerId, Known>,
    by_key: HashMap<PublicKey, PeerId>,
    /// Peers by configured endpoint.
    by_endpoint: HashMap<SocketAddr, PeerId>,
    /// Peers by this node's index of a session or of a handshake in progress.
    sessions: HashMap<SessionIndex, PeerId>,
    /// The indices of handshake messages that a reply may answer.
    awaited: Arc<Awaited>,
    /// The sessions that records are sealed with.
    established: Established,
    wheel: BTreeSet<(Millis, PeerId)>,
    next_second: Millis,
    actions: Vec<Action>,
    /// Dropped messages that are not counted yet.
    dropped: [(DropReason, u64); 2],
    /// When to report `dropped` to a worker.
    count_at: Option<Millis>,
    /// The memory of waiting packets and of strays.
    budgets: [Budget; 2],
    /// When to return the memory of what has waited.
    return_at: Option<Millis>,
}

/// The outcome of a handshake message.
enum Outcome {
    Accepted,
    /// The message has an unknown sender, or is a replay.
    Rejected,
    /// The keeper is under load.
    Overloaded,
}

/// A peer, its configuration, and its deadline in the wheel.
struct Known {
    peer: Peer,
    config: PeerConfig,
    at: Option<Millis>,
}

/// Starts the thread of the keeper of the notifier's tunnel.
pub(crate) fn start(
    settings: &Settings,
    shared: Shared,
    socket: Aside,
    wakers: Vec<Waker>,
    notifier: Notifier,
) -> std::io::Result<KeeperHandle> {
    let (sender, commands) = crossbeam_channel::unbounded();
    // Only the workers keep senders, so the keeper ends when the workers have ended.
    let Shared { clock, from_worker: (_, from_worker), mailboxes, .. } = shared;
    let ((_, handshakes), (_, cookies), (_, strays)) = (shared.handshakes, shared.cookies, shared.strays);
    let mut keeper = Keeper {
        private: settings.private.clone(),
        intake: Intake::new(&settings.private.public()),
        clock,
        socket,
        workers: mailboxes.into_iter().zip(wakers).collect(),
        peers: HashMap::new(),
        by_key: HashMap::new(),
        by_endpoint: HashMap::new(),
        sessions: HashMap::new(),
        awaited: shared.awaited,
        established: shared.established,
        wheel: BTreeSet::new(),
        next_second: 0,
        actions: Vec::new(),
        dropped: [(DropReason::WgStranger, 0), (DropReason::WgBusy, 0)],
        count_at: None,
        budgets: [shared.waiting, shared.astray],
        return_at: None,
    };
    // Messages from these peers may already be waiting.
    keeper.set_peers(settings.peers.clone());
    keeper.wake();
    let thread: JoinHandle<()> =
        std::thread::Builder::new().name(format!("loden-wg{}", notifier.tunnel)).spawn(move || {
            event::watch(&notifier, Event::KeeperFailed, || {
                keeper.run(&from_worker, [&handshakes, &cookies], &strays, &commands);
                Ok(())
            });
        })?;
    Ok(KeeperHandle::new(sender, thread))
}

impl Keeper {
    /// Runs until all workers have ended.
    fn run(
        &mut self,
        from_worker: &Receiver<FromWorker>,
        [handshakes, cookies]: [&Receiver<Incoming>; 2],
        strays: &Receiver<Stray>,
        commands: &Receiver<FromControl>,
    ) {
        let mut commands = commands.clone();
        loop {
            let now = self.clock.now();
            let next = self.wheel.first().map(|(at, _)| *at);
            let next = [next, self.count_at, self.return_at].into_iter().flatten().min();
            let timeout = next.map(|at| Duration::from_millis(at.saturating_sub(now)));
            let timer = timeout.map_or_else(never, crossbeam_channel::after);
            // `select!` chooses randomly among the ready channels, so that a flood on one does not starve the
            // others. Timers are checked after every message.
            select! {
                recv(from_worker) -> mail => match mail {
                    Ok(mail) => self.handle(mail),
                    Err(_) => return,
                },
                recv(commands) -> command => match command {
                    Ok(FromControl::Peers(peers)) => self.set_peers(peers),
                    Ok(FromControl::Status(answer)) => _ = answer.send(self.status()),
                    Err(_) => commands = never(),
                },
                recv(handshakes) -> message => match message {
                    Ok(Incoming { source, bytes }) => self.handle_incoming(source, &bytes),
                    Err(_) => return,
                },
                recv(cookies) -> message => match message {
                    Ok(Incoming { source, bytes }) => self.handle_incoming(source, &bytes),
                    Err(_) => return,
                },
                recv(strays) -> stray => match stray {
                    Ok(stray) => self.forward(stray),
                    Err(_) => return,
                },
                recv(timer) -> _ => {}
            }
            self.time_out();
            self.count_dropped();
            self.return_memory();
            self.wake();
        }
    }

    fn handle(&mut self, mail: FromWorker) {
        match mail {
            FromWorker::Want(id) => {
                self.return_at.get_or_insert(self.clock.now() + RETURN_EVERY);
                self.with(id, |peer, private, moment, actions| peer.begin(private, moment, actions))
            }
            FromWorker::Confirmed(id, index) => {
                self.with(id, |peer, _, _, actions| peer.confirm(index, actions))
            }
            FromWorker::Roamed(id, to) => {
                self.with(id, |peer, _, _, _| peer.endpoint = Some(to));
                self.send_peer(id);
            }
            FromWorker::Unknown(from) => self.handle_unknown(from),
            FromWorker::Sent(id) => self.with(id, |peer, _, moment, _| peer.watch_answer(moment.now)),
            FromWorker::Received(id) => self.with(id, |peer, _, moment, _| peer.watch_silence(moment.now)),
        }
    }

    fn handle_incoming(&mut self, from: SocketAddr, bytes: &[u8]) {
        match self.handle_message(from, bytes) {
            Outcome::Accepted => {}
            Outcome::Rejected => self.drop_one(DropReason::WgStranger),
            Outcome::Overloaded => self.drop_one(DropReason::WgBusy),
        }
    }

    fn forward(&mut self, stray: Stray) {
        self.return_at.get_or_insert(self.clock.now() + RETURN_EVERY);
        match self.workers.get(stray.owner.place()) {
            Some((mailbox, waker)) if mailbox.put_stray(stray) => _ = waker.wake(),
            _ => self.drop_one(DropReason::WgBusy),
        }
    }

    fn drop_one(&mut self, reason: DropReason) {
        for (known, count) in &mut self.dropped {
            *count += u64::from(*known == reason);
        }
        self.count_at.get_or_insert(self.clock.now() + COUNT_EVERY);
    }

    /// Sends the number of dropped messages to a worker, because only workers have counters. Counts are
    /// collected so that a flood does not wake the worker for each message.
    fn count_dropped(&mut self) {
        if self.count_at.is_none_or(|at| self.clock.now() < at) {
            return;
        }
        self.count_at = None;
        let Some((mailbox, _)) = self.workers.first() else { return };
        for (reason, count) in &mut self.dropped {
            if *count > 0 {
                mailbox.put(ToWorker::Dropped(*reason, std::mem::take(count)));
            }
        }
    }

    /// Returns the memory of what has waited, until nothing waits any more.
    fn return_memory(&mut self) {
        let now = self.clock.now();
        if self.return_at.take_if(|at| *at <= now).is_some() {
            let kept = self.budgets.iter().filter(|budget| !budget.return_memory()).count();
            self.return_at = (kept > 0).then_some(now + RETURN_EVERY);
        }
    }

    fn handle_message(&mut self, from: SocketAddr, bytes: &[u8]) -> Outcome {
        let now = self.clock.now();
        if now >= self.next_second {
            self.next_second = now + SECOND;
            self.intake.start_second(now);
        }
        let mut taken = false;
        match self.intake.check(from.ip(), bytes, now) {
            Ok(Message::Initiation(message)) => {
                let Some(initiation) = noise::receive(&self.private, message) else {
                    return Outcome::Rejected;
                };
                let Some(id) = self.by_key.get(&initiation.peer).copied() else { return Outcome::Rejected };
                let before = self.endpoint(id);
                self.with(id, |peer, _, moment, actions| {
                    taken = peer.handle_initiation(initiation, from, moment, actions);
                });
                if self.endpoint(id) != before {
                    self.send_peer(id);
                }
            }
            Ok(Message::Response(index, message)) => {
                let Some(id) = self.sessions.get(&index).copied() else { return Outcome::Rejected };
                let attempted = self.peers.get(&id).and_then(|known| known.peer.attempting());
                if attempted != Some(index) {
                    return Outcome::Rejected;
                }
                let before = self.endpoint(id);
                self.with(id, |peer, _, moment, actions| {
                    taken = peer.handle_response(message, from, moment.now, actions);
                });
                if self.endpoint(id) != before {
                    self.send_peer(id);
                }
            }
            Ok(Message::Cookie(index, message)) => {
                let Some(id) = self.sessions.get(&index).copied() else { return Outcome::Rejected };
                self.with(id, |peer, _, moment, _| taken = peer.handle_cookie(message, moment.now));
            }
            Err(Refused::Reply(reply)) => {
                self.socket.send(&reply, from);
                return Outcome::Overloaded;
            }
            Err(Refused::TooMany) => return Outcome::Overloaded,
            // Strangers get no reply.
            Err(Refused::Invalid) => {}
        }
        if taken { Outcome::Accepted } else { Outcome::Rejected }
    }

    /// Begins a handshake with a peer that sends records of an unknown session. After a restart of this node,
    /// peers would otherwise use their old sessions for another quarter of a minute. The record proves
    /// nothing, so only the peer that is configured with this address is contacted.
    fn handle_unknown(&mut self, from: SocketAddr) {
        let now = self.clock.now();
        let Some(known) = self.by_endpoint.get(&from).and_then(|id| self.peers.get(id)) else { return };
        if known.peer.current().is_none_or(|session| session.send_standing(now) == Standing::Expired) {
            self.with(known.config.id, |peer, private, moment, actions| peer.begin(private, moment, actions));
        }
    }

    fn time_out(&mut self) {
        let now = self.clock.now();
        while let Some((at, id)) = self.wheel.first().copied()
            && at <= now
        {
            self.wheel.pop_first();
            if let Some(known) = self.peers.get_mut(&id) {
                known.at = None;
            }
            self.with(id, |peer, private, moment, actions| peer.handle_timeout(private, moment, actions));
        }
    }

    /// Runs one step of a peer, and carries out all resulting actions.
    fn with(&mut self, id: PeerId, step: impl FnOnce(&mut Peer, &SecretKey, &Moment, &mut Vec<Action>)) {
        if self.step(id, step) {
            // There is no session to send an empty record with.
            self.step(id, |peer, private, moment, actions| peer.begin(private, moment, actions));
        }
    }

    /// Runs one step of a peer, and carries out its actions. Returns true if the caller must begin a
    /// handshake first.
    fn step(
        &mut self,
        id: PeerId,
        step: impl FnOnce(&mut Peer, &SecretKey, &Moment, &mut Vec<Action>),
    ) -> bool {
        let moment = self.moment();
        let Some(known) = self.peers.get_mut(&id) else { return false };
        let mut actions = std::mem::take(&mut self.actions);
        step(&mut known.peer, &self.private, &moment, &mut actions);
        if known.peer.attempting() == Some(moment.index) {
            self.sessions.insert(moment.index, id);
            self.awaited.insert(moment.index);
        }
        let mut handshake = false;
        // Workers get a session before the peer does, because the peer's first record may arrive immediately.
        let (messages, others): (Vec<_>, Vec<_>) =
            actions.drain(..).partition(|action| matches!(action, Action::Send(..) | Action::Keepalive));
        for action in others.into_iter().chain(messages) {
            handshake |= self.act(id, action);
        }
        self.actions = actions;
        self.schedule(id);
        handshake
    }

    /// Carries out one action. Returns true if the caller must begin a handshake first.
    fn act(&mut self, id: PeerId, action: Action) -> bool {
        match action {
            Action::Send(to, message) => self.socket.send(&message, to),
            Action::Use(session) => {
                self.awaited.remove(session.local);
                self.sessions.insert(session.local, id);
                self.established.add(&session);
                self.send_to_workers(|| ToWorker::Session(Arc::clone(&session), true));
            }
            Action::Await(session) => {
                // The response may be answered by a cookie reply.
                self.awaited.insert(session.local);
                self.sessions.insert(session.local, id);
                self.send_to_workers(|| ToWorker::Session(Arc::clone(&session), false));
            }
            Action::Forget(index) => {
                self.sessions.remove(&index);
                self.awaited.remove(index);
                self.established.remove(index);
                self.send_to_workers(|| ToWorker::Forget(index));
            }
            Action::GiveUp => self.send_to_workers(|| ToWorker::GiveUp(id)),
            Action::Keepalive => return !self.send_keepalive(id),
        }
        false
    }

    /// Sends an empty record. Returns false if there is no session to seal it with.
    fn send_keepalive(&mut self, id: PeerId) -> bool {
        let now = self.clock.now();
        let Some(peer) = self.peers.get(&id).map(|known| &known.peer) else { return true };
        let (Some(session), Some(to)) = (peer.current(), peer.endpoint) else { return false };
        if session.send_standing(now) == Standing::Expired {
            return false;
        }
        let mut record = [0; OVERHEAD];
        let counter = session.take_counters(1);
        if session.seal(&mut record, 0, 0, counter).is_some() {
            self.socket.send(&record, to);
            peer.pulse.note_sent(now, false, record.len() as u64);
        }
        true
    }

    /// Puts the peer's next deadline into the wheel.
    fn schedule(&mut self, id: PeerId) {
        let Some(known) = self.peers.get_mut(&id) else { return };
        let next = known.peer.poll_timeout();
        if known.at != next {
            if let Some(at) = known.at {
                self.wheel.remove(&(at, id));
            }
            known.at = next;
            self.wheel.extend(next.map(|at| (at, id)));
        }
    }

    fn set_peers(&mut self, configs: Vec<PeerConfig>) {
        let wanted: HashSet<PeerId> = configs.iter().map(|config| config.id).collect();
        let gone: Vec<PeerId> = self.peers.keys().copied().filter(|id| !wanted.contains(id)).collect();
        for id in gone {
            if let Some(known) = self.peers.remove(&id) {
                known.at.inspect(|at| _ = self.wheel.remove(&(*at, id)));
                for index in known.peer.indices() {
                    self.sessions.remove(&index);
                    self.awaited.remove(index);
                    self.established.remove(index);
                }
                self.by_key.remove(&known.peer.key);
                self.remove_endpoint(id, known.config.endpoint);
                self.send_to_workers(|| ToWorker::Gone(id));
            }
        }
        for config in configs {
            self.set_peer(config);
        }
    }

    fn set_peer(&mut self, config: PeerConfig) {
        let (id, now) = (config.id, self.clock.now());
        let known = self.peers.get(&id);
        if known.is_some_and(|known| known.config == config) {
            return;
        }
        let moved = known.is_none_or(|known| known.config.endpoint != config.endpoint);
        let known = self.peers.entry(id).or_insert_with(|| Known {
            peer: Peer::new(id, config.key),
            config: config.clone(),
            at: None,
        });
        let keepalive = config.keepalive.as_millis() as Millis;
        known.peer.configure(config.psk.clone(), keepalive, now);
        if moved {
            known.peer.endpoint = config.endpoint;
        }
        let before = known.config.endpoint;
        known.config = config.clone();
        self.by_key.insert(config.key, id);
        self.remove_endpoint(id, before);
        self.by_endpoint.extend(config.endpoint.map(|at| (at, id)));
        self.schedule(id);
        self.send_peer(id);
    }

    fn remove_endpoint(&mut self, id: PeerId, at: Option<SocketAddr>) {
        if let Some(at) = at.filter(|at| self.by_endpoint.get(at) == Some(&id)) {
            self.by_endpoint.remove(&at);
        }
    }

    fn status(&self) -> Vec<PeerStatus> {
        let now = self.clock.now();
        let of = |known: &Known| {
            let (sent_bytes, received_bytes) = known.peer.pulse.bytes();
            let since = |then: Millis| Duration::from_millis(now.saturating_sub(then));
            PeerStatus {
                key: known.peer.key,
                endpoint: known.peer.endpoint,
                last_handshake: known.peer.last_handshake.map(since),
                sent_bytes,
                received_bytes,
                keepalive: known.config.keepalive,
                has_psk: known.config.psk != SecretKey([0; 32]),
            }
        };
        let mut all: Vec<PeerStatus> = self.peers.values().map(of).collect();
        all.sort_by_key(|peer| peer.key);
        all
    }

    fn endpoint(&self, id: PeerId) -> Option<SocketAddr> {
        self.peers.get(&id)?.peer.endpoint
    }

    /// Sends a peer's address to all workers.
    fn send_peer(&self, id: PeerId) {
        let Some(known) = self.peers.get(&id) else { return };
        self.send_to_workers(|| ToWorker::Peer(id, known.peer.endpoint, Arc::clone(&known.peer.pulse)));
    }

    /// Puts a message into every worker's mailbox.
    fn send_to_workers(&self, mail: impl Fn() -> ToWorker) {
        for (mailbox, _) in &self.workers {
            mailbox.put(mail());
        }
    }

    /// Wakes the workers that have mail.
    fn wake(&self) {
        for (mailbox, waker) in &self.workers {
            if mailbox.is_full() {
                let _ = waker.wake();
            }
        }
    }

    fn moment(&self) -> Moment {
        let mut random = rand::rng();
        let mut index = SessionIndex(random.random());
        let mut tries = 0;
        while self.sessions.contains_key(&index) || (tries < TRIES && !self.awaited.has_place(index)) {
            index = SessionIndex(random.random());
            tries += 1;
        }
        Moment { now: self.clock.now(), stamp: timestamp(), index, jitter: random.random_range(0..=333) }
    }
}

fn timestamp() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&(TAI + since.as_secs()).to_be_bytes());
    stamp[8..].copy_from_slice(&since.subsec_nanos().to_be_bytes());
    stamp
}
