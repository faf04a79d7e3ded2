//! The events that workers report to control, besides their counters.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender};
use path::WorkerIndex;

/// An event in a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel rejected a batch call in use, or every joined send to a peer; these datagrams are sent one
    /// by one.
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
    /// This host translates the source of the tunnel's packets on the way to an interface that computes no
    /// checksums, so datagrams are sent one by one.
    SegmentationPaused {
        /// The interface.
        interface: String,
    },
    /// Datagrams are joined again.
    SegmentationResumed,
    /// A worker has failed for this reason; its share of every tunnel is dead.
    WorkerFailed(String),
    /// A tunnel's WireGuard handshake thread has failed for this reason; its sessions expire without
    /// successors.
    KeeperFailed(String),
    /// The path MTU thread has failed for this reason; no path MTU is learned or expires any more.
    LearnerFailed(String),
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

/// Runs a thread's body, which ends only when the engine stops, and tells control why if it fails or panics.
/// Nothing panics intentionally. If something does, control must know, because the other threads continue.
pub(crate) fn watch(
    notifier: &Notifier,
    event: fn(String) -> Event,
    body: impl FnOnce() -> std::io::Result<()>,
) {
    let why = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("waiting for packets: {error}"),
        Err(_) => "panicked; see the message above".to_owned(),
    };
    notifier.send(event(why));
}

pub(crate) fn channel() -> (Sender<Notice>, Receiver<Notice>) {
    crossbeam_channel::bounded(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_is_told_why_a_thread_has_ended() {
        let (sender, notices) = channel();
        let notifier = Notifier { tunnel: 3, worker: WorkerIndex(0), sender };
        watch(&notifier, Event::KeeperFailed, || Ok(()));
        assert!(notices.is_empty(), "the engine has stopped");
        #[allow(clippy::panic)]
        watch(&notifier, Event::KeeperFailed, || panic!("on purpose"));
        let Notice { tunnel: 3, event: Event::KeeperFailed(why), .. } = notices.try_recv().unwrap() else {
            unreachable!("another event")
        };
        assert!(why.starts_with("panicked"), "{why}");
        watch(&notifier, Event::WorkerFailed, || Err(std::io::ErrorKind::Other.into()));
        assert!(matches!(notices.try_recv().unwrap().event, Event::WorkerFailed(_)));
    }
}
