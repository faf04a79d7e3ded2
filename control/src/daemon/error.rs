//! Errors that end the daemon. Each is one line: what was tried, what the system answered, what to do next.

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

/// The reason why the daemon could not start or continue.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The instance's name is bad or taken.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Probes cannot be answered.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The store rejected a request.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file named on the command line cannot be read.
    #[error(transparent)]
    ConfigFile(#[from] NetConfigFileError),
    /// The kernel rejected a request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No interface can carry the tunnels.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The configuration does not fit this host.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Devices or sockets could not be opened.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The host cannot be brought to the plan.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Traffic rules could not be installed.
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
    /// Another node has our lease.
    #[error("lost the lease {lease}: {why}")]
    LeaseLost {
        /// Its key.
        lease: SubnetKey,
        /// What happened and what to do.
        why: String,
    },
    /// Another daemon publishes our address.
    #[error(
        "lost the lease {lease}: another daemon publishes the same address; give each its own --public-ip"
    )]
    Rival {
        /// Its key.
        lease: SubnetKey,
    },
    /// A WireGuard handshake thread ended on its own.
    #[error("the WireGuard handshakes of {device} failed: {why}; restart the daemon")]
    KeeperFailed {
        /// The tunnel's device.
        device: String,
        /// The reason.
        why: String,
    },
    /// The path MTU thread ended on its own.
    #[error("learning path MTUs failed: {why}; restart the daemon")]
    LearnerFailed {
        /// The reason.
        why: String,
    },
    /// The thread for files cannot be started.
    #[error("cannot start a thread: {0}; check the limit on processes (ulimit -u, pids.max)")]
    Disk(#[source] io::Error),
    /// A file cannot be read in time.
    #[error("cannot read the private key: {0}; check the mounts of this host")]
    Files(#[source] io::Error),
    /// A task that runs as long as the daemon ended on its own.
    #[error("{what} ended; restart the daemon")]
    TaskEnded {
        /// What the task did.
        what: &'static str,
    },
    /// A worker ended on its own.
    #[error("worker {worker} of the datapath failed: {why}; restart the daemon")]
    WorkerFailed {
        /// Its index.
        worker: usize,
        /// The reason.
        why: String,
    },
}
