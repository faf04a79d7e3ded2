//! When a run ends early, and how long its waits are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a waiting thread looks whether it should stop.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// How long a peer may be silent when it is its turn.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Asks a run to end early, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Every run that holds this value or a clone of it ends soon, with an error.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was requested.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
