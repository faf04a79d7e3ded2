//! What workers note of a peer's traffic and timers read later, without a lock: when something was last sent and
//! received, and since when something is due.

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

/// Since when something is due, and whether its timer runs already.
#[derive(Debug, Default)]
struct Due {
    since: AtomicU64,
    timed: AtomicBool,
}

/// What a timer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is due any more; the timer may rest.
    Nothing,
    /// It is due at this time.
    At(Millis),
    /// It is due now.
    Now,
}

impl Pulse {
    /// `bytes` were sent, packets among them or only a keepalive. `true`: somebody has to start the timer of
    /// [`Peer::watch_answer`](super::Peer::watch_answer).
    #[inline]
    pub fn note_sent(&self, now: Millis, data: bool, bytes: u64) -> bool {
        self.sent.store(now.max(1), Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.owed.settle();
        data && self.unanswered.begin(now)
    }

    /// As much was received and is authentic. `true`: somebody has to start the timer of
    /// [`Peer::watch_silence`](super::Peer::watch_silence).
    #[inline]
    pub fn note_received(&self, now: Millis, data: bool, bytes: u64) -> bool {
        self.received.store(now.max(1), Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.unanswered.settle();
        data && self.owed.begin(now)
    }

    /// What [`Pulse::note_sent`] asked for could not be done: it asks again with the next packet.
    pub fn sent_unheard(&self) {
        self.unanswered.timed.store(false, Ordering::Relaxed);
    }

    /// The same for [`Pulse::note_received`].
    pub fn received_unheard(&self) {
        self.owed.timed.store(false, Ordering::Relaxed);
    }

    /// When anything authentic last went either way; 0 for never.
    pub fn last(&self) -> Millis {
        self.sent.load(Ordering::Relaxed).max(self.received.load(Ordering::Relaxed))
    }

    /// Bytes sent and received, as records.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent_bytes.load(Ordering::Relaxed), self.received_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn unanswered(&self, now: Millis, patience: Millis) -> Found {
        self.unanswered.look(now, patience)
    }

    pub(super) fn owed(&self, now: Millis, patience: Millis) -> Found {
        self.owed.look(now, patience)
    }
}

impl Due {
    /// Whether the timer has to be started.
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

    /// The timer has run out: rests it, or says when it has to look again.
    fn look(&self, now: Millis, patience: Millis) -> Found {
        match self.since.load(Ordering::Relaxed) {
            0 => {
                self.timed.store(false, Ordering::Relaxed);
                // Something may have begun between the look and the rest, and found the timer running.
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
    fn a_timer_is_asked_for_once_and_finds_what_is_due() {
        let pulse = Pulse::default();
        assert!(!pulse.note_sent(5, false, 32), "a keepalive wants no answer");
        assert!(pulse.note_sent(10, true, 100) && !pulse.note_sent(20, true, 100));
        assert_eq!(pulse.unanswered(24, 15), Found::At(25), "since the first");
        assert_eq!(pulse.unanswered(25, 15), Found::Now);
        assert_eq!(pulse.unanswered(26, 15), Found::Nothing);
        assert!(pulse.note_sent(30, true, 100));
        assert!(pulse.note_received(31, true, 50), "the answer, and it wants one");
        assert_eq!(pulse.unanswered(45, 15), Found::Nothing);
        assert!(pulse.note_sent(46, true, 100), "settles what was owed");
        assert_eq!(pulse.owed(50, 10), Found::Nothing);
        assert_eq!((pulse.last(), pulse.bytes()), (46, (432, 50)));
    }
}
