//! The few things that a worker tells control besides its counters.

use crossbeam_channel::{Receiver, Sender};
use path::WorkerIndex;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel rejected `UDP_SEGMENT` or a batch call in use; datagrams are sent one by one from now on.
    UnderlayDowngraded,
    /// The TUN rejected a super-packet; `tcp` and `udp` say what is still joined.
    OverlayDowngraded {
        /// TCP packets are still joined.
        tcp: bool,
        /// UDP packets are still joined.
        udp: bool,
    },
    /// A worker stopped by itself, for this reason; its share of every tunnel is dead.
    WorkerFailed(String),
}

/// An event, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Index of the tunnel.
    pub tunnel: usize,
    /// The worker that saw it.
    pub worker: WorkerIndex,
    /// What happened.
    pub event: Event,
}

/// A worker's end of the channel to control: it never blocks, and drops what nobody reads.
#[derive(Clone)]
pub(crate) struct Notifier {
    pub(crate) tunnel: usize,
    pub(crate) worker: WorkerIndex,
    pub(crate) sender: Sender<Notice>,
}

impl Notifier {
    pub(crate) fn send(&self, event: Event) {
        // A full queue means that control already has much to read of the same kind.
        let _ = self.sender.try_send(Notice { tunnel: self.tunnel, worker: self.worker, event });
    }
}

pub(crate) fn channel() -> (Sender<Notice>, Receiver<Notice>) {
    crossbeam_channel::bounded(256)
}
