//! The error type for opening and configuring ports.

use std::fmt;
use std::io;

/// A failed operation: what was attempted, the system's error, and what to do about it.
#[derive(Debug)]
pub struct Error {
    /// What was attempted, for instance "creating the TUN device flannel.1".
    pub doing: String,
    /// The system's error.
    pub cause: io::Error,
    /// What the user can do about the failure; empty if the cause already says everything.
    pub advice: String,
}

impl Error {
    /// Creates an error without advice.
    pub fn new(doing: impl Into<String>, cause: io::Error) -> Error {
        Error { doing: doing.into(), cause, advice: String::new() }
    }

    /// Adds a sentence that tells the user what to do.
    pub fn advise(mut self, advice: impl Into<String>) -> Error {
        self.advice = advice.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}
