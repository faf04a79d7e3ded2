//! What the kernel refused, and what was being asked of it.

use std::io;

/// A request the kernel refused, or that could not be put to it.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The netlink socket itself could not be had.
    #[error("cannot open a netlink socket: {0}; the daemon needs the host's network namespace")]
    Connect(#[source] io::Error),
    /// The kernel answered a request with an error.
    #[error("cannot {what}: {source}{}", hint(source))]
    Refused {
        /// What was asked, as an imperative: "set MTU 1450 on flannel.1".
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The answer was not one netlink knows, or the connection ended.
    #[error("cannot {what}: {answer}")]
    Broken {
        /// What was asked, as an imperative.
        what: String,
        /// What came instead of an answer.
        answer: String,
    },
}

impl NetlinkError {
    /// Names the request that `error` ended.
    pub fn from_rtnetlink(what: impl Into<String>, error: rtnetlink::Error) -> NetlinkError {
        let what = what.into();
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                NetlinkError::Refused { what, source: io::Error::from_raw_os_error(-message.raw_code()) }
            }
            other => NetlinkError::Broken { what, answer: other.to_string() },
        }
    }

    /// The errno the kernel answered with, if it answered.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Connect(source) | NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Broken { .. } => None,
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root or grant CAP_NET_ADMIN",
        _ => "",
    }
}
