//! The events that workers report to control, besides their counters.

use crossbeam_channel::{Receiver, Sender};
use path::WorkerIndex;

/// An event in a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel rejected a batch call in use, or every joined send to a peer; these datagrams are sent one by
    /// one.
    UnderlayDowngraded,
    /// The TUN rejected a super-packet; `tcp` and `udp` say what is still joined.
    OverlayDowngraded {
        /// TCP packets are still joined.
        tcp: bool,
        /// UDP packets are still joined.
        udp: bool,
    },
    /// A peer's path carries only smaller packets than the tunnel.
    PathLimited {
        /// The peer's address.
        peer: String,
        /// The largest inner packet that fits, in bytes.
        limit: u16,
    },
    /// A worker has failed for this reason; its share of every tunnel is dead.
    WorkerFailed(String),
}

/// An event, with its tunnel and worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Index of the tunnel.
    pub tunnel: usize,
    /// The worker that reported the event.
    pub worker: WorkerIndex,
    /// The event.
    pub event: Event,
}

/// A worker's end of the channel to control. It never blocks, and drops events when the channel is full.
#[derive(Clone)]
pub(crate) struct Notifier {
    pub(crate) tunnel: usize,
    pub(crate) worker: WorkerIndex,
    pub(crate) sender: Sender<Notice>,
}

impl Notifier {
    pub(crate) fn send(&self, event: Event) {
        // If the channel is full, control already has many such events to read.
        let _ = self.sender.try_send(Notice { tunnel: self.tunnel, worker: self.worker, event });
    }
}

pub(crate) fn channel() -> (Sender<Notice>, Receiver<Notice>) {
    crossbeam_channel::bounded(256)
}
