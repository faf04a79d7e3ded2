//! Learns path MTUs, on a separate thread per engine.
//!
//! ```text
//!  ICMP messages ───────► ┌─────────┐ judge, ask for the route ─► limit of a peer, in the workers' table
//!  workers: "refused" ──► │ learner │
//!                         └─────────┘ ten minutes later ────────► no limit
//! ```
//!
//! The sockets ignore what the kernel has learned, because the kernel believes messages that anyone can send.
//! See docs/decisions/0021-path-mtu.md.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use io::too_big::{ROOM, TooBigSocket};
use io::udp::PathMtuSockets;
use io::{Waiter, Waker};
use path::quote::{self, Own, Whose};
use path::{Fib, Format, IPV6_MIN_MTU, PathEnd, PeerId, WorkerIndex};

use crate::event::{self, Event, Notifier};
use crate::own_nat;
use crate::status::PathStatus;
use crate::wireguard::Established;

/// How long a limit is kept (RFC 1191 section 6.3, RFC 8201 section 4).
const AGE: Duration = Duration::from_secs(600);
/// Minimum interval between questions for the route to one peer.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum questions of all peers in that interval.
const QUESTIONS: usize = 256;
/// Messages about each peer that are judged per [`WINDOW`]. Whoever guesses what a message must quote gets
/// few attempts.
const MESSAGES: u32 = 16;
const WINDOW: Duration = Duration::from_millis(100);
/// Messages of each socket that are read per turn, and the pause after it if there may be more.
const READS: usize = 256;
const PAUSE: Duration = Duration::from_millis(10);
/// The peers together whose address is not the configured one.
const ROAMED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Refusals that wait for the learner; more are dropped, because others follow.
const WAITING: usize = 64;

/// The limits of one tunnel's peers, which outlive its tables.
pub(crate) struct Paths {
    state: Mutex<State>,
    sockets: PathMtuSockets,
    believed: AtomicU64,
    ignored: AtomicU64,
}

struct State {
    /// The newest table.
    table: Arc<Fib>,
    limits: HashMap<PathEnd, Limit>,
    /// The configured addresses of WireGuard peers, which a table does not find by address.
    remotes: HashSet<IpAddr>,
    /// Whether the sockets follow the kernel's path MTUs.
    following: bool,
}

impl State {
    /// Leaves it to the kernel to fragment to the path while one carries less than IPv6 packets for pods
    /// need (RFC 2473 section 7.1).
    fn follow(&mut self, sockets: &PathMtuSockets) {
        let narrow = self.limits.values().any(|limit| limit.inner < IPV6_MIN_MTU);
        if narrow != self.following {
            self.following = narrow;
            sockets.follow(narrow);
        }
    }
}

/// Returns the addresses of peers that a table does not find by address.
fn remotes(table: &Fib) -> HashSet<IpAddr> {
    let peers = if *table.format() == Format::Wireguard { table.peers() } else { &[] };
    peers.iter().map(|peer| peer.remote.ip()).collect()
}

#[derive(Clone, Copy)]
struct Limit {
    inner: u16,
    until: Instant,
}

impl Paths {
    pub(crate) fn new(table: Arc<Fib>, sockets: PathMtuSockets) -> Arc<Paths> {
        let remotes = remotes(&table);
        let state = Mutex::new(State { table, limits: HashMap::new(), remotes, following: false });
        Arc::new(Paths { state, sockets, believed: AtomicU64::new(0), ignored: AtomicU64::new(0) })
    }

    /// Copies the limits to a table that is about to be published. Forgets those of removed peers.
    pub(crate) fn renew(&self, table: &Arc<Fib>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.limits.retain(|end, limit| table.set_path_limit(*end, Some(limit.inner)));
        state.table = Arc::clone(table);
        state.remotes = remotes(table);
        state.follow(&self.sockets);
    }

    /// Returns the address by which messages are rationed that quote a packet to `quoted`; `None` if no peer
    /// has it.
    fn ration(&self, quoted: IpAddr) -> Option<IpAddr> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.table.format() {
            Format::Wireguard => Some(*state.remotes.get(&quoted).unwrap_or(&ROAMED)),
            _ => state.table.peer_at(PathEnd::Remote(quoted)).map(|_| quoted),
        }
    }

    /// Lowers the limit of a peer, and keeps it for a while. Returns whether it has changed.
    fn learn(&self, end: PathEnd, inner: u16, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { table, limits, .. } = &mut *state;
        let known = limits.get(&end).map(|limit| limit.inner);
        let largest = known.or_else(|| table.peer_at(end).map(|peer| peer.mtu));
        if largest.is_none_or(|largest| inner > largest || (known.is_none() && inner == largest)) {
            return false;
        }
        limits.insert(end, Limit { inner, until: now + AGE });
        table.set_path_limit(end, Some(inner));
        state.follow(&self.sockets);
        known != Some(inner)
    }

    /// Removes the limits that are too old. Returns when the next one will be.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { table, limits, .. } = &mut *state;
        limits.retain(|end, limit| {
            let keep = limit.until > now;
            if !keep {
                table.set_path_limit(*end, None);
            }
            keep
        });
        state.follow(&self.sockets);
        state.limits.values().map(|limit| limit.until).min()
    }

    pub(crate) fn table(&self) -> Arc<Fib> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner).table)
    }

    pub(crate) fn status(&self) -> PathStatus {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut limits: Vec<(String, u16)> =
            state.limits.iter().map(|(end, limit)| (name(&state.table, *end), limit.inner)).collect();
        limits.sort();
        PathStatus {
            limits,
            believed: self.believed.load(Ordering::Relaxed),
            ignored: self.ignored.load(Ordering::Relaxed),
        }
    }
}

/// Returns a peer's address for people.
fn name(table: &Fib, end: PathEnd) -> String {
    match end {
        PathEnd::Remote(address) => address.to_string(),
        PathEnd::Peer(_) => table.peer_at(end).map_or_else(String::new, |peer| peer.remote.ip().to_string()),
    }
}

/// A tunnel, as the learner sees it.
pub(crate) struct Watched {
    pub(crate) paths: Arc<Paths>,
    pub(crate) own: Own,
    /// Whether the tunnel sends over IPv4 and IPv6 in a way that ICMP messages concern it.
    pub(crate) families: [bool; 2],
    /// The sessions of a WireGuard tunnel.
    pub(crate) established: Option<Established>,
    pub(crate) notifier: Notifier,
}

/// A worker's report that a datagram was larger than its route's device takes.
pub(crate) struct Refused {
    tunnel: usize,
    peer: PeerId,
    to: SocketAddr,
}

/// A worker's end of the channel to the learner.
#[derive(Clone)]
pub(crate) struct Hint {
    sender: Sender<Refused>,
    waker: Waker,
}

impl Hint {
    /// Reports a refused datagram. Never blocks.
    #[cold]
    pub(crate) fn refused(&self, tunnel: usize, (peer, to): (PeerId, SocketAddr)) {
        if self.sender.try_send(Refused { tunnel, peer, to }).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// A learner that has not been started.
pub(crate) struct Learner {
    sockets: Vec<TooBigSocket>,
    waiter: Waiter,
    refused: (Sender<Refused>, Receiver<Refused>),
}

/// A running learner.
pub(crate) struct LearnerHandle {
    waker: Waker,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Learner {
    pub(crate) fn new(sockets: Vec<TooBigSocket>) -> std::io::Result<Learner> {
        let mut waiter = Waiter::new()?;
        for (token, socket) in sockets.iter().enumerate() {
            socket.register(&mut waiter, token)?;
        }
        Ok(Learner { sockets, waiter, refused: crossbeam_channel::bounded(WAITING) })
    }

    pub(crate) fn hint(&self) -> Hint {
        Hint { sender: self.refused.0.clone(), waker: self.waiter.waker() }
    }

    /// Starts the thread, which runs until `stop` is set and it is woken.
    pub(crate) fn start(
        self,
        tunnels: Vec<Watched>,
        mut nat: own_nat::Watch,
        stop: Arc<AtomicBool>,
        notifier: Notifier,
    ) -> std::io::Result<LearnerHandle> {
        let Learner { sockets, mut waiter, refused: (_, refused) } = self;
        let waker = waiter.waker();
        let mut asked = Asked { since: Instant::now(), ends: HashSet::new() };
        let mut rations = Rations { since: Instant::now(), judged: HashMap::new() };
        let run = move || {
            // The first turn finds out when the next one is.
            let mut timeout = Some(Duration::ZERO);
            // Whether more messages may be waiting; the waiter reports only new ones.
            let mut pending = false;
            while !stop.load(Ordering::Relaxed) {
                if pending {
                    std::thread::sleep(PAUSE);
                } else {
                    waiter.wait(timeout)?;
                }
                pending = judge_some(&sockets, &tunnels, &mut rations);
                for refused in refused.try_iter() {
                    ask(&tunnels, &mut asked, &refused);
                }
                let now = Instant::now();
                let next = tunnels.iter().filter_map(|tunnel| tunnel.paths.expire(now));
                let next = next.chain(nat.poll(now)).min();
                timeout = next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
            }
            Ok(())
        };
        let thread = std::thread::Builder::new()
            .name("loden-pmtu".to_owned())
            .spawn(move || event::watch(&notifier, Event::LearnerFailed, run))?;
        Ok(LearnerHandle { waker, thread: Mutex::new(Some(thread)) })
    }
}

impl LearnerHandle {
    /// Wakes the thread and waits for its end. The stop flag must be set.
    pub(crate) fn stop(&self) {
        let _ = self.waker.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Reads and judges a bounded number of messages. Returns whether more may be waiting.
fn judge_some(sockets: &[TooBigSocket], tunnels: &[Watched], rations: &mut Rations) -> bool {
    let mut buffer = [0; ROOM];
    let mut more = false;
    for socket in sockets {
        let mut left = READS;
        while left > 0 {
            left -= 1;
            let Ok(len) = socket.receive(&mut buffer) else { break };
            let message = buffer.get(..len).unwrap_or_default();
            let v6 = socket.is_ipv6();
            let concerned =
                || tunnels.iter().enumerate().filter(|(_, tunnel)| tunnel.families[usize::from(v6)]);
            let now = Instant::now();
            let mut believed = |(index, tunnel)| {
                rations.admit(index, tunnel, message, v6, now) && believe(tunnel, message, v6)
            };
            if !concerned().any(&mut believed) {
                concerned().for_each(|(_, tunnel)| _ = tunnel.paths.ignored.fetch_add(1, Ordering::Relaxed));
            }
            more |= left == 0;
        }
    }
    more
}

/// The messages that have been judged since a moment, by tunnel and quoted peer.
struct Rations {
    since: Instant,
    judged: HashMap<(usize, IpAddr), u32>,
}

impl Rations {
    /// Whether a message may be judged: what anyone can know is right, and few others have quoted the same
    /// peer. If so, it is counted.
    fn admit(&mut self, index: usize, tunnel: &Watched, message: &[u8], v6: bool, now: Instant) -> bool {
        let table = tunnel.paths.table();
        let quoted = quote::quoted(message, v6, &table, &tunnel.own);
        quoted.and_then(|quoted| tunnel.paths.ration(quoted)).is_some_and(|peer| self.count(index, peer, now))
    }

    fn count(&mut self, index: usize, peer: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.judged.clear();
        }
        let judged = self.judged.entry((index, peer)).or_insert(0);
        *judged += 1;
        *judged <= MESSAGES
    }
}

/// Learns from a message, if the tunnel has sent what it quotes. Returns whether it has.
fn believe(tunnel: &Watched, message: &[u8], v6: bool) -> bool {
    let table = tunnel.paths.table();
    let Some(announcement) = quote::judge(message, v6, &table, &tunnel.own) else { return false };
    let end = match announcement.whose {
        Whose::Path(end) => end,
        Whose::Session(index) => match tunnel.established.as_ref().and_then(|all| all.peer(index)) {
            Some(peer) => PathEnd::Peer(peer),
            None => return false,
        },
    };
    tunnel.paths.believed.fetch_add(1, Ordering::Relaxed);
    learn(tunnel, end, announcement.limit);
    true
}

/// The peers whose routes were asked for since a moment.
struct Asked {
    since: Instant,
    ends: HashSet<(usize, PathEnd)>,
}

impl Asked {
    /// Whether the route to a peer of this tunnel may be asked for. If so, it is counted.
    fn admits(&mut self, tunnel: usize, end: PathEnd, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= ASK_INTERVAL {
            *self = Asked { since: now, ends: HashSet::new() };
        }
        self.ends.len() < QUESTIONS && self.ends.insert((tunnel, end))
    }
}

/// Asks the kernel for the MTU of the route to a peer that refused datagrams.
fn ask(tunnels: &[Watched], asked: &mut Asked, refused: &Refused) {
    let Refused { tunnel, peer, to } = *refused;
    let Some(watched) = tunnels.get(tunnel) else { return };
    let table = watched.paths.table();
    let end = table.end_of(peer, to.ip());
    if !asked.admits(tunnel, end, Instant::now()) {
        return;
    }
    if let Ok(Some(mtu)) = io::route::mtu(to.ip()) {
        learn(watched, end, table.format().inner_limit(mtu, to.is_ipv6()));
    }
}

fn learn(tunnel: &Watched, end: PathEnd, limit: u16) {
    if tunnel.paths.learn(end, limit, Instant::now()) {
        let peer = name(&tunnel.paths.table(), end);
        tunnel.notifier.send(Event::PathLimited { peer, limit });
    }
}

/// The worker that the learner's notices name.
pub(crate) const NOBODY: WorkerIndex = WorkerIndex(0);

#[cfg(test)]
mod tests {
    use path::{FibBuilder, Format, PeerSpec};

    use super::*;

    fn table(hosts: &[u8]) -> Arc<Fib> {
        let mut builder = FibBuilder::new(Format::Udp);
        for host in hosts {
            let remote = SocketAddr::from(([192, 0, 2, *host], 8285));
            let prefix = format!("10.1.{host}.0/24").parse().expect("a prefix");
            builder.add(prefix, PeerSpec { remote, mac: None, mtu: 1472 }).expect("a peer");
        }
        Arc::new(builder.build().expect("a table"))
    }

    fn end(host: u8) -> PathEnd {
        PathEnd::Remote([192, 0, 2, host].into())
    }

    fn limit(table: &Fib, host: u8) -> u16 {
        table.peer_at(end(host)).map_or(0, |peer| peer.limit(false))
    }

    #[test]
    fn a_limit_only_falls_survives_a_new_table_and_expires() {
        let first = table(&[1, 2]);
        let paths = Paths::new(Arc::clone(&first), PathMtuSockets::default());
        let start = Instant::now();
        assert!(!paths.learn(end(9), 1300, start), "no such peer");
        assert!(!paths.learn(end(1), 1472, start), "nothing to learn");
        assert!(paths.learn(end(1), 1300, start) && !paths.learn(end(1), 1300, start));
        assert!(!paths.learn(end(1), 1400, start));
        assert_eq!((limit(&first, 1), limit(&first, 2)), (1300, 1472));
        let second = table(&[7, 2, 1]);
        paths.renew(&second);
        assert_eq!((limit(&second, 7), limit(&second, 1)), (1472, 1300));
        assert_eq!(paths.status().limits, [("192.0.2.1".to_owned(), 1300)]);
        assert_eq!(paths.expire(start), Some(start + AGE));
        assert_eq!(paths.expire(start + AGE), None);
        assert_eq!(limit(&second, 1), 1472);
        assert!(paths.learn(end(1), 1200, start));
        paths.renew(&table(&[2]));
        assert!(paths.status().limits.is_empty(), "the peer is gone");
    }

    #[test]
    fn each_peer_has_a_ration_of_messages() {
        let now = Instant::now();
        let mut rations = Rations { since: now, judged: HashMap::new() };
        let peers = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        assert_eq!((0..10_000).filter(|_| rations.count(0, peers[0], now)).count(), MESSAGES as usize);
        assert!(rations.count(0, peers[1], now) && rations.count(1, peers[0], now));
        assert!(!rations.count(0, peers[0], now + WINDOW / 2));
        assert!(rations.count(0, peers[0], now + WINDOW));
        let paths = Paths::new(table(&[1]), PathMtuSockets::default());
        assert_eq!((paths.ration(peers[0]), paths.ration(peers[1])), (Some(peers[0]), None));
    }

    #[test]
    fn routes_are_asked_for_once_a_second_each_and_a_limited_number_in_all() {
        let start = Instant::now();
        let mut asked = Asked { since: start, ends: HashSet::new() };
        assert!(asked.admits(0, end(1), start) && asked.admits(1, end(1), start));
        assert!(!asked.admits(0, end(1), start) && !asked.admits(0, end(1), start + ASK_INTERVAL / 2));
        let flood = (0..10_000).filter(|id| asked.admits(2, PathEnd::Peer(PeerId(*id)), start));
        assert_eq!(flood.count(), QUESTIONS - 2);
        assert!(asked.admits(0, end(1), start + ASK_INTERVAL));
    }
}
