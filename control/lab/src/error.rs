//! The error of this crate: the attempted operation, the system's error, and what to do next.

use std::fmt::Display;
use std::io;

/// A failed operation. Prints on one line.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {answered}{}", next.as_deref().map(|next| format!("; {next}")).unwrap_or_default())]
pub struct Error {
    tried: String,
    answered: String,
    next: Option<String>,
    code: Option<i32>,
}

impl Error {
    /// Creates an error that was not caused by a system call.
    pub fn new(tried: impl Into<String>, answered: impl Display) -> Self {
        Error { tried: tried.into(), answered: answered.to_string(), next: None, code: None }
    }

    /// Creates an error from a system error, whose number [`Error::code`] returns.
    pub fn system(tried: impl Into<String>, answered: impl Into<io::Error>) -> Self {
        let answered = answered.into();
        Error { code: answered.raw_os_error(), ..Error::new(tried, answered) }
    }

    /// Adds what the user can do about the error.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Returns the number of the system error (`errno`), if there is one.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    pub(crate) fn netlink(tried: impl Into<String>, answered: rtnetlink::Error) -> Self {
        match answered {
            rtnetlink::Error::NetlinkError(message) => Error::system(tried, message.to_io()),
            other => Error::new(tried, other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_all_three_parts() {
        let error = Error::system("make x", io::Error::from_raw_os_error(1)).next("become root");
        assert_eq!(error.to_string(), "make x: Operation not permitted (os error 1); become root");
        assert_eq!(error.code(), Some(1));
        assert_eq!(Error::new("make x", "no").to_string(), "make x: no");
    }
}
