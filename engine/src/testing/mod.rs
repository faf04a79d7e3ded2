//! A worker that is turned by hand over any ports, for testing the whole loop without a kernel or a thread.

mod sealed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use io::{Overlay, Underlay, Waiter};
use path::{Fib, SegmentSizes, WorkerIndex};

pub use self::sealed::{Sealed, SealedWorker, Update};
use crate::clock::Clock;
use crate::config::{Switches, WaitPolicy};
use crate::event::{self, Notifier};
use crate::snapshot::{self, Publisher};
use crate::status::{self, Page};
use crate::tunnel::{Parts, Sealing, Tunnel};
use crate::worker::{Wire, Worker};

/// A worker with one tunnel that never sleeps.
pub struct ByHand<O, U> {
    worker: Worker<O, U>,
    page: Arc<Page>,
    publisher: Publisher<Fib>,
    clock: Arc<AtomicU64>,
}

impl<O: Overlay, U: Underlay> ByHand<O, U> {
    /// Creates a worker over these queues and this port. `mtu` is the overlay's, `lanes` the number of source
    /// ports.
    pub fn new(
        queues: Vec<O>,
        underlay: U,
        fib: Fib,
        mtu: u16,
        lanes: u16,
        switches: Switches,
    ) -> std::io::Result<Self> {
        let clock = Arc::new(AtomicU64::new(1));
        Self::with_sealing(queues, underlay, fib, (mtu, lanes), switches, Sealing::Plain, clock)
    }

    fn with_sealing(
        queues: Vec<O>,
        underlay: U,
        fib: Fib,
        (mtu, lanes): (u16, u16),
        switches: Switches,
        sealing: Sealing,
        clock: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        let (publisher, mut readers) = snapshot::channel(Arc::new(fib), 1);
        let fib = readers.remove(0);
        let (sender, _) = event::channel();
        let notifier = Notifier { tunnel: 0, worker: WorkerIndex(0), sender };
        let sizes = Arc::new(SegmentSizes::new(mtu, 7));
        let set = Clock::Set(Arc::clone(&clock));
        let parts = Parts { fib, sizes, lanes, switches, notifier, sealing, clock: set };
        let tunnels = vec![Tunnel::new(queues, parts)];
        let page = Page::new();
        let pages = vec![Arc::clone(&page)];
        let policy = WaitPolicy { spin: Duration::MAX, moderate: Duration::ZERO };
        let stop = Arc::new(AtomicBool::new(false));
        let wire = Wire::new(vec![(0, underlay)]);
        let worker = Worker::new(wire, tunnels, pages, Waiter::new()?, policy, stop)?;
        Ok(ByHand { worker, page, publisher, clock })
    }

    /// Runs one turn. Fails only if waiting fails.
    pub fn turn(&mut self) -> std::io::Result<()> {
        self.worker.turn()
    }

    /// Lets time pass on the tunnel's clock.
    pub fn advance(&self, by: Duration) {
        self.clock.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// Makes the worker pause for this long after bulk turns and during floods. It does not pause otherwise.
    pub fn moderate(&mut self, pause: Duration) {
        self.worker.set_moderation(pause);
    }

    /// Makes the next turn read all ports, as if the waiter had reported them.
    pub fn rouse(&mut self) {
        self.worker.rouse();
    }

    /// Makes the worker use `table` from the next turn on.
    pub fn publish(&self, table: &Arc<Fib>) {
        self.publisher.publish(table);
    }

    /// Returns a counter by its name in [`status::names`], or 0 for an unknown name.
    pub fn counter(&self, name: &str) -> u64 {
        status::names().zip(self.page.load()).find(|(n, _)| n == name).map_or(0, |(_, value)| value)
    }
}
