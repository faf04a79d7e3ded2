//! The errors of all stores by meaning: each one line, with what to do next.

use std::convert::Infallible;

use model::error::ConfigError;

use crate::etcd::EtcdError;
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

    /// Returns what this failure has in common with the next ones of its kind, whichever endpoint they are
    /// of.
    pub fn kind(&self) -> String {
        match self {
            StoreError::Passing(Cause::Etcd(EtcdError::Unreachable { .. })) => "unreachable".to_owned(),
            // By what a person should check: a server that restarts fails in many words.
            StoreError::Passing(Cause::Kube(KubeError::Unreachable { advice, .. })) => (*advice).to_owned(),
            StoreError::Passing(Cause::Kube(KubeError::Refused { status, .. })) => {
                format!("refused by {status}")
            }
            StoreError::Passing(Cause::Etcd(EtcdError::Denied { .. })) => "denied".to_owned(),
            StoreError::Passing(Cause::Etcd(EtcdError::Refused { answer, .. })) => gist(answer),
            other => gist(&other.to_string()),
        }
    }

    fn of(cause: Cause, passing: bool) -> StoreError {
        if passing { StoreError::Passing(cause) } else { StoreError::Fatal(cause) }
    }
}

/// Returns a text without its digits: times, addresses and numbers vary between failures of one kind.
pub fn gist(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
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
