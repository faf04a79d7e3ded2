//! The uplink: an interface, address or MTU that has changed is taken up without a restart.
//!
//! Tunnels are bound to an address and made for an MTU, so they are opened again when those change. While the
//! uplink is unusable the node stays as it is: what was right may be right again in a moment.

use std::time::{Duration, Instant};

use crate::underlay::Underlay;

/// How long a changed uplink has to last before it is taken up. An address that moves, or a route that is
/// replaced, is away for a moment, and what is there instead is not to be published.
const LASTING: Duration = Duration::from_secs(1);

/// What is remembered between two looks at the host.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    /// The tunnels could not be opened the last time.
    closed: bool,
    /// An uplink that was first seen at this moment, and that is not taken up yet.
    candidate: Option<(Underlay, Instant)>,
    /// What could not be done since the last look.
    problem: Option<String>,
}

/// What a look at the host asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Nothing.
    Stay,
    /// Open the tunnels, which are closed.
    Reopen,
    /// Take up another uplink. [`Uplink::refuse`] if it cannot be.
    TakeUp(Underlay),
}

impl Uplink {
    /// Takes in what a look at the host has `seen`, or why that is unusable. `current` is what is in use.
    pub(super) fn handle_look(
        &mut self,
        seen: Result<Underlay, String>,
        current: &Underlay,
        now: Instant,
    ) -> Move {
        self.problem = None;
        match seen {
            Err(problem) => {
                self.problem = Some(problem);
                Move::Stay
            }
            Ok(seen) if seen != *current => {
                let known = self.candidate.take().filter(|(candidate, _)| *candidate == seen);
                let since = known.map_or(now, |(_, since)| since);
                self.candidate = Some((seen.clone(), since));
                if now >= since + LASTING { Move::TakeUp(seen) } else { Move::Stay }
            }
            Ok(_) => {
                self.candidate = None;
                if self.closed { Move::Reopen } else { Move::Stay }
            }
        }
    }

    /// The uplink that was to be taken up cannot carry the tunnels.
    pub(super) fn refuse(&mut self, why: &str) {
        self.problem = Some(format!("the uplink has changed: {why}"));
    }

    /// Takes in whether the tunnels could be opened, after the old ones were closed.
    pub(super) fn handle_opened(&mut self, result: Result<(), String>) {
        self.closed = result.is_err();
        self.problem = result.err();
    }

    /// Returns when to look whether a changed uplink is still there.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        self.candidate.as_ref().map(|(_, since)| *since + LASTING).filter(|when| *when > now)
    }

    /// Tells whether the tunnels could not be opened the last time.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Returns what could not be done since the last look.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{start, underlay};
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_change_is_taken_up_once_it_has_lasted() {
        let (now, current, other) = (start().instant, underlay(1, 1500), underlay(7, 1500));
        let mut uplink = Uplink::default();
        assert_eq!(uplink.handle_look(Ok(current.clone()), &current, now), Move::Stay);
        assert_eq!(uplink.next_look(now), None);
        assert_eq!(uplink.handle_look(Ok(other.clone()), &current, now), Move::Stay);
        assert_eq!(uplink.next_look(now), Some(now + LASTING));
        assert_eq!(uplink.handle_look(Ok(other.clone()), &current, now + LASTING - MOMENT), Move::Stay);
        let taken = uplink.handle_look(Ok(other.clone()), &current, now + LASTING);
        assert_eq!(taken, Move::TakeUp(other.clone()));
        assert_eq!(uplink.handle_look(Ok(other.clone()), &other, now + LASTING), Move::Stay);
        assert_eq!(uplink.next_look(now + LASTING), None);
    }

    #[test]
    fn what_is_there_for_a_moment_is_not_taken_up() {
        let (now, current) = (start().instant, underlay(1, 1500));
        let mut uplink = Uplink::default();
        for (after, seen) in [(0, 7), (900, 8), (1100, 7), (1900, 1), (2000, 7), (2900, 7)] {
            let moved = uplink.handle_look(Ok(underlay(seen, 1500)), &current, now + MOMENT * after);
            assert_eq!(moved, Move::Stay, "after {after} ms");
        }
    }

    #[test]
    fn an_unusable_uplink_is_a_problem_until_it_is_usable() {
        let (now, current) = (start().instant, underlay(1, 1500));
        let mut uplink = Uplink::default();
        assert_eq!(uplink.handle_look(Err("no interface".into()), &current, now), Move::Stay);
        assert_eq!(uplink.problem(), Some("no interface"));
        assert_eq!(uplink.handle_look(Ok(current.clone()), &current, now), Move::Stay);
        assert_eq!(uplink.problem(), None);
    }

    #[test]
    fn closed_tunnels_are_opened_at_the_next_look() {
        let (now, current) = (start().instant, underlay(1, 1500));
        let mut uplink = Uplink::default();
        uplink.handle_opened(Err("no descriptors".into()));
        assert!(uplink.is_closed() && uplink.problem().is_some());
        assert_eq!(uplink.handle_look(Ok(current.clone()), &current, now), Move::Reopen);
        uplink.handle_opened(Ok(()));
        assert_eq!(uplink.handle_look(Ok(current.clone()), &current, now), Move::Stay);
        assert_eq!(uplink.problem(), None);
    }

    /// It is tried again at each comparison, and stays one problem, which is logged once.
    #[test]
    fn a_refused_uplink_is_one_problem_and_asks_for_no_look_of_its_own() {
        let (now, current, small) = (start().instant, underlay(1, 1500), underlay(1, 60));
        let mut uplink = Uplink::default();
        assert_eq!(uplink.handle_look(Ok(small.clone()), &current, now), Move::Stay);
        for after in [1, 6, 11].map(Duration::from_secs) {
            let taken = uplink.handle_look(Ok(small.clone()), &current, now + after);
            assert_eq!(taken, Move::TakeUp(small.clone()), "after {after:?}");
            uplink.refuse("MTU 60");
            assert_eq!(uplink.problem(), Some("the uplink has changed: MTU 60"));
            assert_eq!(uplink.next_look(now + after), None);
        }
    }
}
