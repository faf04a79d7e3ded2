//! The errors of etcd: each one line, with what to do next and no secret in it.

use crate::kind::Kind;

/// Why etcd did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// An unusable option.
    #[error("etcd: {option} {value:?}: {problem}")]
    Option {
        /// The option as flanneld spells it.
        option: &'static str,
        /// The value as given.
        value: String,
        /// The problem, and what to write instead.
        problem: String,
    },
    /// No endpoint answered in time.
    #[error("etcd: cannot {tried}: {endpoint}: {answer}; check that etcd runs there and can be reached")]
    Unreachable {
        /// The attempted step.
        tried: &'static str,
        /// The last endpoint that was asked.
        endpoint: String,
        /// The system's answer.
        answer: String,
    },
    /// etcd denied access.
    #[error(
        "etcd: cannot {tried}: {endpoint}: {answer}; check the user name, the password, and that the \
         user's roles allow reading {config} and reading and writing the prefix {leases}"
    )]
    Denied {
        /// The attempted step.
        tried: &'static str,
        /// The endpoint that was asked.
        endpoint: String,
        /// The endpoint's answer.
        answer: String,
        /// The key of the configuration.
        config: String,
        /// The prefix of all leases' keys.
        leases: String,
    },
    /// Any other refusal.
    #[error("etcd: cannot {tried}: {endpoint}: {answer}; etcd's log has the details")]
    Refused {
        /// The attempted step.
        tried: &'static str,
        /// The endpoint that was asked.
        endpoint: String,
        /// The endpoint's answer.
        answer: String,
    },
    /// The revision that was asked for has been compacted meanwhile.
    #[error("etcd: cannot {tried}: the revision was compacted; the leases have to be listed again")]
    Compacted {
        /// The attempted step.
        tried: &'static str,
    },
    /// The revision that was asked for is yet to come: the cluster has lost its later ones.
    #[error(
        "etcd: cannot {tried}: the cluster has lost its latest revisions; the leases have to be listed again"
    )]
    Future {
        /// The attempted step.
        tried: &'static str,
    },
    /// An etcd lease with this id exists.
    #[error("etcd: cannot {tried}: there is an etcd lease with this id already; try again")]
    Granted {
        /// The attempted step.
        tried: &'static str,
    },
    /// Other nodes were faster in every attempt.
    #[error("etcd: no lease: other nodes were faster in all {rounds} attempts; try again")]
    Contended {
        /// The number of attempts.
        rounds: u32,
    },
    /// A network without IPv4.
    #[error(
        "etcd: an IPv6-only network cannot be stored in etcd, because stock flannel nodes cannot read \
         its keys; set Network beside IPv6Network, or use another store"
    )]
    Ipv6Only,
}

impl EtcdError {
    /// Returns the kind of this failure, whichever endpoint it is of.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            EtcdError::Option { option, .. } => Kind::new("etcd's options").of(option),
            EtcdError::Unreachable { .. } => Kind::new("etcd unreachable"),
            EtcdError::Denied { .. } => Kind::new("etcd denied"),
            EtcdError::Refused { answer, .. } => Kind::new("etcd refused").of_text(answer),
            EtcdError::Compacted { .. } => Kind::new("etcd compacted"),
            EtcdError::Future { .. } => Kind::new("etcd behind"),
            EtcdError::Granted { .. } => Kind::new("etcd granted"),
            EtcdError::Contended { .. } => Kind::new("etcd contended"),
            EtcdError::Ipv6Only => Kind::new("etcd IPv6-only"),
        }
    }

    /// Returns true if the next attempt may succeed without a change of our own options.
    pub fn is_passing(&self) -> bool {
        !matches!(self, EtcdError::Option { .. } | EtcdError::Ipv6Only)
    }
}
