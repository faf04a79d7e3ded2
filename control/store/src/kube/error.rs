//! The errors of Kubernetes: each one line, with what to do next and no secret in it.

use std::path::PathBuf;
use std::time::Duration;

use super::client::Call;
use crate::Kind;

/// Why Kubernetes did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeError {
    /// An unusable option or variable.
    #[error("kubernetes: {option} {value:?}: {problem}")]
    Option {
        /// The option as flanneld spells it, or the variable.
        option: &'static str,
        /// The value as given.
        value: String,
        /// The problem, and what to write instead.
        problem: String,
    },
    /// A file that cannot be used now. Those of a service account are replaced while the daemon runs.
    #[error("kubernetes: {}: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, and what to do.
        problem: String,
    },
    /// The API server did not answer, or broke off.
    #[error("kubernetes: cannot {tried}: {server}: {answer}; {advice}")]
    Unreachable {
        /// The attempted step.
        tried: Call,
        /// The server's address.
        server: String,
        /// What was seen of it.
        answer: String,
        /// What to check.
        advice: &'static str,
    },
    /// The API server does not accept our credentials.
    #[error(
        "kubernetes: cannot {tried}: {server} rejected our credentials ({answer}); check that the token or \
         the client certificate is of this cluster and has not expired"
    )]
    Unauthorized {
        /// The attempted step.
        tried: Call,
        /// The server's address.
        server: String,
        /// The server's answer.
        answer: String,
    },
    /// Our role does not allow the call.
    #[error(
        "kubernetes: cannot {tried}: {server} denied it ({answer}); allow the verb {} on {} in the role of \
         this daemon's account", .tried.verb(), .tried.resource()
    )]
    Denied {
        /// The attempted step.
        tried: Call,
        /// The server's address.
        server: String,
        /// The server's answer.
        answer: String,
    },
    /// Any other refusal.
    #[error("kubernetes: cannot {tried}: {server} answered {status}: {answer}; retrying may help")]
    Refused {
        /// The attempted step.
        tried: Call,
        /// The server's address.
        server: String,
        /// The status code.
        status: u16,
        /// The server's answer.
        answer: String,
        /// How long the server asks to be left alone.
        wait: Option<Duration>,
    },
    /// The version to watch from, or the rest of a list, is no longer kept.
    #[error("kubernetes: cannot {tried}: the version is no longer kept; the nodes have to be listed again")]
    Gone {
        /// The attempted step.
        tried: Call,
    },
    /// The object is not there.
    #[error(
        "kubernetes: cannot {tried}: {server}: {answer}; check NODE_NAME or POD_NAME, and that the API \
         server is this cluster's"
    )]
    Missing {
        /// The attempted step.
        tried: Call,
        /// The server's address.
        server: String,
        /// The server's answer.
        answer: String,
    },
    /// The pod is on no node.
    #[error("kubernetes: the pod {pod} is on no node yet; NODE_NAME can name the node instead")]
    Unscheduled {
        /// Namespace and name of the pod.
        pod: String,
    },
    /// The node has no pod CIDR yet.
    #[error(
        "kubernetes: the node {node} has no podCIDR yet; run the controller manager with \
         --allocate-node-cidrs=true and --cluster-cidr, or set it by another controller"
    )]
    Unassigned {
        /// The node's name.
        node: String,
    },
    /// The pod CIDRs of the node cannot be used.
    #[error("kubernetes: the node {node}: {problem}")]
    BadCidrs {
        /// The node's name.
        node: String,
        /// The problem, and what to do.
        problem: String,
    },
    /// The network configuration is a file that others write.
    #[error(
        "kubernetes: the network configuration is the file of --net-config-path, which the cluster's \
         ConfigMap fills; change it there"
    )]
    ReadOnly,
}

impl KubeError {
    /// Returns the kind of this failure.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            KubeError::Option { option, .. } => Kind::new("kubernetes' options").of(option),
            KubeError::File { path, .. } => Kind::new("kubernetes' files").of(path.display()),
            // By what a person should check: a server that restarts fails in many words.
            KubeError::Unreachable { advice, .. } => Kind::new("kubernetes unreachable").of(advice),
            KubeError::Unauthorized { .. } => Kind::new("kubernetes unauthorized"),
            KubeError::Denied { tried, .. } => {
                Kind::new("kubernetes denied").of(tried.verb()).of(tried.resource())
            }
            KubeError::Refused { status, .. } => Kind::new("kubernetes refused").of(status),
            KubeError::Gone { .. } => Kind::new("kubernetes gone"),
            KubeError::Missing { tried, .. } => Kind::new("kubernetes missing").of(tried.resource()),
            KubeError::Unscheduled { .. } => Kind::new("kubernetes unscheduled"),
            KubeError::Unassigned { .. } => Kind::new("kubernetes unassigned"),
            KubeError::BadCidrs { problem, .. } => Kind::new("kubernetes subnets").of(problem),
            KubeError::ReadOnly => Kind::new("kubernetes read-only"),
        }
    }

    /// Returns true if the next attempt may succeed without a change of our own options.
    pub fn is_passing(&self) -> bool {
        !matches!(self, KubeError::Option { .. } | KubeError::ReadOnly)
    }

    /// Returns how long the server asks to be left alone.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            KubeError::Refused { wait, .. } => *wait,
            _ => None,
        }
    }
}
