//! The board: the state of a daemon as shown to probes, metrics and `loden status`.
//!
//! The daemon writes to its board and the servers read it. Neither waits for the other longer than a copy
//! takes, so that a probe is answered even while the store is not reachable.

mod document;
mod metrics;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::Engine;
use model::lease::Lease;

use crate::plan::Plan;
use crate::underlay::Underlay;
use store::Health;

use self::state::{Origin, State};

pub use self::document::{
    Document, DroppedDocument, IgnoredDocument, LeaseDocument, PeerDocument, ReconcileDocument,
    RouteDocument, SchedulingDocument, StoreDocument, TunnelDocument, UnderlayDocument,
};
pub use self::state::Phase;

/// The longest time between two turns of the control loop that works. A turn waits for the kernel and for
/// files, each with a limit of seconds.
const LONGEST_TURN: Duration = Duration::from_secs(60);

/// A daemon's board.
#[derive(Debug)]
pub struct Board {
    origin: Origin,
    state: Mutex<State>,
}

impl Board {
    /// Creates the board of a daemon that starts now.
    pub fn new(instance: &str, store: &str) -> Board {
        let origin = Origin { instance: instance.to_owned(), store: store.to_owned(), started: unix_now() };
        Board { origin, state: Mutex::default() }
    }

    /// Tells whether the daemon has ever been ready. As in flannel, this is final.
    pub fn was_ready(&self) -> bool {
        self.state().was_ready
    }

    /// Sets the daemon's phase.
    pub fn set_phase(&self, phase: Phase) {
        let mut state = self.state();
        state.phase = phase;
        state.was_ready |= phase == Phase::Ready;
        if phase == Phase::Stopping {
            // The daemon must hold the last reference to stop the engine.
            state.engine = None;
        }
    }

    /// Notes that the control loop has done something.
    pub fn turned(&self, now: Instant) {
        self.state().turned = Some(now);
    }

    /// Notes that the control loop, if there is one, goes on in a turn that takes long.
    pub fn goes_on(&self, now: Instant) {
        let mut state = self.state();
        state.turned = state.turned.map(|_| now);
    }

    /// Notes that there is no control loop until the next turn: the node starts again, or stops.
    pub fn pause(&self) {
        self.state().turned = None;
    }

    /// Returns how long the control loop has hung, if it hangs.
    pub fn stalled(&self, now: Instant) -> Option<Duration> {
        self.state().stalled(now)
    }

    /// Sets the engine whose counters to show.
    pub fn set_engine(&self, engine: &Arc<Engine>) {
        self.state().engine = Some(Arc::clone(engine));
    }

    /// Returns the current engine and plan.
    pub fn datapath(&self) -> (Option<Arc<Engine>>, Option<Arc<Plan>>) {
        let state = self.state();
        (state.engine.clone(), state.plan.clone())
    }

    /// Sets the interface that carries the tunnels.
    pub fn set_underlay(&self, underlay: &Underlay) {
        self.state().underlay = Some(underlay.clone());
    }

    /// Sets this node's lease, just written to the store.
    pub fn set_own(&self, own: &Lease) {
        let mut state = self.state();
        state.own = Some(own.clone());
        state.renewed = Some(unix_now());
    }

    /// Sets this node's lease as the previous run left it, not yet confirmed by the store.
    pub fn set_remembered(&self, own: &Lease) {
        let mut state = self.state();
        state.own = Some(own.clone());
        state.renewed = None;
    }

    /// Whether the watch of the leases sees the store.
    pub fn set_store_health(&self, health: &Health) {
        self.state().store_health = Some(health.clone());
    }

    /// Sets the plan.
    pub fn set_plan(&self, plan: &Arc<Plan>) {
        self.state().plan = Some(Arc::clone(plan));
    }

    /// Sets the list of files that this daemon created.
    pub fn set_files(&self, files: Vec<String>) {
        self.state().files = files;
    }

    /// Records one comparison of the host with the plan.
    pub fn reconciled(&self, changes: usize, failures: Vec<String>) {
        let reconcile = &mut self.state().reconcile;
        reconcile.runs += 1;
        reconcile.changes += changes as u64;
        reconcile.failures = failures;
    }

    /// Runs one request to the store and records its duration.
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

    /// Renders the board for `loden status`.
    pub fn document(&self) -> Document {
        document::of(&self.origin, &self.state(), Instant::now())
    }

    /// Renders the board's numbers in Prometheus' text format.
    pub fn metrics(&self) -> String {
        metrics::render(&self.origin, &self.state(), unix_now(), Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
