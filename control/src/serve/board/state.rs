//! The content of a board.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use model::lease::Lease;
use store::Health;

use crate::plan::Plan;
use crate::underlay::Underlay;

use super::LONGEST_TURN;

/// The identity of a board's daemon.
#[derive(Debug)]
pub(super) struct Origin {
    /// The daemon's name among those of this host.
    pub(super) instance: String,
    /// The store, as given on the command line.
    pub(super) store: String,
    /// Time of the start in Unix seconds.
    pub(super) started: u64,
}

/// The phase of a daemon's life. It only advances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the store, or for a configuration in it.
    #[default]
    Starting,
    /// Everything is in place.
    Ready,
    /// Shutting down.
    Stopping,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) was_ready: bool,
    /// When the control loop did something last; `None` while there is no loop.
    pub(super) turned: Option<Instant>,
    pub(super) engine: Option<Arc<Engine>>,
    pub(super) underlay: Option<Underlay>,
    pub(super) own: Option<Lease>,
    pub(super) renewed: Option<u64>,
    pub(super) plan: Option<Arc<Plan>>,
    pub(super) files: Vec<String>,
    pub(super) reconcile: Reconcile,
    pub(super) calls: BTreeMap<&'static str, Calls>,
    pub(super) store_health: Option<Health>,
}

impl State {
    /// Returns how long ago the control loop did something.
    pub(super) fn turn_age(&self, now: Instant) -> Option<Duration> {
        self.turned.map(|turned| now.saturating_duration_since(turned))
    }

    /// Returns how long the control loop has hung, if it hangs.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        self.turn_age(now).filter(|age| *age > LONGEST_TURN)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// The outcome of comparing the host with the plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Reconcile {
    pub(super) runs: u64,
    pub(super) changes: u64,
    pub(super) failures: Vec<String>,
}

/// The requests of one kind to the store.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) count: u64,
    pub(super) errors: u64,
    pub(super) time: Duration,
}

impl Phase {
    /// Returns the phase as one word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Stopping => "stopping",
        }
    }
}
