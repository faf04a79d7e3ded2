//! The error of everything that is opened or configured here.

use std::fmt;
use std::io;

/// What was tried, what the system answered, and what to do next.
#[derive(Debug)]
pub struct Error {
    /// What was being done, for instance "creating the TUN device flannel.1".
    pub doing: String,
    /// The system's answer.
    pub cause: io::Error,
    /// What the reader can do about it; empty when there is nothing better to say than the cause.
    pub advice: String,
}

impl Error {
    /// An error without advice.
    pub fn new(doing: impl Into<String>, cause: io::Error) -> Error {
        Error { doing: doing.into(), cause, advice: String::new() }
    }

    /// The same error with a sentence about what to do next.
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
