//! What a store can answer instead of a lease, by meaning: each one line, with what to do next.

use std::convert::Infallible;

use model::error::ConfigError;

use crate::etcd::EtcdError;
use crate::lease::allocator::OutOfSubnets;
use crate::sqlite::SqliteError;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The next try may succeed although nobody changes this daemon's options: a cluster that cannot be reached or
    /// does not let us in for now, a configuration that others have yet to set or to mend.
    #[error(transparent)]
    Passing(Cause),
    /// No further try can succeed before a person has changed something.
    #[error(transparent)]
    Fatal(Cause),
    /// The lease is no longer stored as ours.
    #[error("lease {key}: lost: {why}; acquire it again")]
    Lost {
        /// Its key.
        key: String,
        /// What is stored instead.
        why: &'static str,
    },
    /// Nothing to hand out.
    #[error(transparent)]
    OutOfSubnets(#[from] OutOfSubnets),
}

/// What went wrong, as the store in use says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// etcd's answer.
    #[error(transparent)]
    Etcd(EtcdError),
    /// The file's answer.
    #[error(transparent)]
    Sqlite(SqliteError),
    /// Nobody has set a network configuration yet.
    #[error("no network configuration in the store (--net-config sets it)")]
    Unconfigured,
    /// The network configuration is broken.
    #[error(transparent)]
    Config(ConfigError),
}

impl StoreError {
    /// Whether the next try may succeed although nobody changes this daemon's options.
    pub fn is_passing(&self) -> bool {
        matches!(self, StoreError::Passing(_))
    }

    fn of(cause: Cause, passing: bool) -> StoreError {
        if passing { StoreError::Passing(cause) } else { StoreError::Fatal(cause) }
    }
}

impl From<EtcdError> for StoreError {
    fn from(error: EtcdError) -> StoreError {
        let passing = error.is_passing();
        StoreError::of(Cause::Etcd(error), passing)
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
