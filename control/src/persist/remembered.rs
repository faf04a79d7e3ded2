//! What the daemon writes down for its next run, and when.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::Lease;
use model::net_config::{self, NetConfig};

use crate::persist::state_file::{State, StateFile, TestRecord};
use crate::plan::{Identity, Plan};
use crate::settings::Settings;
use store::Owned;
use store::lease::ledger::LeaseSet;

/// At most so often; ten thousand leases are two megabytes.
const PAUSE: Duration = Duration::from_secs(10);

/// The state file, and what is in it.
pub struct Remembered {
    file: StateFile,
    state: State,
    subnet_file: PathBuf,
    written: Option<(Arc<Plan>, Instant)>,
}

/// What a start needs to go on where the run before has ended.
pub struct Past {
    /// The network configuration.
    pub config: NetConfig,
    /// This node's lease.
    pub own: Owned,
    /// The leases of the other nodes.
    pub peers: Vec<Lease>,
}

impl Remembered {
    /// Reads what the run before has left.
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

    /// Where the run before has ended, if it is still good at `now`: a lease that has run out may be another
    /// node's by now, and a configuration given anew is not the old one.
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

    /// The features to do without beside those in `without`, where the self-test was made in this boot already.
    pub fn tested(&self, without: &[String]) -> Option<&[String]> {
        let tested = self.state.tested.as_ref()?;
        (tested.without == without && Some(&tested.boot) == boot().as_ref()).then_some(&tested.off)
    }

    /// Takes over what the self-test has found.
    pub fn set_tested(&mut self, without: &[String], off: Vec<String>) {
        self.state.tested = boot().map(|boot| TestRecord { boot, without: without.to_vec(), off });
    }

    /// TUN devices that the run before has made.
    pub fn devices(&self) -> &[String] {
        &self.state.devices
    }

    /// Takes over the text of the configuration that holds now.
    pub fn set_config(&mut self, text: String) {
        self.state.config = Some(text);
    }

    /// Writes down, before they are made, that there will be firewall rules.
    pub fn promise(&mut self, firewall: bool) {
        self.state.firewall |= firewall;
        self.file.write(self.state.clone());
    }

    /// Writes down what is on the host now.
    pub fn keep(&mut self, plan: &Arc<Plan>, own: &Owned, peers: &LeaseSet) {
        self.state.set_plan(plan, &self.subnet_file);
        // The leases are in the ledger; they need not be held as text as well.
        self.state.leases = Vec::new();
        let mut whole = self.state.clone();
        whole.set_leases(own, peers.iter());
        self.file.write(whole);
        self.written = Some((Arc::clone(plan), Instant::now()));
    }

    /// The same, if the plan has changed and the last time is long enough ago.
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

/// The kernel's name for the boot that is running (proc_sys_kernel(5)).
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
    fn the_past_is_gone_on_with_only_where_it_is_still_good() {
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
            ("a reservation has no end", state(Some(CONFIG), reserved), None, true),
            ("the same given anew", state(Some(CONFIG), good.clone()), text(CONFIG), true),
            ("another given", state(Some(CONFIG), good.clone()), text("{}"), false),
            ("one that is not there", state(Some(CONFIG), good.clone()), file("/nowhere"), false),
            ("no configuration", state(None, good.clone()), None, false),
            ("a broken configuration", state(Some("{"), good), None, false),
            ("run out", state(Some(CONFIG), own("10.244.3.0-24", Some(NOW))), None, false),
            ("no lease", state(Some(CONFIG), own("nonsense", None)), None, false),
            ("nothing", State::default(), None, false),
        ];
        for (what, state, net_config, expected) in cases {
            let settings = Settings { net_config, ..Settings::default() };
            let memory =
                Remembered { state, subnet_file: PathBuf::new(), written: None, file: StateFile::new(None) };
            assert_eq!(memory.past(&settings, NOW).is_some(), expected, "{what}");
        }
    }

    #[test]
    fn a_self_test_holds_for_its_boot_and_its_question() {
        let mut memory = Remembered::open(StateFile::new(None), &Settings::default());
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(memory.tested(&[]), None);
        memory.set_tested(&names(&["tso"]), names(&["tso", "uso"]));
        assert_eq!(memory.tested(&names(&["tso"])), Some(&names(&["tso", "uso"])[..]));
        assert_eq!(memory.tested(&[]), None);
        memory.state.tested.as_mut().expect("a test").boot = "another".into();
        assert_eq!(memory.tested(&names(&["tso"])), None);
    }
}
