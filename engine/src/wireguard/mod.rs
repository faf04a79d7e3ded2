//! WireGuard beside the workers.
//!
//! ```text
//!  worker 0 ─┐ events: "no session", "somebody answered"; arrivals: messages   ┌──────────┐
//!  worker 1 ─┴──────────────────────── bounded, never waits ──────────────────►│  keeper  │◄── control: peers
//!      ▲                                                                       └────┬─────┘
//!      └──── mailbox: sessions to use, names to forget; looked at when it changed ──┘
//! ```
//!
//! Workers do nothing but seal and open ([`crypt`]). Handshakes and timers run on a thread of their own for each
//! tunnel ([`keeper`]): a handshake costs as much as a hundred packets, and ten thousand of them must not stall
//! anybody's traffic. Sealing is open to every worker, by a counter that they share; opening is one worker's for each
//! session, because there is one replay window: the worker at whose socket the session's first record arrived.

pub(crate) mod crypt;
pub(crate) mod keeper;
mod mail;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use path::wireguard::session::Millis;
use path::wireguard::{Gate, PublicKey, SecretKey};

pub(crate) use mail::{Arrival, Event, Mailbox};

/// What a tunnel needs to speak WireGuard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our private key.
    pub private: SecretKey,
    /// The peers from the first packet on, with the numbers that the first table has; later ones come by
    /// [`Engine::set_peers`](crate::Engine::set_peers).
    pub peers: Vec<PeerConfig>,
}

/// A peer as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its number in the forwarding table, which no other peer ever had.
    pub id: u32,
    /// Its key.
    pub key: PublicKey,
    /// The secret that both sides have besides their keys; zeros for none.
    pub psk: SecretKey,
    /// Where it is, until it is heard elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// How long a silence may last before something empty is sent; zero for ever.
    pub keepalive: Duration,
}

/// A peer as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its key.
    pub key: PublicKey,
    /// Where it was last heard, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes of records sent.
    pub sent_bytes: u64,
    /// Bytes of records received.
    pub received_bytes: u64,
    /// The interval of persistent keepalives; zero for none.
    pub keepalive: Duration,
    /// Whether there is a secret besides the keys.
    pub has_psk: bool,
}

/// What control tells a keeper.
pub(crate) enum Command {
    /// These are all peers there should be.
    Peers(Vec<PeerConfig>),
    /// Tell how they are.
    Status(Sender<Vec<PeerStatus>>),
}

/// Control's end of a keeper.
pub(crate) struct Handle {
    commands: Sender<Command>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Handle {
    pub(crate) fn new(commands: Sender<Command>, thread: std::thread::JoinHandle<()>) -> Handle {
        Handle { commands, thread: Mutex::new(Some(thread)) }
    }

    pub(crate) fn set_peers(&self, peers: Vec<PeerConfig>) {
        let _ = self.commands.send(Command::Peers(peers));
    }

    /// `None` if it does not answer.
    pub(crate) fn status(&self) -> Option<Vec<PeerStatus>> {
        let (sender, answer): (_, Receiver<Vec<PeerStatus>>) = crossbeam_channel::bounded(1);
        self.commands.send(Command::Status(sender)).ok()?;
        // A keeper in a storm of handshakes may be busy for a while; control must not wait for ever.
        answer.recv_timeout(Duration::from_secs(1)).ok()
    }

    /// Ends the thread, which ends when nobody can tell it anything any more.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// The clock of a tunnel: milliseconds since it was opened, and never 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    #[inline]
    pub(crate) fn now(&self) -> Millis {
        self.0.elapsed().as_millis() as Millis + 1
    }
}

/// A tunnel's shared parts, before its threads run.
pub(crate) struct Parts {
    pub(crate) clock: Clock,
    pub(crate) gate: Gate,
    pub(crate) events: (Sender<Event>, Receiver<Event>),
    pub(crate) arrivals: (Sender<Arrival>, Receiver<Arrival>),
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
}

/// Events that may wait for a keeper, and as many arrivals; more are dropped, and counted by whoever cannot send.
const WAITING: usize = 4096;

impl Parts {
    pub(crate) fn new(workers: usize, settings: &Settings) -> Parts {
        Parts {
            clock: Clock::start(),
            gate: Gate::new(&settings.private.public()),
            events: crossbeam_channel::bounded(WAITING),
            arrivals: crossbeam_channel::bounded(WAITING),
            mailboxes: (0..workers).map(|_| Arc::default()).collect(),
        }
    }
}
