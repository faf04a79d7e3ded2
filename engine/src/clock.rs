//! The clock of a tunnel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use path::wireguard::session::Millis;

/// The clock of a tunnel: milliseconds since the tunnel was opened, never 0. It goes on while the machine is
/// suspended, because the peers' clocks do, and no key may be used longer than it should.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The tunnel was opened at this time since boot.
    Started(Duration),
    /// A test sets the time.
    Set(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock::Started(io::clock::since_boot())
    }

    #[inline]
    pub(crate) fn now(&self) -> Millis {
        match self {
            Clock::Started(start) => io::clock::since_boot().saturating_sub(*start).as_millis() as Millis + 1,
            Clock::Set(now) => now.load(Ordering::Relaxed),
        }
    }
}
