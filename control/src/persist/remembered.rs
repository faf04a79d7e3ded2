//! What a daemon records for its next run, and when.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::{Lease, LeaseAttrs};
use model::net_config::NetConfig;

use crate::persist::state_file::{EvictionRecord, State, StateFile, StoreRecord, TestRecord};
use crate::plan::{Identity, Plan};
use crate::settings::Settings;
use crate::underlay::select::Chosen;
use model::subnet_env::{self, Recorded};
use store::lease::node_address;
use store::{Owned, Position, StoreId};

/// Minimum time between two writes: ten thousand leases take two megabytes.
const PAUSE: Duration = Duration::from_secs(10);

/// The wait after the first eviction in a row, doubled by each further one, and the longest wait.
const BACK_OFF: (u64, u64) = (10, 600);
/// Evictions that are further apart are no row: the two daemons have been told apart meanwhile.
const ROW: u64 = 3600;

/// The state file and its content.
pub struct Remembered {
    file: StateFile,
    state: State,
    subnet_file: PathBuf,
    store: StoreId,
    /// Our lease has become another node's in this run.
    disowned: bool,
    written: Option<(Arc<Plan>, Instant)>,
}

/// Everything that a start needs to resume the previous run.
#[derive(Clone)]
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
        let (subnet_file, store) = (settings.subnet_file.clone(), settings.store.id());
        Remembered { file, state, subnet_file, store, disowned: false, written: None }
    }

    /// Returns the MAC addresses of the previous run, if they can be used.
    pub fn identity(&self) -> Option<Identity> {
        self.state.identity()
    }

    /// Returns the addresses that the previous run has published.
    pub fn chosen(&self) -> Chosen {
        let Some(own) = self.state.own() else { return Chosen::default() };
        let ipv4 = Some(own.wished.public_ip).filter(|ip| !ip.is_unspecified());
        Chosen { ipv4, ipv6: own.wished.public_ipv6 }
    }

    /// Records the MAC addresses of this run. To be called before they are published.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.state.set_identity(identity);
        self.file.write(self.state.clone());
    }

    /// Returns what the previous run left, if it is still valid at `now`: an expired lease may belong to
    /// another node by now, and the settings may contain another network configuration or another store.
    /// `there` is the content of the subnet file: if another program, such as stock flannel, has written
    /// other subnets since, that is newer.
    pub fn past(&self, settings: &Settings, there: Option<&Recorded>, now: u64) -> Option<Past> {
        let text = self.state.config.as_deref()?;
        let given = settings.net_config_text().ok()?;
        if given.is_some_and(|given| given != text) {
            return None;
        }
        let (config, _) = settings.store.parse(text).ok()?;
        let own = self.own(now)?;
        self.wrote(there).then(|| Past { config, own, peers: self.state.peers() })
    }

    /// Returns our lease of the previous run, unless it is from another store or has expired at `now`.
    pub fn own(&self, now: u64) -> Option<Owned> {
        self.may_be_of_this_store().then_some(())?;
        self.state.own().filter(|own| own.published.expires.is_none_or(|expires| now < expires))
    }

    /// Returns how far the previous run has read the store in use.
    pub fn position(&self) -> Option<Position> {
        self.of_this_store()?.position()
    }

    fn of_this_store(&self) -> Option<&StoreRecord> {
        self.state.store.as_ref().filter(|store| store.id().may_be(&self.store))
    }

    /// Whether the leases are from the store in use, as far as is known: earlier builds recorded no store.
    fn may_be_of_this_store(&self) -> bool {
        self.state.store.is_none() || self.of_this_store().is_some()
    }

    /// Tells whether the subnets in the subnet file are those that the previous run wrote. A file without any
    /// tells nothing.
    fn wrote(&self, there: Option<&Recorded>) -> bool {
        let Some(there) = there else { return true };
        let ours = self.state.subnet_file.as_ref().map(|file| subnet_env::parse(&file.text));
        let ours = ours.unwrap_or_default();
        let nothing = there.subnets.is_empty() && there.ipv6_subnets.is_empty();
        let same = (&there.networks, &there.subnets) == (&ours.networks, &ours.subnets)
            && (&there.ipv6_networks, &there.ipv6_subnets) == (&ours.ipv6_networks, &ours.ipv6_subnets);
        nothing || same
    }

    /// Records that another daemon has taken our lease with these attributes, since it publishes the same
    /// address. The lease is no longer ours.
    pub fn set_evicted(&mut self, attrs: &LeaseAttrs, now: u64) {
        let address = node_address(attrs);
        let in_a_row = |before: &EvictionRecord| now.abs_diff(before.at) < ROW && is_contested(before, attrs);
        let before = self.state.evicted.filter(in_a_row);
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        self.state.evicted = Some(EvictionRecord { times, at: now, address });
        self.disown();
    }

    /// Records that our lease is another node's by now.
    pub fn disown(&mut self) {
        self.disowned = true;
    }

    /// Returns how long to leave the lease with the address of `attrs` to the daemon that took it. Two that
    /// take it from each other at once would do so forever.
    pub fn back_off(&self, attrs: &LeaseAttrs, now: u64) -> Duration {
        let evicted = self.state.evicted.filter(|evicted| is_contested(evicted, attrs));
        let Some(EvictionRecord { times, at, .. }) = evicted else { return Duration::ZERO };
        let wait = BACK_OFF.0.saturating_mul(1 << times.saturating_sub(1).min(16)).min(BACK_OFF.1);
        // A clock that was stepped back must not make it longer.
        Duration::from_secs(wait.saturating_sub(now.abs_diff(at)))
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

    /// Records the text of the network configuration that the store in use has. Leases of another one are
    /// forgotten.
    pub fn set_config(&mut self, text: String) {
        if !self.may_be_of_this_store() || self.state.config.as_ref() != Some(&text) {
            (self.state.own, self.state.wished, self.state.leases) = (None, None, Vec::new());
            self.state.store = Some(StoreRecord::of(&self.store, None));
        }
        self.state.config = Some(text);
    }

    /// Records that firewall rules will exist, before they are added.
    pub fn announce_firewall(&mut self, firewall: bool) {
        self.state.firewall |= firewall;
        self.file.write(self.state.clone());
    }

    /// Writes the current state to the file.
    pub fn keep<'a>(
        &mut self,
        plan: &Arc<Plan>,
        own: &Owned,
        peers: impl Iterator<Item = &'a Lease>,
        position: Option<Position>,
    ) {
        self.state.set_plan(plan, &self.subnet_file);
        // A run that has read nothing yet knows what the one before knew.
        let position = position.or_else(|| self.position());
        self.state.store = Some(StoreRecord::of(&self.store, position));
        // The ledger holds the leases; this value need not keep them as text.
        self.state.leases = Vec::new();
        let mut whole = self.state.clone();
        if self.disowned {
            whole.own = None;
        } else {
            whole.set_leases(own, peers);
        }
        self.file.write(whole);
        self.written = Some((Arc::clone(plan), Instant::now()));
    }

    /// Returns the file's path, if there is to be one.
    pub fn path(&self) -> Option<&Path> {
        self.file.path()
    }

    /// Writes the current state to the file if the plan has changed and the last write is long enough ago.
    pub fn keep_sometimes<'a>(
        &mut self,
        plan: &Arc<Plan>,
        own: &Owned,
        peers: impl Iterator<Item = &'a Lease>,
        position: Option<Position>,
    ) {
        let due = self
            .written
            .as_ref()
            .is_none_or(|(before, when)| when.elapsed() >= PAUSE && !Arc::ptr_eq(before, plan));
        if due {
            self.keep(plan, own, peers, position);
        }
    }
}

/// Tells whether two daemons have contended for the address of `attrs`, as far as is known.
fn is_contested(evicted: &EvictionRecord, attrs: &LeaseAttrs) -> bool {
    evicted.address.is_none() || evicted.address == node_address(attrs)
}

/// Returns the kernel's identifier of the current boot (proc_sys_kernel(5)).
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::Spec;

    use crate::persist::state_file::{FileRecord, LeaseRecord};
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
            store: Some(StoreRecord::of(&Settings::default().store.id(), None)),
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
            let memory = Remembered { state, ..Remembered::open(StateFile::new(None, None), &settings) };
            assert_eq!(memory.past(&settings, None, NOW).is_some(), expected, "{what}");
        }
    }

    #[test]
    fn leases_are_remembered_for_one_store() {
        let path = |path: &str| Settings { store: Spec::Sqlite(path.into()), ..Settings::default() };
        let a = path("/a/leases.db");
        let mut memory = kept(&a);
        let position = Some(Position { cluster: 7, revision: 9 });
        memory.state.store = Some(StoreRecord::of(&a.store.id(), position));
        for (settings, same) in [(&a, true), (&path("/b/leases.db"), false), (&Settings::default(), false)] {
            let memory = Remembered { state: memory.state.clone(), ..kept(settings) };
            assert_eq!(memory.past(settings, None, NOW).is_some(), same, "{:?}", settings.store);
            assert_eq!(memory.own(NOW).is_some(), same);
            assert_eq!(memory.position(), position.filter(|_| same));
        }
        // An upgrade while the store is down must not stop the node from forwarding.
        memory.state.store = None;
        assert!(memory.past(&a, None, NOW).is_some(), "the state file of an earlier build");
        assert_eq!(memory.position(), None);
        memory.set_config(CONFIG.to_owned());
        assert!(memory.own(NOW).is_some());
    }

    /// What the next start writes before it has a lease must not look like the leases of the new store.
    #[test]
    fn leases_of_another_store_or_configuration_are_forgotten_with_it() {
        let other = Settings { store: Spec::Sqlite("/b/leases.db".into()), ..Settings::default() };
        for (settings, text, known) in [
            (&Settings::default(), CONFIG, true),
            (&Settings::default(), "{}", false),
            (&other, CONFIG, false),
        ] {
            let state = kept(&Settings::default()).state;
            let mut memory = Remembered { state, ..Remembered::open(StateFile::new(None, None), settings) };
            memory.set_config(text.to_owned());
            assert_eq!(memory.own(NOW).is_some(), known, "{text}");
        }
    }

    /// Stock flannel ran in between, moved the lease, and wrote the file.
    #[test]
    fn what_another_program_has_written_to_the_subnet_file_is_newer() {
        const OURS: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\n";
        let settings = Settings::default();
        let memory = kept(&settings);
        for (there, counts) in [
            (Some(OURS.to_owned()), true),
            (None, true),
            (Some(String::new()), true),
            (Some("rubbish".to_owned()), true),
            (Some(OURS.replace("1450", "1400")), true),
            (Some(OURS.replace("10.244.3.1", "10.244.9.1")), false),
            (Some(OURS.replace("10.244.0.0/16", "10.244.0.0/15")), false),
            (Some(format!("{OURS}FLANNEL_IPV6_SUBNET=fd00::1/64\n")), false),
        ] {
            let recorded = there.as_deref().map(subnet_env::parse);
            assert_eq!(memory.past(&settings, recorded.as_ref(), NOW).is_some(), counts, "{there:?}");
        }
    }

    /// A memory of one lease from the store in the settings.
    fn kept(settings: &Settings) -> Remembered {
        let own = LeaseRecord {
            key: "10.244.3.0-24".into(),
            value: r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.into(),
            expires: None,
        };
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\n";
        let state = State {
            config: Some(CONFIG.to_owned()),
            own: Some(own),
            store: Some(StoreRecord::of(&settings.store.id(), None)),
            subnet_file: Some(FileRecord { path: "/run/subnet.env".into(), text: text.to_owned() }),
            ..State::default()
        };
        Remembered { state, ..Remembered::open(StateFile::new(None, None), settings) }
    }

    /// Under a supervisor each of two daemons with one address would take the lease from the other at once.
    #[test]
    fn each_eviction_in_a_row_is_followed_by_a_longer_wait() {
        let mut memory = Remembered::open(StateFile::new(None, None), &Settings::default());
        let ours = published("192.0.2.9", None);
        assert_eq!(memory.back_off(&ours, NOW), Duration::ZERO);
        let mut now = NOW;
        for wait in [10, 20, 40, 80, 160, 320, 600, 600] {
            memory.set_evicted(&ours, now);
            let left = |now| memory.back_off(&ours, now);
            assert_eq!(left(now), Duration::from_secs(wait));
            assert_eq!(left(now - 3), Duration::from_secs(wait - 3), "a clock that was stepped");
            now += wait;
            assert_eq!(left(now), Duration::ZERO);
        }
        memory.set_evicted(&ours, now + ROW);
        assert_eq!(memory.back_off(&ours, now + ROW), Duration::from_secs(10));
    }

    /// An operator has given each daemon its own address.
    #[test]
    fn another_address_than_the_contested_one_waits_for_nobody() {
        let mut memory = Remembered::open(StateFile::new(None, None), &Settings::default());
        let (v4, dual) = (published("192.0.2.9", None), published("192.0.2.9", Some("2001:db8::9")));
        let v6 = |address| published("0.0.0.0", Some(address));
        for (contested, ours, waits) in [
            (&v4, &v4, true),
            (&v4, &dual, true),
            (&v4, &published("192.0.2.10", None), false),
            (&v4, &v6("2001:db8::9"), false),
            (&v6("2001:db8::9"), &v6("2001:db8::9"), true),
            (&v6("2001:db8::9"), &v6("2001:db8::a"), false),
            (&v6("2001:db8::9"), &dual, false),
        ] {
            memory.state.evicted = None;
            (0..3).for_each(|_| memory.set_evicted(contested, NOW));
            assert_eq!(!memory.back_off(ours, NOW).is_zero(), waits, "{contested:?} {ours:?}");
            // A row of evictions is one for each address.
            memory.set_evicted(ours, NOW);
            let wait = if waits { 80 } else { 10 };
            assert_eq!(memory.back_off(ours, NOW), Duration::from_secs(wait), "{contested:?} {ours:?}");
        }
        let text = r#"{"version":1,"evicted":{"times":2,"at":1000000}}"#;
        memory.state = serde_json::from_str(text).expect("a state of an earlier build");
        assert_eq!(memory.back_off(&v4, NOW), Duration::from_secs(20));
    }

    fn published(ipv4: &str, ipv6: Option<&str>) -> LeaseAttrs {
        let attrs = LeaseAttrs::parse(r#"{"PublicIP":"192.0.2.9","PublicIPv6":null}"#).expect("attributes");
        let public_ipv6 = ipv6.map(|text| text.parse().expect("an address"));
        LeaseAttrs { public_ip: ipv4.parse().expect("an address"), public_ipv6, ..attrs }
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
