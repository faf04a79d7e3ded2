//! What can end the daemon. Each is one line: what was tried, what the system answered, what to do next.

use std::io;

use model::lease::SubnetKey;

use crate::apply::ApplyError;
use crate::apply::commands::CommandError;
use crate::netlink::NetlinkError;
use crate::persist::instance::InstanceError;
use crate::persist::wireguard_key::KeyError;
use crate::plan::PlanError;
use crate::serve::http::HealthError;
use crate::settings::NetConfigFileError;
use crate::traffic::TrafficError;
use crate::underlay::select::SelectError;
use store::StoreError;

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The instance's name is bad or taken.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Probes cannot be answered.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file named on the command line cannot be read.
    #[error(transparent)]
    ConfigFile(#[from] NetConfigFileError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No interface to use.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The configuration does not fit this host.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Devices or sockets cannot be had.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The host cannot be brought to the plan.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Masquerade rules cannot be had.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// A command of the `extension` backend failed at start.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The `wireguard` backend has no private key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// Somebody else has our lease.
    #[error("lost the lease {lease}: {why}")]
    LeaseLost {
        /// Its key.
        lease: SubnetKey,
        /// What happened and what to do.
        why: String,
    },
    /// A worker ended on its own.
    #[error("worker {worker} of the datapath failed: {why}; restart to go on")]
    WorkerFailed {
        /// Its index.
        worker: usize,
        /// What it died of.
        why: String,
    },
}
