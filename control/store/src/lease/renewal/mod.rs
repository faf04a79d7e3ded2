//! Decides when to renew a lease: takes the time, returns the next deadline.
//!
//! Call [`Renewal::poll`] with the time and do what it returns: sleep until the deadline, renew, or acquire
//! again. Report the outcome by one of the `handle_*` calls and poll again.
//!
//! All deadlines are unix seconds on [`Renewal::clock`]. A wall clock that is stepped back must not put a
//! renewal off: the store counts the life of the lease on.

use std::time::Duration;

use model::lease::Lease;

use crate::Now;

/// Seconds to wait after a failure, as in flannel.
const RETRY: u64 = 60;
/// Seconds to wait after the first failure to get a lost lease back, doubled by each further one up to
/// [`RETRY`]: until then another node may get our subnet.
const FIRST_RETRY: u64 = 2;
/// Least seconds to wait after a success. Matters only when a lease lasts no longer than the margin.
const PAUSE: u64 = 60;

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Do nothing before this time; `None`: before an event of the watch.
    Sleep(Option<u64>),
    /// Renew the lease, which is still valid.
    Renew,
    /// The lease is void: acquire it again, asking for the old subnet.
    Acquire,
}

/// The renewal state of our own lease.
#[derive(Debug, Clone)]
pub struct Renewal {
    margin: u64,
    /// `None` for a reservation.
    expires: Option<u64>,
    void: bool,
    due: Option<u64>,
    /// Seconds to wait after the next failure to get a lost lease back.
    retry: u64,
    /// When the store last gave the lease.
    given: Now,
}

impl Renewal {
    /// Starts with a lease that was acquired at `now`, to be renewed when `margin` of its life is left.
    pub fn new(lease: &Lease, margin: Duration, now: Now) -> Renewal {
        let margin = margin.as_secs();
        let mut renewal =
            Renewal { margin, expires: None, void: false, due: None, retry: FIRST_RETRY, given: now };
        renewal.handle_renewed(lease, now);
        renewal
    }

    /// Returns the unix seconds at `now` by which the lease is judged: those of the wall clock, or more where
    /// more has passed on the monotonic clock since the store gave the lease.
    pub fn clock(&self, now: Now) -> u64 {
        let passed = now.instant.saturating_duration_since(self.given.instant);
        now.unix.max(self.given.unix.saturating_add(passed.as_secs()))
    }

    /// Returns what to do at `now`.
    pub fn poll(&self, now: Now) -> Step {
        let now = self.clock(now);
        // A void lease has no deadline of its own: only a failure to acquire delays the next attempt.
        let void = self.void || self.expires.is_some_and(|expires| expires <= now);
        match self.due {
            Some(due) if now < due && (self.void || !void) => {
                // Whenever the next attempt is due, the expiry of the lease is a deadline too.
                let end = self.expires.filter(|_| !self.void).unwrap_or(due);
                Step::Sleep(Some(due.min(end)))
            }
            _ if void => Step::Acquire,
            None => Step::Sleep(None),
            Some(_) => Step::Renew,
        }
    }

    /// Takes in that the store renewed the lease or gave a new one.
    pub fn handle_renewed(&mut self, lease: &Lease, now: Now) {
        self.void = false;
        self.expires = lease.expires;
        (self.given, self.retry) = (now, FIRST_RETRY);
        let now = now.unix;
        self.due = lease.expires.map(|expires| {
            let pause = PAUSE.min(expires.saturating_sub(now) / 2).max(1);
            expires.saturating_sub(self.margin).max(now.saturating_add(pause))
        });
    }

    /// Takes in that the request failed. The next attempt is a minute later, or sooner if the lease is lost.
    pub fn handle_failure(&mut self, now: Now) {
        let now = self.clock(now);
        self.void |= self.expires.is_some_and(|expires| expires <= now);
        let mut pause = RETRY;
        if self.void {
            pause = self.retry;
            self.retry = (self.retry * 2).min(RETRY);
        }
        self.due = Some(now.saturating_add(pause));
    }

    /// Takes in that the lease is gone or another node's, as the watch or a renewal reported.
    pub fn handle_lost(&mut self) {
        self.void = true;
        self.due = None;
    }
}

#[cfg(test)]
mod tests;
