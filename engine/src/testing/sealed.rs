//! The workers of a WireGuard tunnel without a keeper: a test writes their mail and sets their clock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use io::memory::{self, MemoryConfig, MemoryOverlay, MemoryUnderlay, OverlayHandle, UnderlayHandle};
use path::wireguard::session::Millis;
use path::wireguard::{Gate, PublicKey, Session, SessionIndex};
use path::{Fib, PeerId, WorkerIndex};

use super::ByHand;
use crate::clock::Clock;
use crate::config::Switches;
use crate::tunnel::Sealing;
use crate::wireguard::crypt::Crypt;
use crate::wireguard::{Shared, ToWorker};

/// Capacity of the channels to the keeper: a few messages fill them.
const CHANNEL: usize = 4;

/// The workers of a tunnel, over ports in memory.
pub struct Sealed {
    shared: Shared,
    clock: Arc<AtomicU64>,
    /// The workers.
    pub workers: Vec<SealedWorker>,
}

/// One worker with its ports.
pub struct SealedWorker {
    /// The worker, for turning it.
    pub worker: ByHand<MemoryOverlay, MemoryUnderlay>,
    /// Its queue's other end.
    pub pods: OverlayHandle,
    /// Its port's other end.
    pub network: UnderlayHandle,
}

/// What a keeper writes to a worker.
pub enum Update {
    /// A peer is new or has a new address.
    Peer(PeerId, Option<SocketAddr>),
    /// A peer was removed.
    Gone(PeerId),
    /// Receive with this session, and also send with it if `true`.
    Session(Arc<Session>, bool),
    /// Stop receiving with this session.
    Forget(SessionIndex),
    /// The peer does not respond.
    GiveUp(PeerId),
}

impl Sealed {
    /// Creates workers that keep at most `waiting` bytes of packets without a session and `astray` bytes of
    /// records that arrived at the wrong worker.
    pub fn new(
        workers: u32,
        key: &PublicKey,
        fib: &Fib,
        mtu: u16,
        (waiting, astray): (usize, usize),
    ) -> std::io::Result<Sealed> {
        let clock = Arc::new(AtomicU64::new(1));
        let shared = Shared {
            clock: Clock::Set(Arc::clone(&clock)),
            ..Shared::with_bounds(workers as usize, Gate::new(key), CHANNEL, waiting, astray)
        };
        let workers = (0..workers).map(|worker| {
            let crypt = Crypt::new(&shared, WorkerIndex(worker), mtu);
            let (overlay, pods) = memory::overlay();
            let local = SocketAddr::from(([192, 0, 2, 1], 51820));
            let (underlay, network) = memory::underlay(local, MemoryConfig::default());
            let sealing = Sealing::Wireguard(Box::new(crypt));
            let (queues, settings) = (vec![overlay], (mtu, 1));
            let (fib, clock) = (fib.clone(), Arc::clone(&clock));
            let switches = Switches::default();
            let worker = ByHand::with_sealing(queues, underlay, fib, settings, switches, sealing, clock)?;
            Ok(SealedWorker { worker, pods, network })
        });
        let workers = workers.collect::<std::io::Result<_>>()?;
        Ok(Sealed { shared, clock, workers })
    }

    /// Returns the time on the workers' clock.
    pub fn now(&self) -> Millis {
        self.clock.load(Ordering::Relaxed)
    }

    /// Lets time pass.
    pub fn advance(&self, by: Millis) {
        self.clock.fetch_add(by, Ordering::Relaxed);
    }

    /// Puts mail from the keeper into a worker's mailbox.
    pub fn mail(&self, worker: usize, update: Update) {
        self.shared.mailboxes[worker].put(match update {
            Update::Peer(id, endpoint) => ToWorker::Peer(id, endpoint, Arc::default()),
            Update::Gone(id) => ToWorker::Gone(id),
            Update::Session(session, send) => ToWorker::Session(session, send),
            Update::Forget(index) => ToWorker::Forget(index),
            Update::GiveUp(id) => ToWorker::GiveUp(id),
        });
    }

    /// Takes the workers' messages to the keeper, and passes on the records that arrived at the wrong worker.
    pub fn take_reports(&self) {
        self.shared.from_worker.1.try_iter().for_each(drop);
        self.shared.handshakes.1.try_iter().for_each(drop);
        self.shared.cookies.1.try_iter().for_each(drop);
        for stray in self.shared.strays.1.try_iter() {
            self.shared.mailboxes[stray.owner.place()].put_stray(stray);
        }
    }

    /// Returns how many more bytes of packets without a session, and of records that arrived at the wrong
    /// worker, can be kept.
    pub fn left(&self) -> (usize, usize) {
        (self.shared.waiting.left(), self.shared.astray.left())
    }
}
