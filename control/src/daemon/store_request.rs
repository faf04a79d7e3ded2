//! Requests to the store about our own lease: one at a time, beside the loop, because a store that hangs must not
//! keep the node from its other work.

use std::pin::Pin;

use model::lease::{Lease, LeaseAttrs};

use super::DaemonError;
use store::StoreError;

/// The request under way, if there is one.
#[derive(Default)]
pub(super) struct StoreRequest {
    request: Option<Pin<Box<dyn Future<Output = Answer>>>>,
    /// What the request writes: an event that shows it is no stranger's.
    writes: Option<LeaseAttrs>,
}

/// What a request came to.
pub(super) enum Answer {
    /// After a start from memory: the store has the same configuration and gave us this lease.
    Confirmed(Result<Lease, DaemonError>),
    /// After a start from memory: the store has another configuration.
    Reconfigured,
    /// The lease was renewed.
    Renewed(Result<Lease, StoreError>),
    /// A lost lease was taken again, or another one given.
    Acquired(Result<Lease, StoreError>),
    /// Changed attributes were published.
    Published(Result<Lease, StoreError>),
}

impl StoreRequest {
    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.request.is_none()
    }

    /// Whether the request under way writes these attributes.
    pub(super) fn writes(&self, attrs: &LeaseAttrs) -> bool {
        self.writes.as_ref() == Some(attrs)
    }

    /// Starts a request that writes `attrs`, in the place of one under way.
    pub(super) fn ask(&mut self, attrs: LeaseAttrs, request: impl Future<Output = Answer> + 'static) {
        self.writes = Some(attrs);
        self.request = Some(Box::pin(request));
    }

    /// Waits for the answer; for ever while nothing is asked. Nothing is lost if the wait is dropped half-way.
    pub(super) async fn answer(&mut self) -> Answer {
        let Some(request) = &mut self.request else { return std::future::pending().await };
        let answer = request.await;
        (self.request, self.writes) = (None, None);
        answer
    }
}
