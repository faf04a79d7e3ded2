//! A tunnel's handshakes and timers, on a thread of their own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, never, select};
use io::Waker;
use io::udp::Aside;
use path::DropReason;
use path::wireguard::intake::{Intake, Message, Refused};
use path::wireguard::noise::{self, Timestamp};
use path::wireguard::peer::{Action, Moment};
use path::wireguard::session::{Millis, OVERHEAD, Standing};
use path::wireguard::{Peer, PublicKey, SecretKey};
use rand::Rng;

use super::mail::{Arrival, Event, Mailbox, Update};
use super::{Clock, Command, Handle, Parts, PeerConfig, PeerStatus, Settings};

/// Handshake counts of the intake begin anew this often.
const SECOND: Millis = 1_000;
/// Dropped messages are counted this often.
const COUNT_EVERY: Millis = 100;
/// TAI64N counts from here (<https://cr.yp.to/libtai/tai64.html>): 2^62, and ten leap seconds.
const TAI: u64 = (1 << 62) + 10;

/// The state of one tunnel.
struct Keeper {
    private: SecretKey,
    intake: Intake,
    clock: Clock,
    socket: Aside,
    workers: Vec<(Arc<Mailbox>, Waker)>,
    peers: HashMap<u32, Known>,
    by_key: HashMap<PublicKey, u32>,
    /// Who is said to be where.
    by_endpoint: HashMap<SocketAddr, u32>,
    /// Sessions and handshakes under way, by our name for them.
    names: HashMap<u32, u32>,
    wheel: BTreeSet<(Millis, u32)>,
    next_second: Millis,
    actions: Vec<Action>,
    /// Messages that came to nothing and are not counted yet, and when they are to be.
    dropped: [(DropReason, u64); 2],
    count_at: Option<Millis>,
}

/// What became of a message.
enum Taken {
    Yes,
    /// It is nobody's, or not new.
    No,
    /// There is too much to do.
    TooMuch,
}

/// A peer, its configuration, and where it stands in the wheel.
struct Known {
    peer: Peer,
    config: PeerConfig,
    at: Option<Millis>,
}

/// Starts the thread.
pub(crate) fn start(
    index: usize,
    settings: &Settings,
    parts: Parts,
    socket: Aside,
    wakers: Vec<Waker>,
) -> std::io::Result<Handle> {
    let (sender, commands) = crossbeam_channel::unbounded();
    // The senders are the workers' alone: when they are gone, so is the work.
    let Parts { clock, events: (_, events), arrivals: (_, arrivals), mailboxes, .. } = parts;
    let mut keeper = Keeper {
        private: settings.private.clone(),
        intake: Intake::new(&settings.private.public()),
        clock,
        socket,
        workers: mailboxes.into_iter().zip(wakers).collect(),
        peers: HashMap::new(),
        by_key: HashMap::new(),
        by_endpoint: HashMap::new(),
        names: HashMap::new(),
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
        .spawn(move || keeper.run(&events, &arrivals, &commands))?;
    Ok(Handle::new(sender, thread))
}

impl Keeper {
    /// Until all workers are gone.
    fn run(&mut self, events: &Receiver<Event>, arrivals: &Receiver<Arrival>, commands: &Receiver<Command>) {
        let mut commands = commands.clone();
        loop {
            let now = self.clock.now();
            let next = self.wheel.first().map(|(at, _)| *at).into_iter().chain(self.count_at).min();
            let timeout = next.map(|at| Duration::from_millis(at.saturating_sub(now)));
            let timer = timeout.map_or_else(never, crossbeam_channel::after);
            // Each has its turn by chance, so that no flood of one keeps the others waiting; timers are looked at whatever
            // comes.
            select! {
                recv(events) -> event => match event {
                    Ok(event) => self.handle(event),
                    Err(_) => return,
                },
                recv(commands) -> command => match command {
                    Ok(Command::Peers(peers)) => self.set_peers(peers),
                    Ok(Command::Status(answer)) => _ = answer.send(self.status()),
                    Err(_) => commands = never(),
                },
                recv(arrivals) -> arrival => match arrival {
                    Ok(arrival) => self.handle_arrival(arrival),
                    Err(_) => return,
                },
                recv(timer) -> _ => {}
            }
            self.time_out();
            self.count_dropped();
            self.wake();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Want(id) => {
                self.with(id, |peer, private, moment, actions| peer.begin(private, moment, actions))
            }
            Event::Confirmed(id, name) => self.with(id, |peer, _, _, actions| peer.confirm(name, actions)),
            Event::Roamed(id, to) => {
                self.with(id, |peer, _, _, _| peer.endpoint = Some(to));
                self.tell_peer(id);
            }
            Event::Unknown(from) => self.handle_unknown(from),
            Event::Sent(id) => self.with(id, |peer, _, moment, _| peer.watch_answer(moment.now)),
            Event::Received(id) => self.with(id, |peer, _, moment, _| peer.watch_silence(moment.now)),
        }
    }

    fn handle_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Message(from, bytes) => match self.handle_message(from, &bytes) {
                Taken::Yes => {}
                Taken::No => self.drop_one(DropReason::WgStranger),
                Taken::TooMuch => self.drop_one(DropReason::WgBusy),
            },
            Arrival::Stray(worker, stray) => match self.workers.get(worker as usize) {
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

    /// Has a worker count what was dropped, since only they have counters; some at a time, as a flood must not wake it
    /// for each.
    fn count_dropped(&mut self) {
        if self.count_at.is_none_or(|at| self.clock.now() < at) {
            return;
        }
        self.count_at = None;
        let Some((mailbox, _)) = self.workers.first() else { return };
        for (reason, count) in &mut self.dropped {
            if *count > 0 {
                mailbox.put(Update::Dropped(*reason, std::mem::take(count)));
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
            Ok(Message::Response(name, message)) => {
                let Some(id) = self.names.get(&name).copied() else { return Taken::No };
                let attempted = self.peers.get(&id).and_then(|known| known.peer.attempting());
                if attempted != Some(name) {
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
            Ok(Message::Cookie(name, message)) => {
                let Some(id) = self.names.get(&name).copied() else { return Taken::No };
                self.with(id, |peer, _, moment, _| taken = peer.handle_cookie(message, moment.now));
            }
            Err(Refused::Reply(reply)) => {
                self.socket.send(&reply, from);
                return Taken::TooMuch;
            }
            Err(Refused::TooMany) => return Taken::TooMuch,
            // Silence to strangers.
            Err(Refused::Unfit) => {}
        }
        if taken { Taken::Yes } else { Taken::No }
    }

    /// After a restart peers go on with sessions that are gone, and would for a quarter of a minute. A new one is begun
    /// with who is said to be there, and with nobody else: the record itself proves nothing.
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

    /// One step of a peer, and all that comes of it.
    fn with(&mut self, id: u32, step: impl FnOnce(&mut Peer, &SecretKey, &Moment, &mut Vec<Action>)) {
        if self.step(id, step) {
            // There is no session to send an empty record with.
            self.step(id, |peer, private, moment, actions| peer.begin(private, moment, actions));
        }
    }

    /// `true` if a handshake has to come first.
    fn step(&mut self, id: u32, step: impl FnOnce(&mut Peer, &SecretKey, &Moment, &mut Vec<Action>)) -> bool {
        let moment = self.moment();
        let Some(known) = self.peers.get_mut(&id) else { return false };
        let mut actions = std::mem::take(&mut self.actions);
        step(&mut known.peer, &self.private, &moment, &mut actions);
        if known.peer.attempting() == Some(moment.name) {
            self.names.insert(moment.name, id);
        }
        let mut again = false;
        // Workers hear of a session before the peer does: its first record may be there in no time.
        let (messages, others): (Vec<_>, Vec<_>) =
            actions.drain(..).partition(|action| matches!(action, Action::Send(..) | Action::Keepalive));
        for action in others.into_iter().chain(messages) {
            again |= self.act(id, action);
        }
        self.actions = actions;
        self.schedule(id);
        again
    }

    /// Does it; `true` if a handshake has to come first.
    fn act(&mut self, id: u32, action: Action) -> bool {
        match action {
            Action::Send(to, message) => self.socket.send(&message, to),
            Action::Use(session) => {
                self.names.insert(session.local, id);
                self.tell(|| Update::Session(Arc::clone(&session), true));
            }
            Action::Await(session) => {
                self.names.insert(session.local, id);
                self.tell(|| Update::Session(Arc::clone(&session), false));
            }
            Action::Forget(name) => {
                self.names.remove(&name);
                self.tell(|| Update::Forget(name));
            }
            Action::GiveUp => self.tell(|| Update::GiveUp(id)),
            Action::Keepalive => return !self.send_keepalive(id),
        }
        false
    }

    fn send_keepalive(&mut self, id: u32) -> bool {
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
    fn schedule(&mut self, id: u32) {
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
        let wanted: HashSet<u32> = configs.iter().map(|config| config.id).collect();
        let gone: Vec<u32> = self.peers.keys().copied().filter(|id| !wanted.contains(id)).collect();
        for id in gone {
            if let Some(known) = self.peers.remove(&id) {
                known.at.inspect(|at| _ = self.wheel.remove(&(*at, id)));
                known.peer.names().for_each(|name| _ = self.names.remove(&name));
                self.by_key.remove(&known.peer.key);
                self.leave_endpoint(id, known.config.endpoint);
                self.tell(|| Update::Gone(id));
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

    fn leave_endpoint(&mut self, id: u32, at: Option<SocketAddr>) {
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

    fn endpoint(&self, id: u32) -> Option<SocketAddr> {
        self.peers.get(&id)?.peer.endpoint
    }

    fn tell_peer(&self, id: u32) {
        let Some(known) = self.peers.get(&id) else { return };
        self.tell(|| Update::Peer(id, known.peer.endpoint, Arc::clone(&known.peer.pulse)));
    }

    fn tell(&self, update: impl Fn() -> Update) {
        for (mailbox, _) in &self.workers {
            mailbox.put(update());
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
        let mut name = random.random();
        while self.names.contains_key(&name) {
            name = random.random();
        }
        Moment { now: self.clock.now(), stamp: timestamp(), name, jitter: random.random_range(0..=333) }
    }
}

fn timestamp() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&(TAI + since.as_secs()).to_be_bytes());
    stamp[8..].copy_from_slice(&since.subsec_nanos().to_be_bytes());
    stamp
}
