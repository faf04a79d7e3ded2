//! When the whole host is compared with the plan.
//!
//! Soon after the kernel told of a change, and again and again while something could not be done. Else seldom: with
//! ten thousand peers, listing the routes takes a core for tens of milliseconds.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::netlink::Changes;

/// The least pause between two comparisons. On a host where links and routes change all the time it is the period.
const PAUSE: Duration = Duration::from_secs(5);
/// Schedule may take one part in this many of the time, where a table is so large that it takes long.
const SHARE: u32 = 100;
/// The longest, although nothing happened: what no message tells of is mended as well.
const LONGEST: Duration = Duration::from_secs(60);
/// How long to let changes come together: a link that goes down takes many routes along.
const GATHER: Duration = Duration::from_millis(20);

/// The socket that may bring the next comparison nearer, and its time.
pub(super) struct Schedule {
    changes: Changes,
    timing: Timing,
}

impl Schedule {
    /// The first comparison comes after a pause, and mends what the start could not.
    pub(super) fn new(changes: Changes) -> Schedule {
        Schedule { changes, timing: Timing::new(Instant::now()) }
    }

    /// Returns when it is time. Nothing is lost if the wait is dropped half-way.
    pub(super) async fn due(&mut self) {
        while Instant::now() < self.timing.next {
            tokio::select! {
                () = sleep_until(self.timing.next) => return,
                // One message is enough; the rest stays unread until the comparison.
                () = self.changes.happened(), if !self.timing.heard => {
                    self.timing.handle_change(Instant::now());
                }
            }
        }
    }

    /// Something is not as planned, or could not be done: to be looked at after a pause.
    pub(super) fn ask_again(&mut self) {
        self.timing.ask(Instant::now());
    }

    /// What was heard so far is looked at now.
    pub(super) fn begin(&mut self) {
        self.changes.forget();
        self.timing.begin(Instant::now());
    }

    /// To be looked at again at this time, whatever else is due.
    pub(super) fn ask_at(&mut self, when: Instant) {
        self.timing.next = self.timing.next.min(when);
    }

    /// The comparison is over.
    pub(super) fn end(&mut self) {
        self.timing.end(Instant::now());
    }
}

#[derive(Debug)]
struct Timing {
    began: Instant,
    last: Instant,
    next: Instant,
    pause: Duration,
    /// A change was heard that no comparison has looked at yet.
    heard: bool,
}

impl Timing {
    fn new(now: Instant) -> Timing {
        Timing { began: now, last: now, next: now + PAUSE, pause: PAUSE, heard: false }
    }

    fn handle_change(&mut self, now: Instant) {
        self.heard = true;
        self.ask(now + GATHER);
    }

    fn ask(&mut self, wanted: Instant) {
        self.next = self.next.min(wanted.max(self.last + self.pause));
    }

    fn begin(&mut self, now: Instant) {
        (self.began, self.heard) = (now, false);
    }

    fn end(&mut self, now: Instant) {
        self.pause = (now.saturating_duration_since(self.began) * SHARE).clamp(PAUSE, LONGEST);
        (self.last, self.next) = (now, now + LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_change_is_looked_at_soon_but_not_more_often_than_the_pause() {
        let start = Instant::now();
        let mut timing = Timing::new(start);
        assert_eq!(timing.next, start + PAUSE, "the first, with nothing heard");
        let first = start + PAUSE;
        timing.begin(first);
        timing.end(first);
        assert_eq!(timing.next, first + LONGEST, "nothing to do");

        timing.handle_change(first + MOMENT);
        assert_eq!(timing.next, first + PAUSE, "too soon after the last");
        let second = first + PAUSE + MOMENT;
        timing.begin(second);
        timing.end(second);

        let late = second + PAUSE * 3;
        timing.handle_change(late);
        assert_eq!(timing.next, late + GATHER, "the last is long ago");
        timing.handle_change(late + MOMENT);
        assert_eq!(timing.next, late + GATHER, "a storm does not put it off");
    }

    #[test]
    fn a_failure_is_tried_again_after_the_pause() {
        let start = Instant::now();
        let mut timing = Timing::new(start);
        timing.begin(start);
        timing.end(start);
        timing.ask(start);
        assert_eq!(timing.next, start + PAUSE);
    }

    #[test]
    fn a_comparison_that_takes_long_is_made_less_often() {
        let start = Instant::now();
        let mut timing = Timing::new(start);
        for (took, pause) in [(MOMENT, PAUSE), (PAUSE / 50, PAUSE * 2), (PAUSE, LONGEST)] {
            timing.begin(start);
            timing.end(start + took);
            timing.handle_change(start + took);
            assert_eq!(timing.next, start + took + pause, "{took:?}");
        }
    }
}
