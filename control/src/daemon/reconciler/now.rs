//! A moment, as an argument: nothing in this folder reads a clock.

use std::time::Instant;

/// One moment on both clocks. Waits run on the monotonic clock; leases expire on the wall clock, which may
/// jump.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// The monotonic clock.
    pub(crate) instant: Instant,
    /// The wall clock, unix seconds.
    pub(crate) unix: u64,
}
