//! What the daemon writes down for its next run, and when.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::Lease;

use crate::lease::ledger::LeaseSet;
use crate::options::RunOptions;
use crate::plan::{Identity, Plan};
use crate::state::{State, StateFile};

/// At most so often; ten thousand leases are two megabytes.
const PAUSE: Duration = Duration::from_secs(10);

/// The state file, and what is in it.
pub(super) struct Memory {
    file: StateFile,
    state: State,
    subnet_file: PathBuf,
    written: Option<(Arc<Plan>, Instant)>,
}

impl Memory {
    /// Reads what the run before has left.
    pub(super) fn open(file: StateFile, options: &RunOptions) -> Memory {
        let state = file.read();
        Memory { file, state, subnet_file: options.subnet_file.clone(), written: None }
    }

    /// The link addresses of the run before, or new ones, which are written down before anybody hears of them.
    pub(super) fn identity(&mut self, new: impl FnOnce() -> Identity) -> Identity {
        let identity = self.state.identity().unwrap_or_else(new);
        self.state.set_identity(&identity);
        self.file.write(&self.state);
        identity
    }

    /// Writes down, before they are made, that there will be firewall rules.
    pub(super) fn promise(&mut self, firewall: bool) {
        self.state.firewall |= firewall;
        self.file.write(&self.state);
    }

    /// Writes down what is on the host now.
    pub(super) fn keep(&mut self, plan: &Arc<Plan>, own: &Lease, peers: &LeaseSet) {
        self.state.set_plan(plan, &self.subnet_file);
        self.state.set_leases(own, peers.iter());
        self.file.write(&self.state);
        self.written = Some((Arc::clone(plan), Instant::now()));
    }

    /// The same, if the plan has changed and the last time is long enough ago.
    pub(super) fn keep_sometimes(&mut self, plan: &Arc<Plan>, own: &Lease, peers: &LeaseSet) {
        let due = self
            .written
            .as_ref()
            .is_none_or(|(before, when)| when.elapsed() >= PAUSE && !Arc::ptr_eq(before, plan));
        if due {
            self.keep(plan, own, peers);
        }
    }
}
