//! What a daemon records for its next run, and when.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::Lease;
use model::net_config::{self, NetConfig};

use crate::persist::state_file::{State, StateFile, TestRecord};
use crate::plan::{Identity, Plan};
use crate::settings::Settings;
use store::Owned;
use store::lease::ledger::LeaseSet;

/// Minimum time between two writes: ten thousand leases take two megabytes.
const PAUSE: Duration = Duration::from_secs(10);

/// The state file and its content.
pub struct Remembered {
    file: StateFile,
    state: State,
    subnet_file: PathBuf,
    written: Option<(Arc<Plan>, Instant)>,
}

/// Everything that a start needs to resume the previous run.
pub struct Past {
    /// The network configuration.
    pub config: NetConfig,
    /// This node's lease.
    pub own: Owned,
    /// The leases of the other nodes.
    pub peers: Vec<Lease>,
}

impl Remembered {
    /// Reads the state of the previous run.
    pub fn open(file: StateFile, settings: &Settings) -> Remembered {
        let state = file.read();
        Remembered { file, state, subnet_file: settings.subnet_file.clone(), written: None }
    }

    /// Returns the MAC addresses of the previous run, if they can be used.
    pub fn identity(&self) -> Option<Identity> {
        self.state.identity()
    }

    /// Records the MAC addresses of this run. To be called before they are published.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.state.set_identity(identity);
        self.file.write(self.state.clone());
    }

    /// Returns what the previous run left, if it is still valid at `now`: an expired lease may belong to
    /// another node by now, and the settings may contain another network configuration.
    pub fn past(&self, settings: &Settings, now: u64) -> Option<Past> {
        let text = self.state.config.as_deref()?;
        let given = settings.net_config_text().ok()?;
        if given.is_some_and(|given| given != text) {
            return None;
        }
        let (config, _) = net_config::parse(text).ok()?;
        let own = self.state.own()?;
        let good = own.published.expires.is_none_or(|expires| now < expires);
        good.then(|| Past { config, own, peers: self.state.peers() })
    }

    /// Returns the features that the self-test turned off, `without` among them, if it has run since the last
    /// boot.
    pub fn tested(&self, without: &[String]) -> Option<&[String]> {
        let tested = self.state.tested.as_ref()?;
        (tested.without == without && Some(&tested.boot) == boot().as_ref()).then_some(&tested.off)
    }

    /// Records the result of the self-test.
    pub fn set_tested(&mut self, without: &[String], off: Vec<String>) {
        self.state.tested = boot().map(|boot| TestRecord { boot, without: without.to_vec(), off });
    }

    /// Returns the TUN devices that the previous run created.
    pub fn devices(&self) -> &[String] {
        &self.state.devices
    }

    /// Records the text of the current network configuration.
    pub fn set_config(&mut self, text: String) {
        self.state.config = Some(text);
    }

    /// Records that firewall rules will exist, before they are added.
    pub fn announce_firewall(&mut self, firewall: bool) {
        self.state.firewall |= firewall;
        self.file.write(self.state.clone());
    }

    /// Writes the current state to the file.
    pub fn keep(&mut self, plan: &Arc<Plan>, own: &Owned, peers: &LeaseSet) {
        self.state.set_plan(plan, &self.subnet_file);
        // The ledger holds the leases; this value need not keep them as text.
        self.state.leases = Vec::new();
        let mut whole = self.state.clone();
        whole.set_leases(own, peers.iter());
        self.file.write(whole);
        self.written = Some((Arc::clone(plan), Instant::now()));
    }

    /// Returns the file's path, if there is to be one.
    pub fn path(&self) -> Option<&Path> {
        self.file.path()
    }

    /// Writes the current state to the file if the plan has changed and the last write is long enough ago.
    pub fn keep_sometimes(&mut self, plan: &Arc<Plan>, own: &Owned, peers: &LeaseSet) {
        let due = self
            .written
            .as_ref()
            .is_none_or(|(before, when)| when.elapsed() >= PAUSE && !Arc::ptr_eq(before, plan));
        if due {
            self.keep(plan, own, peers);
        }
    }
}

/// Returns the kernel's identifier of the current boot (proc_sys_kernel(5)).
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::state_file::LeaseRecord;
    use crate::settings::NetConfigSource;

    const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    const NOW: u64 = 1_000_000;

    #[test]
    fn the_previous_run_is_resumed_only_while_it_is_valid() {
        let own = |key: &str, expires| LeaseRecord {
            key: key.into(),
            value: r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.into(),
            expires,
        };
        let state = |config: Option<&str>, own| State {
            version: 1,
            config: config.map(str::to_owned),
            own: Some(own),
            ..State::default()
        };
        let good = own("10.244.3.0-24", Some(NOW + 1));
        let reserved = own("10.244.3.0-24", None);
        let text = |text: &str| Some(NetConfigSource::Text(text.to_owned()));
        let file = |path: &str| Some(NetConfigSource::File(path.into()));
        let cases = [
            ("all is well", state(Some(CONFIG), good.clone()), None, true),
            ("a reservation does not expire", state(Some(CONFIG), reserved), None, true),
            ("the same given again", state(Some(CONFIG), good.clone()), text(CONFIG), true),
            ("another given", state(Some(CONFIG), good.clone()), text("{}"), false),
            ("one that is not there", state(Some(CONFIG), good.clone()), file("/nowhere"), false),
            ("no configuration", state(None, good.clone()), None, false),
            ("a broken configuration", state(Some("{"), good), None, false),
            ("expired", state(Some(CONFIG), own("10.244.3.0-24", Some(NOW))), None, false),
            ("no lease", state(Some(CONFIG), own("nonsense", None)), None, false),
            ("nothing", State::default(), None, false),
        ];
        for (what, state, net_config, expected) in cases {
            let settings = Settings { net_config, ..Settings::default() };
            let memory = Remembered {
                state,
                subnet_file: PathBuf::new(),
                written: None,
                file: StateFile::new(None, None),
            };
            assert_eq!(memory.past(&settings, NOW).is_some(), expected, "{what}");
        }
    }

    #[test]
    fn a_self_test_is_valid_for_one_boot_and_one_set_of_features() {
        let mut memory = Remembered::open(StateFile::new(None, None), &Settings::default());
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(memory.tested(&[]), None);
        memory.set_tested(&names(&["tso"]), names(&["tso", "uso"]));
        assert_eq!(memory.tested(&names(&["tso"])), Some(&names(&["tso", "uso"])[..]));
        assert_eq!(memory.tested(&[]), None);
        memory.state.tested.as_mut().expect("a test").boot = "another".into();
        assert_eq!(memory.tested(&names(&["tso"])), None);
    }
}
