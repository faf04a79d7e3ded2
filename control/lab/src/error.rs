//! One error: what was tried, what the system answered, what to do next.

use std::fmt::Display;
use std::io;

/// Why the lab could not do something. Prints as one line.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {answered}{}", next.as_deref().map(|next| format!("; {next}")).unwrap_or_default())]
pub struct Error {
    tried: String,
    answered: String,
    next: Option<String>,
    code: Option<i32>,
}

impl Error {
    /// An error whose cause is something else than a system call.
    pub fn new(tried: impl Into<String>, answered: impl Display) -> Self {
        Error { tried: tried.into(), answered: answered.to_string(), next: None, code: None }
    }

    /// An error that the system answered; keeps its number for [`Error::code`].
    pub fn system(tried: impl Into<String>, answered: impl Into<io::Error>) -> Self {
        let answered = answered.into();
        Error { code: answered.raw_os_error(), ..Error::new(tried, answered) }
    }

    /// Adds what the reader can do about it.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// The number of the system's error (`errno`), if it was one.
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
