//! Requests to the store about our own lease: one at a time, beside the loop, because a store that hangs must not
//! keep the node from its other work.

use std::pin::Pin;

use model::lease::{Lease, LeaseAttrs};

use super::DaemonError;
use store::{Holder, Owned, Store, StoreError};

/// The request under way, if there is one.
#[derive(Default)]
pub(super) struct StoreRequest {
    request: Option<Pin<Box<dyn Future<Output = Answer>>>>,
    /// What the request wishes to publish: an event that shows it is no stranger's.
    wishes: Option<LeaseAttrs>,
}

/// What a request came to.
pub(super) enum Answer {
    /// After a start from memory: the store has the same configuration and gave us this lease.
    Confirmed(Result<Owned, DaemonError>),
    /// After a start from memory: the store has another configuration.
    Reconfigured,
    /// The lease was renewed.
    Renewed(Result<Owned, StoreError>),
    /// A lost lease was taken again, or another one given.
    Acquired(Result<Owned, StoreError>),
    /// Changed attributes were published.
    Published(Result<Owned, StoreError>),
}

impl StoreRequest {
    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.request.is_none()
    }

    /// Whether the request under way wrote the lease that is stored.
    pub(super) fn wrote(&self, store: &Store, stored: &Lease) -> bool {
        self.wishes.as_ref().is_some_and(|wished| store.holder(wished, stored) == Holder::Us)
    }

    /// Starts a request that wishes to publish `wished`, in the place of one under way.
    pub(super) fn ask(&mut self, wished: LeaseAttrs, request: impl Future<Output = Answer> + 'static) {
        self.wishes = Some(wished);
        self.request = Some(Box::pin(request));
    }

    /// Waits for the answer; for ever while nothing is asked. Nothing is lost if the wait is dropped half-way.
    pub(super) async fn answer(&mut self) -> Answer {
        let Some(request) = &mut self.request else { return std::future::pending().await };
        let answer = request.await;
        (self.request, self.wishes) = (None, None);
        answer
    }
}
