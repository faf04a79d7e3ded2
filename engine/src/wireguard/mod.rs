//! WireGuard: the workers' part and the keeper's.
//!
//! ```text
//!  worker 0 ─┐ FromWorker: "no session"; from the network: messages       ┌──────────┐
//!  worker 1 ─┴──────────────────────── bounded, never blocks ────────────►│  keeper  │◄── FromControl: peers
//!      ▲                                                                  └────┬─────┘
//!      └──── ToWorker: sessions to use and to forget, in a mailbox ────────────┘
//! ```
//!
//! Workers only seal and open ([`crypt`]). Handshakes and timers run on a separate thread per tunnel
//! ([`keeper`]): a handshake costs as much as a hundred packets, and ten thousand of them must not stall any
//! traffic. Every worker can seal with a session, because the workers share its counter. Only one worker
//! opens with it, because it has one replay window: the worker at whose socket the session's first record
//! arrived.

mod awaited;
mod budget;
pub(crate) mod crypt;
mod established;
pub(crate) mod keeper;
mod mail;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use path::PeerId;
use path::wireguard::{Gate, PublicKey, SecretKey};

use self::awaited::Awaited;
use self::budget::Budget;
pub(crate) use self::established::Established;
use self::mail::{FromControl, FromWorker, Mailbox, Message};
pub(crate) use self::mail::{Stray, ToWorker};
use crate::clock::Clock;

/// The settings of a WireGuard tunnel.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's private key.
    pub private: SecretKey,
    /// The peers from the first packet on, with their numbers in the first table. Later changes are made with
    /// [`Engine::set_peers`](crate::Engine::set_peers).
    pub peers: Vec<PeerConfig>,
}

/// The configuration of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// The peer's number in the forwarding table, which is never reused.
    pub id: PeerId,
    /// The peer's public key.
    pub key: PublicKey,
    /// The pre-shared key; zeros for none.
    pub psk: SecretKey,
    /// The peer's address, until it sends from another one.
    pub endpoint: Option<SocketAddr>,
    /// The interval of persistent keepalives; zero for none.
    pub keepalive: Duration,
}

/// The state of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer's public key.
    pub key: PublicKey,
    /// The address that the peer last sent from, or its configured address.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes of records sent.
    pub sent_bytes: u64,
    /// Bytes of records received.
    pub received_bytes: u64,
    /// The interval of persistent keepalives; zero for none.
    pub keepalive: Duration,
    /// Whether there is a pre-shared key.
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

    /// Requests the state of all peers. Returns `None` if the keeper does not answer within a second.
    pub(crate) fn status(&self) -> Option<Vec<PeerStatus>> {
        let (sender, answer): (_, Receiver<Vec<PeerStatus>>) = crossbeam_channel::bounded(1);
        self.commands.send(FromControl::Status(sender)).ok()?;
        // A keeper in a storm of handshakes may be busy for a while; control must not wait forever.
        answer.recv_timeout(Duration::from_secs(1)).ok()
    }

    /// Waits for the thread, which ends after all workers have ended.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// The state that a tunnel's workers and keeper share, created before their threads start.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) gate: Gate,
    pub(crate) from_worker: (Sender<FromWorker>, Receiver<FromWorker>),
    pub(crate) handshakes: (Sender<Message>, Receiver<Message>),
    pub(crate) cookies: (Sender<Message>, Receiver<Message>),
    pub(crate) awaited: Arc<Awaited>,
    pub(crate) strays: (Sender<Stray>, Receiver<Stray>),
    /// The memory for packets that wait for a session.
    pub(crate) waiting: Budget,
    /// The memory for strays.
    pub(crate) astray: Budget,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) established: Established,
}

/// Capacity of each of the keeper's channels from workers. Further messages are dropped and counted by the
/// sender. Strangers can send any number of handshake messages and strays, so each kind has a channel of its
/// own and takes no place from another.
const WAITING: usize = 4096;
/// Capacity of the keeper's channel for cookie replies, which anyone who has seen a handshake can forge.
const COOKIES: usize = 256;
/// Bytes of packets that wait for sessions, of all peers and workers: 10,000 of wire size. In the kernel it
/// is 128 packets for each peer.
const WAITING_BYTES: usize = 16 << 20;
/// Bytes of strays that wait for the worker that opens them.
const STRAY_BYTES: usize = 4 << 20;

impl Shared {
    pub(crate) fn new(workers: usize, settings: &Settings) -> Shared {
        let gate = Gate::new(&settings.private.public());
        let cookies = crossbeam_channel::bounded(COOKIES);
        Shared { cookies, ..Shared::with_bounds(workers, gate, WAITING, WAITING_BYTES, STRAY_BYTES) }
    }

    /// Creates the state with channels of this capacity, and this much memory for waiting packets and strays.
    pub(crate) fn with_bounds(
        workers: usize,
        gate: Gate,
        capacity: usize,
        waiting: usize,
        astray: usize,
    ) -> Shared {
        Shared {
            clock: Clock::start(),
            gate,
            from_worker: crossbeam_channel::bounded(capacity),
            handshakes: crossbeam_channel::bounded(capacity),
            cookies: crossbeam_channel::bounded(capacity),
            awaited: Arc::new(Awaited::new()),
            strays: crossbeam_channel::bounded(capacity),
            waiting: Budget::new(waiting),
            astray: Budget::new(astray),
            mailboxes: (0..workers).map(|_| Arc::default()).collect(),
            established: Established::default(),
        }
    }
}
