//! Why a run failed.

use std::io;

/// Why a run gave no figures. Prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{tried}: {answered}")]
    System {
        /// What was tried.
        tried: String,
        /// What the system answered.
        answered: io::Error,
    },
    /// The other side reported a failure of its own.
    #[error("the load server failed: {0}")]
    Server(String),
    /// The other side said something that is no part of the protocol.
    #[error("the load peer does not follow the protocol: {0}")]
    Protocol(String),
    /// The other side was silent when it was its turn.
    #[error("{0}: no answer in time; is the path up?")]
    Silent(String),
    /// The load that was asked for is impossible.
    #[error("{0}")]
    Impossible(String),
    /// The run was asked to end early.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Wraps a system error with what was tried; for `map_err`.
    pub(crate) fn system(tried: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |answered| Error::System { tried: tried.into(), answered }
    }
}
