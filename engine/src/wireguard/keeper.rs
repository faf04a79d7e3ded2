//! A tunnel's handshakes and timers, on a thread of their own.

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

use super::mail::{FromControl, FromNetwork, FromWorker, Mailbox, ToWorker};
use super::{Clock, KeeperHandle, PeerConfig, PeerStatus, Settings, Shared};

/// The intake counts handshakes over this time.
const SECOND: Millis = 1_000;
/// Dropped messages are counted at most this often.
const COUNT_EVERY: Millis = 100;
/// TAI64N counts from here (<https://cr.yp.to/libtai/tai64.html>): 2^62, and ten leap seconds.
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
    /// The peers by their configured endpoints.
    by_endpoint: HashMap<SocketAddr, PeerId>,
    /// Whose a session is, or a handshake under way, by our index for it.
    sessions: HashMap<SessionIndex, PeerId>,
    wheel: BTreeSet<(Millis, PeerId)>,
    next_second: Millis,
    actions: Vec<Action>,
    /// Dropped messages that are not counted yet, and when they are to be.
    dropped: [(DropReason, u64); 2],
    count_at: Option<Millis>,
}

/// What became of a message.
enum Taken {
    Yes,
    /// It is no peer's, or not new.
    No,
    /// The keeper is under load.
    TooMuch,
}

/// A peer, its configuration, and its deadline in the wheel.
struct Known {
    peer: Peer,
    config: PeerConfig,
    at: Option<Millis>,
}

/// Starts the thread.
pub(crate) fn start(
    index: usize,
    settings: &Settings,
    shared: Shared,
    socket: Aside,
    wakers: Vec<Waker>,
) -> std::io::Result<KeeperHandle> {
    let (sender, commands) = crossbeam_channel::unbounded();
    // Only the workers keep senders: when the workers are gone, the keeper ends.
    let Shared { clock, from_worker: (_, from_worker), from_network: (_, from_network), mailboxes, .. } =
        shared;
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
        wheel: BTreeSet::new(),
        next_second: 0,
        actions: Vec::new(),
        dropped: [(DropReason::WgStranger, 0), (DropReason::WgBusy, 0)],
        count_at: None,
    };
    // Messages of these peers may be waiting already.
    keeper.set_peers(settings.peers.clone());
    keeper.wake();
    let thread: JoinHandle<()> = std::thread::Builder::new()
        .name(format!("loden-wg{index}"))
        .spawn(move || keeper.run(&from_worker, &from_network, &commands))?;
    Ok(KeeperHandle::new(sender, thread))
}

impl Keeper {
    /// Runs until all workers are gone.
    fn run(
        &mut self,
        from_worker: &Receiver<FromWorker>,
        from_network: &Receiver<FromNetwork>,
        commands: &Receiver<FromControl>,
    ) {
        let mut commands = commands.clone();
        loop {
            let now = self.clock.now();
            let next = self.wheel.first().map(|(at, _)| *at).into_iter().chain(self.count_at).min();
            let timeout = next.map(|at| Duration::from_millis(at.saturating_sub(now)));
            let timer = timeout.map_or_else(never, crossbeam_channel::after);
            // `select!` picks at random among the ready channels, so that no flood of one keeps the others waiting. Timers
            // are looked at whatever comes.
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
                recv(from_network) -> mail => match mail {
                    Ok(mail) => self.handle_network(mail),
                    Err(_) => return,
                },
                recv(timer) -> _ => {}
            }
            self.time_out();
            self.count_dropped();
            self.wake();
        }
    }

    fn handle(&mut self, mail: FromWorker) {
        match mail {
            FromWorker::Want(id) => {
                self.with(id, |peer, private, moment, actions| peer.begin(private, moment, actions))
            }
            FromWorker::Confirmed(id, index) => {
                self.with(id, |peer, _, _, actions| peer.confirm(index, actions))
            }
            FromWorker::Roamed(id, to) => {
                self.with(id, |peer, _, _, _| peer.endpoint = Some(to));
                self.tell_peer(id);
            }
            FromWorker::Unknown(from) => self.handle_unknown(from),
            FromWorker::Sent(id) => self.with(id, |peer, _, moment, _| peer.watch_answer(moment.now)),
            FromWorker::Received(id) => self.with(id, |peer, _, moment, _| peer.watch_silence(moment.now)),
        }
    }

    fn handle_network(&mut self, mail: FromNetwork) {
        match mail {
            FromNetwork::Message(from, bytes) => match self.handle_message(from, &bytes) {
                Taken::Yes => {}
                Taken::No => self.drop_one(DropReason::WgStranger),
                Taken::TooMuch => self.drop_one(DropReason::WgBusy),
            },
            FromNetwork::Stray(worker, stray) => match self.workers.get(worker.place()) {
                Some((mailbox, waker)) if mailbox.put_stray(stray) => _ = waker.wake(),
                _ => self.drop_one(DropReason::WgBusy),
            },
        }
    }

    fn drop_one(&mut self, reason: DropReason) {
        for (known, count) in &mut self.dropped {
            *count += u64::from(*known == reason);
        }
        self.count_at.get_or_insert(self.clock.now() + COUNT_EVERY);
    }

    /// Has a worker count what was dropped, since only workers have counters. It is done for many at a time, so that a
    /// flood does not wake the worker for each.
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

    fn handle_message(&mut self, from: SocketAddr, bytes: &[u8]) -> Taken {
        let now = self.clock.now();
        if now >= self.next_second {
            self.next_second = now + SECOND;
            self.intake.second_has_passed(now);
        }
        let mut taken = false;
        match self.intake.look(from.ip(), bytes, now) {
            Ok(Message::Initiation(message)) => {
                let Some(initiation) = noise::receive(&self.private, message) else { return Taken::No };
                let Some(id) = self.by_key.get(&initiation.peer).copied() else { return Taken::No };
                let before = self.endpoint(id);
                self.with(id, |peer, _, moment, actions| {
                    taken = peer.handle_initiation(initiation, from, moment, actions);
                });
                if self.endpoint(id) != before {
                    self.tell_peer(id);
                }
            }
            Ok(Message::Response(index, message)) => {
                let Some(id) = self.sessions.get(&index).copied() else { return Taken::No };
                let attempted = self.peers.get(&id).and_then(|known| known.peer.attempting());
                if attempted != Some(index) {
                    return Taken::No;
                }
                let before = self.endpoint(id);
                self.with(id, |peer, _, moment, actions| {
                    taken = peer.handle_response(message, from, moment.now, actions);
                });
                if self.endpoint(id) != before {
                    self.tell_peer(id);
                }
            }
            Ok(Message::Cookie(index, message)) => {
                let Some(id) = self.sessions.get(&index).copied() else { return Taken::No };
                self.with(id, |peer, _, moment, _| taken = peer.handle_cookie(message, moment.now));
            }
            Err(Refused::Reply(reply)) => {
                self.socket.send(&reply, from);
                return Taken::TooMuch;
            }
            Err(Refused::TooMany) => return Taken::TooMuch,
            // A stranger gets no answer.
            Err(Refused::Unfit) => {}
        }
        if taken { Taken::Yes } else { Taken::No }
    }

    /// Begins a session with a peer that sends records of one that is gone: after a restart peers would go on with their
    /// old sessions for a quarter of a minute. It is begun with the peer that is configured at this address, and with
    /// nobody else: the record itself proves nothing.
    fn handle_unknown(&mut self, from: SocketAddr) {
        let now = self.clock.now();
        let Some(known) = self.by_endpoint.get(&from).and_then(|id| self.peers.get(id)) else { return };
        if known.peer.current().is_none_or(|session| session.to_send(now) == Standing::Void) {
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

    /// Has a peer take one step, and carries out all that comes of it.
    fn with(&mut self, id: PeerId, step: impl FnOnce(&mut Peer, &SecretKey, &Moment, &mut Vec<Action>)) {
        if self.step(id, step) {
            // There is no session to send an empty record with.
            self.step(id, |peer, private, moment, actions| peer.begin(private, moment, actions));
        }
    }

    /// Has a peer take one step, and carries out its actions. Returns true if the caller must begin a handshake first.
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
        }
        let mut again = false;
        // Workers get a session before the peer does: the peer's first record may be there at once.
        let (messages, others): (Vec<_>, Vec<_>) =
            actions.drain(..).partition(|action| matches!(action, Action::Send(..) | Action::Keepalive));
        for action in others.into_iter().chain(messages) {
            again |= self.act(id, action);
        }
        self.actions = actions;
        self.schedule(id);
        again
    }

    /// Carries out one action. Returns true if the caller must begin a handshake first.
    fn act(&mut self, id: PeerId, action: Action) -> bool {
        match action {
            Action::Send(to, message) => self.socket.send(&message, to),
            Action::Use(session) => {
                self.sessions.insert(session.local, id);
                self.tell(|| ToWorker::Session(Arc::clone(&session), true));
            }
            Action::Await(session) => {
                self.sessions.insert(session.local, id);
                self.tell(|| ToWorker::Session(Arc::clone(&session), false));
            }
            Action::Forget(index) => {
                self.sessions.remove(&index);
                self.tell(|| ToWorker::Forget(index));
            }
            Action::GiveUp => self.tell(|| ToWorker::GiveUp(id)),
            Action::Keepalive => return !self.send_keepalive(id),
        }
        false
    }

    /// Sends an empty record. Returns false if there is no session to seal it with.
    fn send_keepalive(&mut self, id: PeerId) -> bool {
        let now = self.clock.now();
        let Some(peer) = self.peers.get(&id).map(|known| &known.peer) else { return true };
        let (Some(session), Some(to)) = (peer.current(), peer.endpoint) else { return false };
        if session.to_send(now) == Standing::Void {
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
                known.peer.indices().for_each(|index| _ = self.sessions.remove(&index));
                self.by_key.remove(&known.peer.key);
                self.leave_endpoint(id, known.config.endpoint);
                self.tell(|| ToWorker::Gone(id));
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
        self.leave_endpoint(id, before);
        self.by_endpoint.extend(config.endpoint.map(|at| (at, id)));
        self.schedule(id);
        self.tell_peer(id);
    }

    fn leave_endpoint(&mut self, id: PeerId, at: Option<SocketAddr>) {
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

    fn tell_peer(&self, id: PeerId) {
        let Some(known) = self.peers.get(&id) else { return };
        self.tell(|| ToWorker::Peer(id, known.peer.endpoint, Arc::clone(&known.peer.pulse)));
    }

    fn tell(&self, mail: impl Fn() -> ToWorker) {
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
        while self.sessions.contains_key(&index) {
            index = SessionIndex(random.random());
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
