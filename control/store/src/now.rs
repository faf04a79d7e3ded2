//! A moment, as an argument: no state machine reads a clock.

use std::time::{Duration, Instant};

/// One moment on both clocks. Waits run on the monotonic clock; leases expire on the wall clock, which may
/// jump.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic clock.
    pub instant: Instant,
    /// The wall clock, unix seconds.
    pub unix: u64,
}

impl Now {
    /// Returns the moment that is this much later on both clocks.
    pub fn after(self, time: Duration) -> Now {
        Now { instant: self.instant + time, unix: self.unix.saturating_add(time.as_secs()) }
    }
}
