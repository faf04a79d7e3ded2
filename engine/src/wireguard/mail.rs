//! The messages to and from a keeper. None of them is sent per packet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use path::wireguard::{Pulse, Session, SessionIndex};
use path::{DropReason, PeerId, WorkerIndex};

use super::budget::Kept;
use super::{PeerConfig, PeerStatus};

/// A handshake message, passed from the worker that received it to the keeper.
pub(crate) struct Message {
    pub(crate) source: SocketAddr,
    pub(crate) bytes: Box<[u8]>,
}

/// A request or report from a worker to the keeper.
pub(crate) enum FromWorker {
    /// A new session is needed: there is none, or the current one is old.
    Want(PeerId),
    /// The first record of an awaited session has arrived.
    Confirmed(PeerId, SessionIndex),
    /// A peer now sends from this address.
    Roamed(PeerId, SocketAddr),
    /// A record of an unknown session arrived from this address.
    Unknown(SocketAddr),
    /// Data was sent: start the timer for a response.
    Sent(PeerId),
    /// Data was received: start the timer for a keepalive.
    Received(PeerId),
}

/// A request from control to a keeper.
pub(crate) enum FromControl {
    /// Keep these peers and no others.
    Peers(Vec<PeerConfig>),
    /// Report the state of all peers.
    Status(Sender<Vec<PeerStatus>>),
}

/// A message from the keeper to a worker.
pub(crate) enum ToWorker {
    /// A peer is new or has a new address.
    Peer(PeerId, Option<SocketAddr>, Arc<Pulse>),
    /// A peer was removed, with its sessions.
    Gone(PeerId),
    /// Receive with this session, and also send with it if `true`.
    Session(Arc<Session>, bool),
    /// Stop receiving with this session.
    Forget(SessionIndex),
    /// The peer does not respond: drop the packets that wait for it.
    GiveUp(PeerId),
    /// A record that arrived at another worker.
    Stray(Stray),
    /// Count this many messages as dropped.
    Dropped(DropReason, u64),
}

/// A record that arrived at the wrong worker, on its way to the one with its session's replay window.
pub(crate) struct Stray {
    pub(crate) owner: WorkerIndex,
    pub(crate) source: SocketAddr,
    pub(crate) ecn: u8,
    pub(crate) bytes: Kept,
}

/// Maximum strays that wait for one worker.
const STRAYS: usize = 1024;

/// The mail to one worker. The worker checks a flag each turn and takes the lock if it is set.
#[derive(Default)]
pub(crate) struct Mailbox {
    full: AtomicBool,
    /// Number of strays that the worker has not taken yet.
    strays: AtomicUsize,
    mail: Mutex<Vec<ToWorker>>,
}

impl Mailbox {
    pub(crate) fn put(&self, mail: ToWorker) {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
        self.full.store(true, Ordering::Release);
    }

    /// Puts a stray, unless too many are waiting: anyone who has seen a session's index can forge strays.
    pub(crate) fn put_stray(&self, stray: Stray) -> bool {
        let room = self.strays.load(Ordering::Relaxed) < STRAYS;
        if room {
            self.strays.fetch_add(1, Ordering::Relaxed);
            self.put(ToWorker::Stray(stray));
        }
        room
    }

    /// Makes room for another stray after the worker has taken one.
    pub(crate) fn stray_taken(&self) {
        self.strays.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there is mail.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    pub(crate) fn take(&self) -> Vec<ToWorker> {
        self.full.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
