//! How a node ends other than by a signal.

use model::lease::SubnetKey;

use crate::daemon::error::DaemonError;
use crate::plan::PlanError;

/// The end of a node.
#[derive(Debug)]
pub(crate) enum End {
    /// What the node was started from no longer holds: start again, from the store.
    Restart,
    /// The daemon cannot go on.
    Failed {
        /// The reason.
        error: Box<DaemonError>,
        /// A lease that the store gave and nobody will use.
        give_back: Option<SubnetKey>,
    },
}

impl From<DaemonError> for End {
    fn from(error: DaemonError) -> End {
        End::Failed { error: Box::new(error), give_back: None }
    }
}

impl From<PlanError> for End {
    fn from(error: PlanError) -> End {
        DaemonError::from(error).into()
    }
}
