//! What etcd can answer instead: each one line, with what to do next and no secret in it.

/// Why etcd did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// An option that cannot be used.
    #[error("etcd: {option} {value:?}: {problem}")]
    Option {
        /// As on flanneld's command line.
        option: &'static str,
        /// As given.
        value: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// No endpoint answered in time.
    #[error("etcd: cannot {tried}: {endpoint}: {answer}; see that etcd runs there and can be reached")]
    Unreachable {
        /// What was tried.
        tried: &'static str,
        /// The last one that was asked.
        endpoint: String,
        /// What the system said.
        answer: String,
    },
    /// etcd does not let us.
    #[error(
        "etcd: cannot {tried}: {endpoint}: {answer}; see the user name, the password, and that the user's \
         roles allow to read {config} and to read and write the prefix {leases}"
    )]
    Denied {
        /// What was tried.
        tried: &'static str,
        /// Who was asked.
        endpoint: String,
        /// What it said.
        answer: String,
        /// Key of the configuration.
        config: String,
        /// What the keys of all leases begin with.
        leases: String,
    },
    /// Any other refusal.
    #[error("etcd: cannot {tried}: {endpoint}: {answer}; etcd's log says more")]
    Refused {
        /// What was tried.
        tried: &'static str,
        /// Who was asked.
        endpoint: String,
        /// What it said.
        answer: String,
    },
    /// What we looked at was compacted meanwhile.
    #[error("etcd: cannot {tried}: the revision was compacted; try again")]
    Compacted {
        /// What was tried.
        tried: &'static str,
    },
    /// Other nodes were faster each time.
    #[error("etcd: no lease: other nodes took each subnet that was chosen, {rounds} times; try again")]
    Contended {
        /// How often it was tried.
        rounds: u32,
    },
    /// A network without IPv4.
    #[error(
        "etcd: an IPv6-only network cannot be kept here, because stock flannel nodes cannot read its keys; \
         set Network beside IPv6Network, or use another store"
    )]
    Ipv6Only,
}

impl EtcdError {
    /// Whether it may be gone at the next try, without a change of our own options.
    pub fn is_passing(&self) -> bool {
        !matches!(self, EtcdError::Option { .. } | EtcdError::Ipv6Only)
    }
}
