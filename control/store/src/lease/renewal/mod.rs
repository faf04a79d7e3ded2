//! Decides when to renew a lease: takes the time, returns the next deadline.
//!
//! Call [`Renewal::poll`] with the time and do what it returns: sleep until the deadline, renew, or acquire
//! again. Report the outcome by one of the `handle_*` calls and poll again. All times are unix seconds.

use std::time::Duration;

use model::lease::Lease;

/// Seconds to wait after a failure, as in flannel.
const RETRY: u64 = 60;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    margin: u64,
    /// `None` for a reservation.
    expires: Option<u64>,
    void: bool,
    due: Option<u64>,
}

impl Renewal {
    /// Starts with a lease that was acquired at `now`, to be renewed when `margin` of its life is left.
    pub fn new(lease: &Lease, margin: Duration, now: u64) -> Renewal {
        let mut renewal = Renewal { margin: margin.as_secs(), expires: None, void: false, due: None };
        renewal.handle_renewed(lease, now);
        renewal
    }

    /// Returns what to do at `now`.
    pub fn poll(&self, now: u64) -> Step {
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
    pub fn handle_renewed(&mut self, lease: &Lease, now: u64) {
        self.void = false;
        self.expires = lease.expires;
        self.due = lease.expires.map(|expires| {
            let pause = PAUSE.min(expires.saturating_sub(now) / 2).max(1);
            expires.saturating_sub(self.margin).max(now.saturating_add(pause))
        });
    }

    /// Takes in that the request failed. The next attempt is a minute later.
    pub fn handle_failure(&mut self, now: u64) {
        self.void |= self.expires.is_some_and(|expires| expires <= now);
        self.due = Some(now.saturating_add(RETRY));
    }

    /// Takes in that the lease is gone or another node's, as the watch or a renewal reported.
    pub fn handle_lost(&mut self) {
        self.void = true;
        self.due = None;
    }
}

#[cfg(test)]
mod tests;
