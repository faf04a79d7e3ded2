//! When to renew: now in, next deadline out.
//!
//! Call [`Renewal::poll`] with the time and do what it says: sleep until the deadline, renew, or acquire
//! anew. Report the outcome by one of the `handle_*` calls and poll again. All times are unix seconds.

use std::time::Duration;

use model::lease::Lease;

/// Wait after a failure, as in flannel.
const RETRY: u64 = 60;
/// Least wait after a success. It matters only when a lease lasts no longer than the margin.
const PAUSE: u64 = 60;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time; `None`: nothing until an event of the watch.
    Sleep(Option<u64>),
    /// Renew the lease, which is still good.
    Renew,
    /// The lease is void: acquire anew, the old subnet as the wish.
    Acquire,
}

/// The state of our own lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    margin: u64,
    /// `None` for a reservation.
    expires: Option<u64>,
    void: bool,
    due: Option<u64>,
}

impl Renewal {
    /// For a lease that was acquired at `now` and is to be renewed when `margin` of its life is left.
    pub fn new(lease: &Lease, margin: Duration, now: u64) -> Renewal {
        let mut renewal = Renewal { margin: margin.as_secs(), expires: None, void: false, due: None };
        renewal.handle_renewed(lease, now);
        renewal
    }

    /// What to do at `now`.
    pub fn poll(&self, now: u64) -> Step {
        // A void lease keeps no deadline of its own: only a failure to acquire delays the next try.
        let void = self.void || self.expires.is_some_and(|expires| expires <= now);
        match self.due {
            Some(due) if now < due && (self.void || !void) => {
                // Whatever the next try, the end of the lease is a deadline too.
                let end = self.expires.filter(|_| !self.void).unwrap_or(due);
                Step::Sleep(Some(due.min(end)))
            }
            _ if void => Step::Acquire,
            None => Step::Sleep(None),
            Some(_) => Step::Renew,
        }
    }

    /// The store renewed the lease, or gave a new one.
    pub fn handle_renewed(&mut self, lease: &Lease, now: u64) {
        self.void = false;
        self.expires = lease.expires;
        self.due = lease.expires.map(|expires| {
            let pause = PAUSE.min(expires.saturating_sub(now) / 2).max(1);
            expires.saturating_sub(self.margin).max(now.saturating_add(pause))
        });
    }

    /// The store could not be asked. The next try is a minute later.
    pub fn handle_failure(&mut self, now: u64) {
        self.void |= self.expires.is_some_and(|expires| expires <= now);
        self.due = Some(now.saturating_add(RETRY));
    }

    /// The lease is gone or is another node's: the watch saw it removed, or the renewal said so.
    pub fn handle_lost(&mut self) {
        self.void = true;
        self.due = None;
    }
}

#[cfg(test)]
mod tests;
