//! What a board holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use model::lease::Lease;
use store::Health;

use crate::plan::Plan;
use crate::underlay::Underlay;

/// The daemon that a board belongs to.
#[derive(Debug)]
pub(super) struct Origin {
    /// Its name among those of this host.
    pub(super) instance: String,
    /// Its store.
    pub(super) store: String,
    /// Unix seconds of its start.
    pub(super) started: u64,
}

/// How far the daemon is. It only goes forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Talking to the store, or waiting for a configuration in it.
    #[default]
    Starting,
    /// All is in place.
    Ready,
    /// Ending.
    Stopping,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) was_ready: bool,
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

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// What bringing the host to the plan came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Reconcile {
    pub(super) runs: u64,
    pub(super) changes: u64,
    pub(super) failures: Vec<String>,
}

/// Requests of one kind to the store.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) count: u64,
    pub(super) errors: u64,
    pub(super) time: Duration,
}

impl Phase {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Stopping => "stopping",
        }
    }
}
