//! The end of a run: early on request, or by a timeout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Interval at which a waiting thread checks for a stop.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// Time limit for a peer's response.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A request to end runs early, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends every run that holds this value or a clone of it, soon and with an error.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns true if the end was requested.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
