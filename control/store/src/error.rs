//! The errors of all stores by meaning: each one line, with what to do next.

use std::convert::Infallible;

use model::error::ConfigError;
use model::lease::AttrsError;

use crate::etcd::EtcdError;
use crate::kind::Kind;
use crate::kube::KubeError;
use crate::lease::allocator::OutOfSubnets;
use crate::sqlite::SqliteError;

/// Why a request to a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The next attempt may succeed without a change of this daemon's options: the cluster cannot be reached
    /// or denies access for now, or others have yet to set or correct the configuration.
    #[error(transparent)]
    Passing(Cause),
    /// No further attempt can succeed before a person has changed something.
    #[error(transparent)]
    Fatal(Cause),
    /// The lease is no longer stored as ours.
    #[error("lease {key}: lost: {why}; acquire it again")]
    Lost {
        /// Its key.
        key: String,
        /// What has become of the stored lease.
        why: &'static str,
    },
    /// No subnet is free.
    #[error(transparent)]
    OutOfSubnets(#[from] OutOfSubnets),
}

/// The cause, as the store in use reports it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// An error of etcd.
    #[error(transparent)]
    Etcd(EtcdError),
    /// An error of Kubernetes.
    #[error(transparent)]
    Kube(KubeError),
    /// An error of the sqlite store.
    #[error(transparent)]
    Sqlite(SqliteError),
    /// No network configuration has been set yet.
    #[error("no network configuration in the store (--net-config sets it)")]
    Unconfigured,
    /// Other nodes could not use what this node would publish, and some would end over it.
    #[error("not published: {0}; give --public-ip and --public-ipv6 addresses of this node")]
    Unpublishable(AttrsError),
    /// The network configuration is broken.
    #[error(transparent)]
    Config(ConfigError),
}

impl StoreError {
    /// Returns true if the next attempt may succeed without a change of this daemon's options.
    pub fn is_passing(&self) -> bool {
        matches!(self, StoreError::Passing(_))
    }

    /// Tells whether no server answered.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            StoreError::Passing(
                Cause::Etcd(EtcdError::Unreachable { .. }) | Cause::Kube(KubeError::Unreachable { .. })
            )
        )
    }

    /// Returns the kind of this failure, whichever endpoint it is of.
    pub fn kind(&self) -> Kind {
        match self {
            StoreError::Passing(cause) | StoreError::Fatal(cause) => cause.kind(),
            StoreError::Lost { why, .. } => Kind::new("lost").of(why),
            StoreError::OutOfSubnets(_) => Kind::new("out of subnets"),
        }
    }

    fn of(cause: Cause, passing: bool) -> StoreError {
        if passing { StoreError::Passing(cause) } else { StoreError::Fatal(cause) }
    }
}

impl Cause {
    fn kind(&self) -> Kind {
        match self {
            Cause::Etcd(error) => error.kind(),
            Cause::Kube(error) => error.kind(),
            Cause::Sqlite(error) => error.kind(),
            Cause::Unconfigured => Kind::new("unconfigured"),
            Cause::Unpublishable(error) => Kind::new("unpublishable").of(error),
            // The same until somebody changes the configuration.
            Cause::Config(error) => Kind::new("configuration").of(error),
        }
    }
}

impl From<EtcdError> for StoreError {
    fn from(error: EtcdError) -> StoreError {
        let passing = error.is_passing();
        StoreError::of(Cause::Etcd(error), passing)
    }
}

impl From<KubeError> for StoreError {
    fn from(error: KubeError) -> StoreError {
        let passing = error.is_passing();
        StoreError::of(Cause::Kube(error), passing)
    }
}

impl From<SqliteError> for StoreError {
    fn from(error: SqliteError) -> StoreError {
        let passing = error.is_passing();
        StoreError::of(Cause::Sqlite(error), passing)
    }
}

/// The memory store refuses nothing.
impl From<Infallible> for StoreError {
    fn from(never: Infallible) -> StoreError {
        match never {}
    }
}
