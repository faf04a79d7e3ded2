//! What a keeper hears and tells. None of it is sent for each packet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use path::wireguard::{Pulse, Session, SessionIndex};
use path::{DropReason, PeerId, WorkerIndex};

use super::{PeerConfig, PeerStatus};

/// What the network brought, from a worker to the keeper. Strangers can make as much of it as they like, so it has a
/// channel of its own, and a full one keeps no [`FromWorker`] out.
pub(crate) enum FromNetwork {
    /// A handshake message from this address, made for our key.
    Message(SocketAddr, Box<[u8]>),
    /// A record that arrived at the wrong worker; bring it to this one.
    Stray(WorkerIndex, Stray),
}

/// What a worker needs or has noticed, from a worker to the keeper.
pub(crate) enum FromWorker {
    /// A packet waits and there is no session, or the session is getting old.
    Want(PeerId),
    /// The first record of an awaited session has come.
    Confirmed(PeerId, SessionIndex),
    /// A peer now sends from this address.
    Roamed(PeerId, SocketAddr),
    /// A record of no session came from this address.
    Unknown(SocketAddr),
    /// Something was sent: watch for an answer.
    Sent(PeerId),
    /// Something was received: watch that it is answered.
    Received(PeerId),
}

/// A request from control to a keeper.
pub(crate) enum FromControl {
    /// Keep these peers and no others.
    Peers(Vec<PeerConfig>),
    /// Report the state of all peers.
    Status(Sender<Vec<PeerStatus>>),
}

/// From the keeper to a worker.
pub(crate) enum ToWorker {
    /// A peer is new, or has another address.
    Peer(PeerId, Option<SocketAddr>, Arc<Pulse>),
    /// A peer is gone, and its sessions with it.
    Gone(PeerId),
    /// Take records of this session, and send with it if `true`.
    Session(Arc<Session>, bool),
    /// Take no more records of this session.
    Forget(SessionIndex),
    /// The peer does not answer: drop what waits for it.
    GiveUp(PeerId),
    /// A record that arrived at another worker.
    Stray(Stray),
    /// Count this many messages as dropped.
    Dropped(DropReason, u64),
}

/// A record on its way to the worker that has its window.
pub(crate) struct Stray {
    pub(crate) source: SocketAddr,
    pub(crate) ecn: u8,
    pub(crate) bytes: Box<[u8]>,
}

/// Strays that may wait for one worker.
const STRAYS: usize = 1024;

/// Mail on its way to one worker, which looks at a flag each turn and takes the lock when it is set.
#[derive(Default)]
pub(crate) struct Mailbox {
    full: AtomicBool,
    /// Strays that the worker has not taken yet.
    strays: AtomicUsize,
    mail: Mutex<Vec<ToWorker>>,
}

impl Mailbox {
    pub(crate) fn put(&self, mail: ToWorker) {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
        self.full.store(true, Ordering::Release);
    }

    /// Puts a stray, unless too many wait: anybody who has seen a session's index can make them.
    pub(crate) fn put_stray(&self, stray: Stray) -> bool {
        let room = self.strays.load(Ordering::Relaxed) < STRAYS;
        if room {
            self.strays.fetch_add(1, Ordering::Relaxed);
            self.put(ToWorker::Stray(stray));
        }
        room
    }

    /// Makes room for one more stray; the worker has taken one.
    pub(crate) fn stray_taken(&self) {
        self.strays.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there is anything to take.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    pub(crate) fn take(&self) -> Vec<ToWorker> {
        self.full.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
