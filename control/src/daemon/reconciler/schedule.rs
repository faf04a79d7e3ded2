//! When the whole host is compared with the plan.
//!
//! Soon after the kernel reported a change, and repeatedly while something could not be done. Otherwise
//! seldom: with ten thousand peers, listing the routes takes a core for tens of milliseconds.

use std::time::{Duration, Instant};

/// The least pause between two comparisons. On a host where links and routes change all the time it is the
/// period.
const PAUSE: Duration = Duration::from_secs(5);
/// Comparing may take one part in this many of the time, where a table is so large that it takes long.
const SHARE: u32 = 100;
/// The longest pause, although nothing happened: what no message reports is mended as well.
const LONGEST: Duration = Duration::from_secs(60);
/// How long to let changes come together: a link that goes down takes many routes along.
const GATHER: Duration = Duration::from_millis(20);

/// The time of the next comparison.
#[derive(Debug)]
pub(super) struct Schedule {
    /// When the comparison under way began.
    began: Option<Instant>,
    last: Instant,
    next: Instant,
    pause: Duration,
    /// A change was reported that no comparison has looked at yet.
    reported: bool,
}

impl Schedule {
    /// The first comparison comes after a pause, and mends what the start could not.
    pub(super) fn new(now: Instant) -> Schedule {
        Schedule { began: None, last: now, next: now + PAUSE, pause: PAUSE, reported: false }
    }

    /// Tells whether a further report of a change would bring the next comparison nearer.
    pub(super) fn wants_reports(&self) -> bool {
        !self.reported
    }

    /// The kernel reported a change of the host.
    pub(super) fn handle_report(&mut self, now: Instant) {
        self.reported = true;
        self.ask(now + GATHER);
    }

    /// Something is not as planned, or could not be done: compare after a pause.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.ask(now);
    }

    /// Compare at this time, whatever else is due.
    pub(super) fn ask_at(&mut self, when: Instant) {
        self.next = self.next.min(when);
    }

    /// Returns true if a comparison begins now; it looks at all that was reported so far.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        let due = self.began.is_none() && now >= self.next;
        if due {
            (self.began, self.reported) = (Some(now), false);
        }
        due
    }

    /// Returns when to poll again, if nothing happens before.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Ends the comparison under way; returns true if there was one.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        let Some(began) = self.began.take() else { return false };
        self.pause = (now.saturating_duration_since(began) * SHARE).clamp(PAUSE, LONGEST);
        (self.last, self.next) = (now, now + LONGEST);
        true
    }

    fn ask(&mut self, wanted: Instant) {
        self.next = self.next.min(wanted.max(self.last + self.pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_change_is_looked_at_soon_but_not_more_often_than_the_pause() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert_eq!(schedule.next, start + PAUSE, "the first, with nothing reported");
        let first = start + PAUSE;
        compare(&mut schedule, first, Duration::ZERO);
        assert_eq!(schedule.next, first + LONGEST, "nothing to do");

        schedule.handle_report(first + MOMENT);
        assert_eq!(schedule.next, first + PAUSE, "too soon after the last");
        let second = first + PAUSE + MOMENT;
        compare(&mut schedule, second, Duration::ZERO);

        let late = second + PAUSE * 3;
        schedule.handle_report(late);
        assert_eq!(schedule.next, late + GATHER, "the last is long ago");
        schedule.handle_report(late + MOMENT);
        assert_eq!(schedule.next, late + GATHER, "a storm does not put it off");
    }

    #[test]
    fn a_failure_is_retried_after_the_pause() {
        let start = Instant::now() + PAUSE;
        let mut schedule = Schedule::new(start - PAUSE);
        compare(&mut schedule, start, Duration::ZERO);
        schedule.ask_again(start);
        assert_eq!(schedule.next, start + PAUSE);
    }

    #[test]
    fn a_comparison_that_takes_long_is_made_less_often() {
        let mut start = Instant::now();
        let mut schedule = Schedule::new(start);
        for (took, pause) in [(MOMENT, PAUSE), (PAUSE / 50, PAUSE * 2), (PAUSE, LONGEST)] {
            start += LONGEST * 2;
            compare(&mut schedule, start, took);
            schedule.handle_report(start + took);
            assert_eq!(schedule.next, start + took + pause, "{took:?}");
        }
    }

    #[test]
    fn a_comparison_under_way_is_not_begun_twice() {
        let start = Instant::now() + PAUSE;
        let mut schedule = Schedule::new(start - PAUSE);
        assert!(schedule.poll(start) && !schedule.poll(start + LONGEST));
        assert!(schedule.end(start) && !schedule.end(start));
    }

    fn compare(schedule: &mut Schedule, at: Instant, took: Duration) {
        assert!(schedule.poll(at) && schedule.wants_reports());
        assert!(schedule.end(at + took));
    }
}
