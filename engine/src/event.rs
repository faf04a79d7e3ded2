//! The few things a worker tells control, besides counting: that the kernel took back an offload.

use crossbeam_channel::{Receiver, Sender};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `UDP_SEGMENT` or a batch call was refused in use; datagrams leave one by one from now on.
    UnderlayDowngraded,
    /// The TUN refused a super-packet; what is still joined says `tcp`, `udp`.
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
    /// Index of the worker.
    pub worker: usize,
    /// What happened.
    pub event: Event,
}

/// A worker's end: never blocks, and drops what nobody reads.
#[derive(Clone)]
pub(crate) struct Events {
    pub(crate) tunnel: usize,
    pub(crate) worker: usize,
    pub(crate) sender: Sender<Notice>,
}

impl Events {
    pub(crate) fn send(&self, event: Event) {
        // A full queue means that control already has much to read of the same kind.
        let _ = self.sender.try_send(Notice { tunnel: self.tunnel, worker: self.worker, event });
    }
}

pub(crate) fn channel() -> (Sender<Notice>, Receiver<Notice>) {
    crossbeam_channel::bounded(256)
}
