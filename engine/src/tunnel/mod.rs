//! One worker's share of one tunnel: its queues, table, buffers and both directions.
//!
//! ```text
//! egress.rs    queue → check, cut, prepend → outbox  → messages to the wire
//! ingress.rs   datagrams from the wire → strip, check → coalescer → runs to a queue
//! sealing.rs   the encryption in between, for formats that have it
//! ```

mod egress;
mod ingress;
mod sealing;

use std::io::Result;
use std::sync::Arc;

use io::{Overlay, PortCounters, Ready, Underlay, Waiter};
use path::flow::Spread;
use path::offload::coalesce::{Coalescer, Joins};
use path::reply::Limiter;
use path::{Counters, Fib, SegmentSizes};

pub(crate) use self::ingress::ARENA_HEADERS;
pub(crate) use self::sealing::Sealing;
use crate::clock::Clock;
use crate::config::Switches;
use crate::event::{Event, Notifier};
use crate::snapshot::Reader;
use crate::worker::Outlet;

/// One worker's share of one tunnel.
pub(crate) struct Tunnel<O> {
    queues: Vec<Queue<O>>,
    /// Chooses the queue of each flow from the underlay.
    spread: Spread,
    /// The queue whose turn it is to be read first.
    next: usize,
    fib: Reader<Fib>,
    sizes: Arc<SegmentSizes>,
    lanes: u16,
    egress: egress::Buffers,
    coalescer: Coalescer,
    joins: Joins,
    pub(crate) counters: Counters,
    notifier: Notifier,
    /// Number of downgrades of the port that control has been notified of.
    downgrades: u64,
    sealing: Sealing,
    clock: Clock,
    replies: Limiter,
}

/// A queue of the overlay and its state.
struct Queue<O> {
    overlay: O,
    /// Whether there may be something to read. The waiter sets it; a read that finds nothing clears it.
    ready: bool,
    token: usize,
}

/// The parts of a tunnel besides its queues.
pub(crate) struct Parts {
    pub(crate) fib: Reader<Fib>,
    pub(crate) sizes: Arc<SegmentSizes>,
    pub(crate) lanes: u16,
    pub(crate) switches: Switches,
    pub(crate) notifier: Notifier,
    pub(crate) sealing: Sealing,
    pub(crate) clock: Clock,
}

impl<O: Overlay> Tunnel<O> {
    /// Creates a share that serves these queues.
    pub(crate) fn new(queues: Vec<O>, parts: Parts) -> Self {
        let Parts { fib, sizes, lanes, switches, notifier, sealing, clock } = parts;
        let joins = Joins { tcp: switches.tso, udp: switches.uso };
        Tunnel {
            queues: queues.into_iter().map(|overlay| Queue { overlay, ready: true, token: 0 }).collect(),
            spread: Spread::random(),
            next: 0,
            fib,
            sizes,
            lanes,
            egress: egress::Buffers::new(sealing.overhead()),
            coalescer: Coalescer::new(0..ARENA_HEADERS as u32, joins),
            joins,
            counters: Counters::default(),
            notifier,
            downgrades: 0,
            sealing,
            clock,
            replies: Limiter::new(),
        }
    }

    /// Registers all queues under consecutive tokens from `token` on. Returns the next free token.
    pub(crate) fn register(&mut self, waiter: &mut Waiter, token: usize) -> Result<usize> {
        for (queue, token) in self.queues.iter_mut().zip(token..) {
            queue.token = token;
            queue.overlay.register(waiter, token)?;
        }
        Ok(token + self.queues.len())
    }

    /// Picks up the newest table, session changes and records from other workers. Returns whether there was
    /// work.
    #[inline]
    pub(crate) fn refresh<U: Underlay>(&mut self, mut out: Outlet<'_, U>) -> bool {
        self.fib.refresh();
        let has_mail = self.sealing.refresh(&mut self.counters);
        has_mail | self.take_strays(out.arena())
    }

    /// Whether the next turn has work here, regardless of the waiter.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.queues.iter().any(|queue| queue.ready) || self.sealing.has_strays()
    }

    /// Marks the queues that the waiter has reported.
    pub(crate) fn note(&mut self, ready: Ready) {
        for queue in &mut self.queues {
            queue.ready |= ready.contains(queue.token);
        }
    }

    /// Makes the next turn read every queue.
    pub(crate) fn rouse(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.ready = true);
    }

    /// Returns the sum of all queues' counters.
    pub(crate) fn overlay_counters(&self) -> PortCounters {
        let mut each = self.queues.iter().map(|queue| queue.overlay.counters());
        let first = each.next().copied().unwrap_or_default();
        each.fold(first, |sum, counters| sum.plus(counters))
    }

    /// Notifies control if the port has lost a feature since the last call.
    pub(crate) fn report_downgrades(&mut self, underlay: &PortCounters) {
        if underlay.downgrades != self.downgrades {
            self.downgrades = underlay.downgrades;
            self.notifier.send(Event::UnderlayDowngraded);
        }
    }
}
