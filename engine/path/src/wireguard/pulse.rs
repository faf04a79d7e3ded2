//! A peer's traffic, recorded by workers and read by timers without a lock: when something was last sent and
//! received, and since when a response is due.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::session::Millis;

/// A peer's traffic. Times are in milliseconds, 0 for never.
#[derive(Debug, Default)]
pub struct Pulse {
    sent: AtomicU64,
    received: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    unanswered: Due,
    owed: Due,
}

/// The time since which something is due, and whether its timer is running.
#[derive(Debug, Default)]
struct Due {
    since: AtomicU64,
    timed: AtomicBool,
}

/// The result of checking an expired timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is due any more; the timer stops.
    Nothing,
    /// Something is due at this time.
    At(Millis),
    /// Something is due now.
    Now,
}

impl Pulse {
    /// Records that `bytes` were sent; `data` is false for a keepalive. Returns true if the caller must start
    /// the timer of [`Peer::watch_answer`](super::Peer::watch_answer).
    #[inline]
    pub fn note_sent(&self, now: Millis, data: bool, bytes: u64) -> bool {
        self.sent.store(now.max(1), Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.owed.settle();
        data && self.unanswered.begin(now)
    }

    /// Records that `bytes` of authentic records were received. Returns true if the caller must start the
    /// timer of [`Peer::watch_silence`](super::Peer::watch_silence).
    #[inline]
    pub fn note_received(&self, now: Millis, data: bool, bytes: u64) -> bool {
        self.received.store(now.max(1), Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.unanswered.settle();
        data && self.owed.begin(now)
    }

    /// Makes [`Pulse::note_sent`] return true again for the next packet, because the timer could not be
    /// started.
    pub fn retry_sent(&self) {
        self.unanswered.timed.store(false, Ordering::Relaxed);
    }

    /// Makes [`Pulse::note_received`] return true again for the next packet, because the timer could not be
    /// started.
    pub fn retry_received(&self) {
        self.owed.timed.store(false, Ordering::Relaxed);
    }

    /// Returns when an authentic record was last sent or received; 0 for never.
    pub fn last(&self) -> Millis {
        self.sent.load(Ordering::Relaxed).max(self.received.load(Ordering::Relaxed))
    }

    /// Returns the bytes of the records sent and received.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent_bytes.load(Ordering::Relaxed), self.received_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn unanswered(&self, now: Millis, patience: Millis) -> Found {
        self.unanswered.check(now, patience)
    }

    pub(super) fn owed(&self, now: Millis, patience: Millis) -> Found {
        self.owed.check(now, patience)
    }
}

impl Due {
    /// Records that something is due since `now`. Returns true if the caller must start the timer.
    #[inline]
    fn begin(&self, now: Millis) -> bool {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(now.max(1), Ordering::Relaxed);
        }
        !self.timed.load(Ordering::Relaxed) && !self.timed.swap(true, Ordering::Relaxed)
    }

    #[inline]
    fn settle(&self) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }

    /// Checks an expired timer: stops it, or returns when it must expire next.
    fn check(&self, now: Millis, patience: Millis) -> Found {
        match self.since.load(Ordering::Relaxed) {
            0 => {
                self.timed.store(false, Ordering::Relaxed);
                // Something may have become due since the load, and found the timer still running.
                match self.since.load(Ordering::Relaxed) {
                    0 => Found::Nothing,
                    since => {
                        self.timed.store(true, Ordering::Relaxed);
                        Found::At(since + patience)
                    }
                }
            }
            since if now < since + patience => Found::At(since + patience),
            _ => {
                self.since.store(0, Ordering::Relaxed);
                self.timed.store(false, Ordering::Relaxed);
                Found::Now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_requested_once_and_finds_what_is_due() {
        let pulse = Pulse::default();
        assert!(!pulse.note_sent(5, false, 32), "a keepalive needs no response");
        assert!(pulse.note_sent(10, true, 100) && !pulse.note_sent(20, true, 100));
        assert_eq!(pulse.unanswered(24, 15), Found::At(25), "since the first");
        assert_eq!(pulse.unanswered(25, 15), Found::Now);
        assert_eq!(pulse.unanswered(26, 15), Found::Nothing);
        assert!(pulse.note_sent(30, true, 100));
        assert!(pulse.note_received(31, true, 50), "a response, which needs one in turn");
        assert_eq!(pulse.unanswered(45, 15), Found::Nothing);
        assert!(pulse.note_sent(46, true, 100), "settles the response that was owed");
        assert_eq!(pulse.owed(50, 10), Found::Nothing);
        assert_eq!((pulse.last(), pulse.bytes()), (46, (432, 50)));
    }
}
