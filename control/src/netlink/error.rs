//! Failed requests to the kernel.

use std::io;
use std::time::Duration;

use store::Kind;

/// A request that the kernel rejected, or that could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}; loden needs access to the host's network namespace")]
    Connect(#[source] io::Error),
    /// The kernel answered a request with an error.
    #[error("cannot {what}: {source}{}", hint(source))]
    Refused {
        /// The request as an imperative: "set MTU 1450 on flannel.1".
        what: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// IPv6 is off on one of our devices, and cannot be turned on.
    #[error(
        "cannot set {key}=0: {source}; IPv6 is off on the device: on the host, run \
         `sysctl -w net.ipv6.conf.default.disable_ipv6=0 {key}=0`"
    )]
    Ipv6Off {
        /// The setting's key as sysctl(8) takes it.
        key: String,
        /// The error of the write.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer.
    #[error(
        "cannot {what}: no answer from the kernel within {} s; opening another netlink socket",
        .patience.as_secs()
    )]
    Silent {
        /// The request as an imperative.
        what: String,
        /// How long the request waited.
        patience: Duration,
    },
    /// The connection ended, or lost messages, before the answer was complete.
    #[error("cannot {what}: the netlink socket failed before the answer; opening another")]
    Ended {
        /// The request as an imperative.
        what: String,
    },
    /// The answer was not valid.
    #[error("cannot {what}: {answer}")]
    Broken {
        /// The request as an imperative.
        what: String,
        /// A description of what came instead of an answer.
        answer: String,
    },
}

impl NetlinkError {
    /// Wraps `error` with the request that failed.
    pub fn from_rtnetlink(what: impl Into<String>, error: rtnetlink::Error) -> NetlinkError {
        let what = what.into();
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                NetlinkError::Refused { what, source: io::Error::from_raw_os_error(-message.raw_code()) }
            }
            other => NetlinkError::Broken { what, answer: other.to_string() },
        }
    }

    /// Returns the kind of this failure, whichever device, route or address it is about.
    pub fn kind(&self) -> Kind {
        let of = |class, what: &str| Kind::new(class).of(self.errno().unwrap_or_default()).of_text(what);
        match self {
            NetlinkError::Connect(_) => of("netlink socket", ""),
            NetlinkError::Refused { what, .. } => of("netlink refused", what),
            NetlinkError::Ipv6Off { .. } => of("IPv6 off", ""),
            NetlinkError::Silent { what, .. } => of("netlink silent", what),
            NetlinkError::Ended { what } => of("netlink ended", what),
            NetlinkError::Broken { what, .. } => of("netlink broken", what),
        }
    }

    /// Returns the errno of the kernel's answer, if there was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Connect(source)
            | NetlinkError::Refused { source, .. }
            | NetlinkError::Ipv6Off { source, .. } => source.raw_os_error(),
            NetlinkError::Silent { .. } | NetlinkError::Ended { .. } | NetlinkError::Broken { .. } => None,
        }
    }

    /// Tells whether the kernel has answered. Without an answer it is not known whether a change was made.
    pub fn is_answer(&self) -> bool {
        matches!(self, NetlinkError::Refused { .. } | NetlinkError::Ipv6Off { .. })
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EPERM) => "; run as root or grant CAP_NET_ADMIN",
        // Not a matter of rights (net/ipv6/addrconf.c, net/ipv6/route.c).
        Some(nix::libc::EACCES) => "; IPv6 is off on the device: set its sysctl disable_ipv6 to 0",
        _ => "",
    }
}
