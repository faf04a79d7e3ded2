//! What the daemon shows of itself: to probes, to metrics, to `loden status`.
//!
//! One board belongs to one daemon. The daemon writes what it knows, the servers read; neither waits for the
//! other longer than a copy takes, so that a probe is answered while a store is not.

mod document;
mod metrics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::Engine;
use model::lease::Lease;

use crate::plan::Plan;
use crate::underlay::Underlay;
use store::Health;

pub use document::{
    Document, DroppedDocument, IgnoredDocument, LeaseDocument, PeerDocument, ReconcileDocument,
    RouteDocument, StoreDocument, TunnelDocument, UnderlayDocument,
};

/// A daemon's board.
#[derive(Debug)]
pub struct Board {
    instance: String,
    store: String,
    started: u64,
    state: Mutex<State>,
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
struct State {
    phase: Phase,
    was_ready: bool,
    engine: Option<Arc<Engine>>,
    underlay: Option<Underlay>,
    own: Option<Lease>,
    renewed: Option<u64>,
    plan: Option<Arc<Plan>>,
    files: Vec<String>,
    reconcile: Reconcile,
    calls: BTreeMap<&'static str, Calls>,
    store_health: Option<Health>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// What bringing the host to the plan came to.
#[derive(Clone, Debug, Default)]
struct Reconcile {
    runs: u64,
    changes: u64,
    failures: Vec<String>,
}

/// Requests of one kind to the store.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    count: u64,
    errors: u64,
    time: Duration,
}

impl Board {
    /// The board of a daemon that starts now.
    pub fn new(instance: &str, store: &str) -> Board {
        Board {
            instance: instance.to_owned(),
            store: store.to_owned(),
            started: unix_now(),
            state: Mutex::default(),
        }
    }

    /// Whether the daemon has been ready. As in flannel it never goes back.
    pub fn was_ready(&self) -> bool {
        self.state().was_ready
    }

    /// How far the daemon is.
    pub fn set_phase(&self, phase: Phase) {
        let mut state = self.state();
        state.phase = phase;
        state.was_ready |= phase == Phase::Ready;
        if phase == Phase::Stopping {
            // Whoever stops the engine must be the last to hold it.
            state.engine = None;
        }
    }

    /// The engine whose counters to show.
    pub fn set_engine(&self, engine: &Arc<Engine>) {
        self.state().engine = Some(Arc::clone(engine));
    }

    /// The engine and the plan as they are now.
    pub fn datapath(&self) -> (Option<Arc<Engine>>, Option<Arc<Plan>>) {
        let state = self.state();
        (state.engine.clone(), state.plan.clone())
    }

    /// What carries the tunnels.
    pub fn set_underlay(&self, underlay: &Underlay) {
        self.state().underlay = Some(underlay.clone());
    }

    /// Our own lease, which was just written to the store.
    pub fn set_own(&self, own: &Lease) {
        let mut state = self.state();
        state.own = Some(own.clone());
        state.renewed = Some(unix_now());
    }

    /// Our own lease as the run before has left it; the store has not confirmed it yet.
    pub fn set_remembered(&self, own: &Lease) {
        let mut state = self.state();
        state.own = Some(own.clone());
        state.renewed = None;
    }

    /// Whether the watch of the leases sees the store.
    pub fn set_store_health(&self, health: &Health) {
        self.state().store_health = Some(health.clone());
    }

    /// How the host should look.
    pub fn set_plan(&self, plan: &Arc<Plan>) {
        self.state().plan = Some(Arc::clone(plan));
    }

    /// Files that this daemon has made.
    pub fn set_files(&self, files: Vec<String>) {
        self.state().files = files;
    }

    /// The host was compared with the plan.
    pub fn reconciled(&self, changes: usize, failures: Vec<String>) {
        let reconcile = &mut self.state().reconcile;
        reconcile.runs += 1;
        reconcile.changes += changes as u64;
        reconcile.failures = failures;
    }

    /// Does one request to the store and notes how long it took.
    pub async fn timed<T, E>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let result = request.await;
        let mut state = self.state();
        let calls = state.calls.entry(operation).or_default();
        calls.count += 1;
        calls.errors += u64::from(result.is_err());
        calls.time += began.elapsed();
        drop(state);
        result
    }

    /// Everything, for `loden status`.
    pub fn document(&self) -> Document {
        document::of(self, &self.state())
    }

    /// Everything that is a number, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        metrics::render(self, &self.state(), unix_now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
