//! WireGuard beside the workers.
//!
//! ```text
//!  worker 0 ─┐ FromWorker: "no session"; FromNetwork: messages                 ┌──────────┐
//!  worker 1 ─┴──────────────────────── bounded, never waits ──────────────────►│  keeper  │◄── FromControl: peers
//!      ▲                                                                       └────┬─────┘
//!      └──── ToWorker: sessions to use and to forget, by a mailbox with a flag ─────┘
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
use path::PeerId;
use path::wireguard::session::Millis;
use path::wireguard::{Gate, PublicKey, SecretKey};

pub(crate) use self::mail::Stray;
use self::mail::{FromControl, FromNetwork, FromWorker, Mailbox};

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
    pub id: PeerId,
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

/// Control's end of a keeper.
pub(crate) struct KeeperHandle {
    commands: Sender<FromControl>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl KeeperHandle {
    pub(crate) fn new(commands: Sender<FromControl>, thread: std::thread::JoinHandle<()>) -> KeeperHandle {
        KeeperHandle { commands, thread: Mutex::new(Some(thread)) }
    }

    pub(crate) fn set_peers(&self, peers: Vec<PeerConfig>) {
        let _ = self.commands.send(FromControl::Peers(peers));
    }

    /// Asks for the state of all peers. Returns `None` if the keeper does not answer within a second.
    pub(crate) fn status(&self) -> Option<Vec<PeerStatus>> {
        let (sender, answer): (_, Receiver<Vec<PeerStatus>>) = crossbeam_channel::bounded(1);
        self.commands.send(FromControl::Status(sender)).ok()?;
        // A keeper in a storm of handshakes may be busy for a while; control must not wait forever.
        answer.recv_timeout(Duration::from_secs(1)).ok()
    }

    /// Waits for the thread to end, as it does when all workers have.
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

/// What a tunnel's workers and its keeper share, before their threads run.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) gate: Gate,
    pub(crate) from_worker: (Sender<FromWorker>, Receiver<FromWorker>),
    pub(crate) from_network: (Sender<FromNetwork>, Receiver<FromNetwork>),
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
}

/// Messages that may wait in each of the keeper's two channels; more are dropped, and counted by whoever cannot send.
const WAITING: usize = 4096;

impl Shared {
    pub(crate) fn new(workers: usize, settings: &Settings) -> Shared {
        Shared {
            clock: Clock::start(),
            gate: Gate::new(&settings.private.public()),
            from_worker: crossbeam_channel::bounded(WAITING),
            from_network: crossbeam_channel::bounded(WAITING),
            mailboxes: (0..workers).map(|_| Arc::default()).collect(),
        }
    }
}
