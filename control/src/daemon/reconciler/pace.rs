//! How soon a change of the peers is acted on: after the few that come with it, and not without rest.

use std::time::{Duration, Instant};

/// How long to collect further changes before acting on the first.
const GATHER: Duration = Duration::from_millis(5);
/// After acting, the rest is this many times as long as acting took, up to [`REST_MOST`].
const REST: u32 = 4;
/// The longest rest.
const REST_MOST: Duration = Duration::from_millis(200);

/// The pace of acting on changes.
#[derive(Debug)]
pub(super) struct Pace {
    /// When acting began, while it lasts.
    began: Option<Instant>,
    rested: Instant,
}

impl Pace {
    /// Starts rested.
    pub(super) fn new(now: Instant) -> Pace {
        Pace { began: None, rested: now }
    }

    /// Returns when to act on changes of which the first came at `changed`.
    pub(super) fn due(&self, changed: Instant) -> Instant {
        self.rested.max(changed + GATHER)
    }

    /// Acting begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// Acting is over.
    pub(super) fn end(&mut self, now: Instant) {
        if let Some(began) = self.began.take() {
            self.rested = now + (now.saturating_duration_since(began) * REST).min(REST_MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_gathered_and_acting_is_followed_by_rest() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.due(start), start + GATHER);
        for (took, rest) in [(1, 4), (10, 40), (1000, 200)].map(|(a, b)| (Duration::from_millis(a), b)) {
            pace.begin(start);
            pace.end(start + took);
            assert_eq!(pace.due(start), start + took + Duration::from_millis(rest), "{took:?}");
            let late = start + Duration::from_secs(9);
            pace.end(late);
            assert_eq!(pace.due(late), late + GATHER, "ended once");
        }
    }
}
