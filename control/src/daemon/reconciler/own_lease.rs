//! Our own lease: when to ask the store for it, and what events and answers say of it.
//!
//! A lease has what we wish to publish and what is published, which differ where an administrator has
//! overwritten our public address. Whether to publish is decided between wishes; peers see what is published.

use std::time::{Duration, Instant};

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;
use store::lease::ledger::Own;
use store::lease::renewal::{Renewal, Step};
use store::lease::{Holder, Owned};
use store::{Now, StoreError};

use super::end::End;
use super::request::{Answer, Request};
use super::wishes::Wishes;
use crate::daemon::error::DaemonError;

/// Longest sleep before the wall clock is read again: expiries are points of it, and it may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

const TAKEN: &str = "another node took the subnet; restart to get a new one";

/// The state of our own lease besides its text. Carry out what [`OwnLease::poll_request`] returns, one
/// request at a time, and hand every event and answer to `handle_*`; a lease that these return is ours as it
/// is stored now.
#[derive(Debug)]
pub(crate) struct OwnLease {
    renewal: Renewal,
    /// The store has given us the lease in this run.
    confirmed: bool,
    /// A request is under way.
    busy: bool,
    /// What we have wished in this run.
    wishes: Wishes,
    /// Another lease to give back, which the store gave instead of ours.
    give_back: Option<SubnetKey>,
    /// The lease was removed while a request that writes it was under way.
    removed_meanwhile: bool,
    /// The lease as an event showed it while a request was under way, perhaps later than the answer was
    /// given.
    shown_meanwhile: Option<Lease>,
    /// A wish that the store does not know is to be published at the next chance.
    publish: bool,
    /// Why the store does not know our wish.
    unpublished: Option<String>,
}

impl OwnLease {
    /// For a lease that the store gave at `now`, to be renewed when `margin` of its life is left.
    pub(crate) fn acquired(own: &Owned, margin: Duration, now: Now) -> OwnLease {
        OwnLease {
            renewal: Renewal::new(&own.published, margin, now),
            confirmed: true,
            busy: false,
            wishes: Wishes::default(),
            give_back: None,
            removed_meanwhile: false,
            shown_meanwhile: None,
            publish: false,
            unpublished: None,
        }
    }

    /// For a lease of an earlier run, to be confirmed by the store.
    pub(crate) fn remembered(own: &Owned, margin: Duration, now: Now) -> OwnLease {
        OwnLease { confirmed: false, ..OwnLease::acquired(own, margin, now) }
    }

    /// Tells whether the store has given us the lease in this run. There are no events before.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Returns the request that is due, none while one is under way. `wished` is what is to be published now.
    pub(crate) fn poll_request(
        &mut self,
        own: &Owned,
        wished: &LeaseAttrs,
        config: &NetConfig,
        now: Now,
    ) -> Option<Request> {
        if self.busy {
            return None;
        }
        let request = match self.renewal.poll(now) {
            _ if !self.confirmed => {
                Request::Confirm { config: config.clone(), wished: wished.clone(), key: own.key() }
            }
            Step::Renew => Request::Renew(own.clone()),
            Step::Acquire => Request::Acquire {
                config: config.clone(),
                wished: self.wishes.search(own),
                key: own.key(),
                give_back: self.give_back.take(),
            },
            Step::Sleep(_) if std::mem::take(&mut self.publish) && own.wished != *wished => {
                Request::Publish { own: own.clone(), wished: wished.clone() }
            }
            Step::Sleep(_) => return None,
        };
        self.busy = true;
        self.wishes.ask(request.wished(), own);
        Some(request)
    }

    /// Returns when to poll for a request again, if nothing happens before.
    pub(crate) fn poll_timeout(&self, now: Now) -> Option<Instant> {
        if self.busy {
            return None;
        }
        match self.renewal.poll(now) {
            Step::Sleep(due) if self.confirmed && !self.publish => due.map(|due| {
                let left = due.saturating_sub(self.renewal.clock(now));
                now.instant + Duration::from_secs(left).min(LONGEST_SLEEP)
            }),
            _ => Some(now.instant),
        }
    }

    /// Asks for `wished` to be published if the store does not know it. A failed attempt is repeated only by
    /// this.
    pub(crate) fn publish(&mut self, own: &Owned, wished: &LeaseAttrs) {
        self.publish = own.wished != *wished;
        if !self.publish {
            self.unpublished = None;
        }
    }

    /// Returns why the store does not know our wish, if an attempt has failed.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.unpublished.as_deref()
    }

    /// Takes in what an event said about our lease. `holder` tells by a wish whose lease the stored one is.
    pub(crate) fn handle_event(
        &mut self,
        event: Own,
        stored: Option<&Lease>,
        own: &Owned,
        holder: impl Fn(&LeaseAttrs, &Lease) -> Holder,
        now: Now,
    ) -> Result<Option<Owned>, End> {
        match (event, stored) {
            (Own::Unchanged, _) | (Own::Written, None) => Ok(None),
            (Own::Removed, _) => {
                let lease = own.key();
                tracing::warn!(%lease, "our lease was removed from the store; acquiring it again");
                self.removed_meanwhile = self.busy;
                self.renewal.handle_lost();
                Ok(None)
            }
            (Own::Written, Some(stored)) => self.handle_written(stored, own, holder, now),
        }
    }

    /// Takes in an answer of the store.
    pub(crate) fn handle_answer(
        &mut self,
        answer: Answer,
        own: &Owned,
        holder: impl Fn(&LeaseAttrs, &Lease) -> Holder,
        now: Now,
    ) -> Result<Option<Owned>, End> {
        self.busy = false;
        let removed_meanwhile = std::mem::take(&mut self.removed_meanwhile);
        let shown_meanwhile = self.shown_meanwhile.take();
        let Some(mut granted) = self.granted(answer, own, now)? else { return Ok(None) };
        tracing::info!(lease = %own.key(), "lease renewed");
        // If the event is the older one, another will follow.
        if let Some(shown) = shown_meanwhile.filter(|shown| holder(&granted.wished, shown) == Holder::Us) {
            granted.published = shown;
        }
        self.renewal.handle_renewed(&granted.published, now);
        self.wishes.end_search();
        if removed_meanwhile {
            self.renewal.handle_lost();
        }
        Ok(Some(granted))
    }

    /// Returns the lease if the store has given it.
    fn granted(&mut self, answer: Answer, own: &Owned, now: Now) -> Result<Option<Owned>, End> {
        let key = own.key();
        match answer {
            Answer::Reconfigured => {
                tracing::warn!(
                    "the network configuration has changed since the last run; restarting from the store"
                );
                Err(End::Restart)
            }
            Answer::Confirmed(Err(error)) => Err(error.into()),
            Answer::Confirmed(Ok(granted)) if granted.key() != key => {
                let now = granted.key();
                tracing::warn!(
                    was = %key,
                    %now,
                    "the store gave us another subnet; restarting from the store"
                );
                Err(End::Restart)
            }
            Answer::Confirmed(Ok(granted)) => {
                tracing::info!(lease = %key, "the store has confirmed the remembered lease");
                self.confirmed = true;
                Ok(Some(granted))
            }
            Answer::Acquired(Ok(granted)) if granted.key() != key => {
                if self.wishes.can_search_on(own) {
                    self.give_back = Some(granted.key());
                    self.renewal.handle_lost();
                    return Ok(None);
                }
                // Pods already have addresses of the old subnet: only a restart can change it.
                let error = Box::new(lost(key, TAKEN));
                Err(End::Failed { error, give_back: Some(granted.key()) })
            }
            Answer::Acquired(Err(StoreError::OutOfSubnets(error))) => {
                Err(lost(key, &error.to_string()).into())
            }
            Answer::Renewed(Ok(granted)) | Answer::Acquired(Ok(granted)) => Ok(Some(granted)),
            Answer::Published(Ok(granted)) => {
                let attrs = granted.published.attrs.to_json();
                tracing::info!(lease = %key, attrs, "published the changed attributes");
                self.unpublished = None;
                Ok(Some(granted))
            }
            Answer::Renewed(Err(StoreError::Lost { why, .. })) => {
                let lost = "our lease is no longer stored as ours; acquiring it again";
                tracing::warn!(lease = %key, why, "{lost}");
                self.renewal.handle_lost();
                Ok(None)
            }
            Answer::Published(Err(StoreError::Lost { why, .. })) => {
                self.unpublished = Some(format!("our lease {key} is no longer stored as ours: {why}"));
                self.renewal.handle_lost();
                Ok(None)
            }
            Answer::Renewed(Err(error)) | Answer::Acquired(Err(error)) => {
                tracing::warn!("cannot renew our lease, retrying within a minute: {error}");
                self.renewal.handle_failure(now);
                self.wishes.end_search();
                Ok(None)
            }
            Answer::Published(Err(error)) => {
                self.unpublished = Some(format!("cannot publish the changed attributes: {error}"));
                Ok(None)
            }
        }
    }

    /// Takes in our lease as somebody, perhaps we, has written it.
    fn handle_written(
        &mut self,
        stored: &Lease,
        own: &Owned,
        holder: impl Fn(&LeaseAttrs, &Lease) -> Holder,
        now: Now,
    ) -> Result<Option<Owned>, End> {
        if let Some(wished) = self.wishes.find(own, |wish| holder(wish, stored) == Holder::Us) {
            self.renewal.handle_renewed(stored, now);
            self.wishes.end_search();
            self.removed_meanwhile = false;
            self.shown_meanwhile = self.busy.then(|| stored.clone());
            return Ok(Some(Owned { published: stored.clone(), wished }));
        }
        // Two daemons that publish one address would take the lease from each other forever, so the one that
        // finds itself replaced gives up.
        match holder(&own.wished, stored) {
            Holder::Rival => Err(DaemonError::Rival { lease: own.key() }.into()),
            _ => Err(lost(own.key(), TAKEN).into()),
        }
    }
}

fn lost(lease: SubnetKey, why: &str) -> DaemonError {
    DaemonError::LeaseLost { lease, why: why.to_owned() }
}

#[cfg(test)]
#[path = "own_lease_tests.rs"]
mod tests;
