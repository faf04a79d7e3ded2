//! What the daemon writes down for its next run, and when.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::Lease;
use model::net_config::{self, NetConfig};

use super::room::Found;
use super::waiting;
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

/// What a start needs to go on where the run before has ended.
pub(super) struct Past {
    pub(super) config: NetConfig,
    pub(super) own: Lease,
    pub(super) peers: Vec<Lease>,
}

impl Memory {
    /// Reads what the run before has left.
    pub(super) fn open(file: StateFile, options: &RunOptions) -> Memory {
        let state = file.read();
        Memory { file, state, subnet_file: options.subnet_file.clone(), written: None }
    }

    /// Our link addresses: those that stand on devices `found` here, else those of the run before, else new ones.
    /// They are written down before anybody hears of them.
    pub(super) fn identity(&mut self, found: &Found, new: impl FnOnce() -> Identity) -> Identity {
        let known = self.state.identity().unwrap_or_else(new);
        let identity =
            Identity { mac: found.mac.unwrap_or(known.mac), mac_v6: found.mac_v6.unwrap_or(known.mac_v6) };
        self.state.set_identity(&identity);
        self.file.write(&self.state);
        identity
    }

    /// Where the run before has ended, if it is still good at `now`: a lease that has run out may be another
    /// node's by now, and a configuration given anew is not the old one.
    pub(super) fn past(&self, options: &RunOptions, now: u64) -> Option<Past> {
        let text = self.state.config.as_deref()?;
        let given = waiting::given_config(options).ok()?;
        if given.is_some_and(|given| given != text) {
            return None;
        }
        let (config, _) = net_config::parse(text).ok()?;
        let own = self.state.own.as_ref()?.lease()?;
        let good = own.expires.is_none_or(|expires| now < expires);
        good.then(|| Past { config, own, peers: self.state.peers() })
    }

    /// TUN devices that the run before has made.
    pub(super) fn devices(&self) -> &[String] {
        &self.state.devices
    }

    /// Takes over the text of the configuration that holds now.
    pub(super) fn set_config(&mut self, text: String) {
        self.state.config = Some(text);
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
