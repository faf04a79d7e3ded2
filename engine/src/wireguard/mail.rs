//! What a keeper and its workers tell each other. None of it is told for each packet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use path::DropReason;
use path::wireguard::{Pulse, Session};

/// From a worker to the keeper: what the network brought. Strangers can make as much of it as they like, so it has a
/// channel of its own, and a full one keeps no [`Event`] out.
pub(crate) enum Arrival {
    /// A handshake message from there, made for our key.
    Message(SocketAddr, Box<[u8]>),
    /// A record arrived at the wrong worker; bring it to this one.
    Stray(u32, Stray),
}

/// From a worker to the keeper: what it needs or has noticed.
pub(crate) enum Event {
    /// A packet waits and there is no session, or the session is getting old.
    Want(u32),
    /// The first record of an awaited session has come.
    Confirmed(u32, u32),
    /// A peer was heard at another address.
    Roamed(u32, SocketAddr),
    /// A record of no session came from there.
    Unknown(SocketAddr),
    /// Something was sent: watch for an answer.
    Sent(u32),
    /// Something was received: watch that it is answered.
    Received(u32),
}

/// A record on its way to the worker that has its window.
pub(crate) struct Stray {
    pub(crate) source: SocketAddr,
    pub(crate) ecn: u8,
    pub(crate) bytes: Box<[u8]>,
}

/// From the keeper to a worker.
pub(crate) enum Update {
    /// A peer is there, or is somewhere else.
    Peer(u32, Option<SocketAddr>, Arc<Pulse>),
    /// A peer is gone, and its sessions with it.
    Gone(u32),
    /// Take records of this session, and send with it if `true`.
    Session(Arc<Session>, bool),
    /// Take no records under this name any more.
    Forget(u32),
    /// The peer does not answer: drop what waits for it.
    GiveUp(u32),
    /// A record that arrived at another worker.
    Stray(Stray),
    /// So many messages came to nothing, to be counted.
    Dropped(DropReason, u64),
}

/// Strays that may wait for one worker.
const STRAYS: usize = 1024;

/// Updates on their way to one worker, which looks at a flag each turn and takes the lock when it is set.
#[derive(Default)]
pub(crate) struct Mailbox {
    full: AtomicBool,
    /// Strays that the worker has not taken yet.
    strays: AtomicUsize,
    updates: Mutex<Vec<Update>>,
}

impl Mailbox {
    pub(crate) fn put(&self, update: Update) {
        self.updates.lock().unwrap_or_else(PoisonError::into_inner).push(update);
        self.full.store(true, Ordering::Release);
    }

    /// Puts a stray, unless too many wait: anybody who has seen a session's name can make them.
    pub(crate) fn put_stray(&self, stray: Stray) -> bool {
        let room = self.strays.load(Ordering::Relaxed) < STRAYS;
        if room {
            self.strays.fetch_add(1, Ordering::Relaxed);
            self.put(Update::Stray(stray));
        }
        room
    }

    /// The worker has taken one, or there was none.
    pub(crate) fn stray_taken(&self, one: bool) {
        self.strays.fetch_sub(usize::from(one), Ordering::Relaxed);
    }

    /// Whether there is anything to take.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    pub(crate) fn take(&self) -> Vec<Update> {
        self.full.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.updates.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
