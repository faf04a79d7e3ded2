//! Errors of a run.

use std::io;

/// The reason why a run produced no figures. Prints on one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{tried}: {answered}")]
    System {
        /// The attempted operation.
        tried: String,
        /// The operating system's error.
        answered: io::Error,
    },
    /// The server reported a failure.
    #[error("the load server failed: {0}")]
    Server(String),
    /// The peer violated the protocol.
    #[error("the load peer violated the protocol: {0}")]
    Protocol(String),
    /// The peer did not respond in time.
    #[error("{0}: no response in time; check that the path is up")]
    Silent(String),
    /// The requested load is impossible.
    #[error("{0}")]
    Impossible(String),
    /// The run was stopped early.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Wraps a system error with the attempted operation; for `map_err`.
    pub(crate) fn system(tried: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |answered| Error::System { tried: tried.into(), answered }
    }
}
