//! What a node asks the store about its own lease, and the answers.

use model::lease::{LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;
use store::StoreError;
use store::lease::Owned;

use crate::daemon::error::DaemonError;

/// A request to the store. One is under way at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// After a start from memory: ask for the configuration and for this lease until the store answers.
    Confirm {
        /// The remembered configuration.
        config: NetConfig,
        /// What to publish.
        wished: LeaseAttrs,
        /// The remembered subnets.
        key: SubnetKey,
    },
    /// Renew the lease as it is.
    Renew(Owned),
    /// Take the lost lease again.
    Acquire {
        /// The pools to choose from.
        config: NetConfig,
        /// What to publish.
        wished: LeaseAttrs,
        /// The subnets to get.
        key: SubnetKey,
        /// Another lease to remove first, which the store gave instead.
        give_back: Option<SubnetKey>,
    },
    /// Publish other attributes.
    Publish {
        /// The lease as it is.
        own: Owned,
        /// What to publish.
        wished: LeaseAttrs,
    },
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// To [`Request::Confirm`]: the store has the same configuration and gave this lease.
    Confirmed(Result<Owned, DaemonError>),
    /// To [`Request::Confirm`]: the store has another configuration.
    Reconfigured,
    /// To [`Request::Renew`].
    Renewed(Result<Owned, StoreError>),
    /// To [`Request::Acquire`].
    Acquired(Result<Owned, StoreError>),
    /// To [`Request::Publish`].
    Published(Result<Owned, StoreError>),
}

impl Request {
    /// Returns what the request asks the store to publish.
    pub(crate) fn wished(&self) -> &LeaseAttrs {
        match self {
            Request::Renew(own) => &own.wished,
            Request::Confirm { wished, .. }
            | Request::Acquire { wished, .. }
            | Request::Publish { wished, .. } => wished,
        }
    }
}
