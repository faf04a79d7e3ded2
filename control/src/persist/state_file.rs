//! The state file: what a daemon created on this host, and what its next run needs to know. Replaced
//! atomically.
//!
//! With the file, a restart keeps its MAC addresses and forwards to the known peers before the store has
//! answered, and `loden cleanup` knows what to remove. The file is on a memory filesystem and has no meaning
//! after a reboot; an unreadable file is treated as a missing one.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use model::lease::{Lease, LeaseAttrs};
use serde::{Deserialize, Serialize};
use store::{Owned, Position, StoreId, regular};
use wire::addr::Mac;

use super::{atomic_file, disk::Disk};
use crate::plan::{Identity, Plan};

/// Maximum size of the file, more than 10,000 leases take.
const LARGEST: u64 = 64 << 20;
/// The version of the format; other versions are not read.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The version of the format.
    pub version: u32,
    /// The daemon's process.
    pub pid: u32,
    /// MAC address on the IPv4 overlay.
    pub mac: Option<String>,
    /// MAC address on the IPv6 overlay.
    pub mac_v6: Option<String>,
    /// TUN devices that the daemon created.
    pub devices: Vec<String>,
    /// Kernel routes through devices of the host. Routes through our own devices are removed with the
    /// devices.
    pub routes: Vec<RouteRecord>,
    /// The subnet file as the daemon wrote it.
    pub subnet_file: Option<FileRecord>,
    /// Whether the daemon added firewall rules.
    pub firewall: bool,
    /// The result of the self-test.
    pub tested: Option<TestRecord>,
    /// The network configuration that the rest belongs to, as stored.
    pub config: Option<String>,
    /// The store that the leases are from.
    pub store: Option<StoreRecord>,
    /// This node's lease as published.
    pub own: Option<LeaseRecord>,
    /// The attributes that the daemon wanted to publish, where they differ from the published ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wished: Option<String>,
    /// How another daemon with our address took our lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evicted: Option<EvictionRecord>,
    /// The other nodes' leases.
    pub leases: Vec<LeaseRecord>,
}

/// A store, and how far it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreRecord {
    /// Kind and path, or kind and prefix.
    pub name: String,
    /// The addresses of a cluster.
    pub endpoints: Vec<String>,
    /// Identifies the cluster.
    pub cluster: u64,
    /// The revision up to which all changes are known; `None` before the first.
    pub revision: Option<u64>,
}

/// How often another daemon with our address took our lease from us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvictionRecord {
    /// The number of times in a row.
    pub times: u32,
    /// The last time, in Unix seconds.
    pub at: u64,
    /// The address that both published; earlier builds did not record it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// The result of a self-test, valid for one boot of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TestRecord {
    /// The kernel's identifier of the boot.
    pub boot: String,
    /// Features that the self-test was told to skip.
    pub without: Vec<String>,
    /// Features to turn off, the skipped ones included.
    pub off: Vec<String>,
}

/// A kernel route in the main table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteRecord {
    /// Destination.
    pub to: String,
    /// Gateway.
    pub via: Option<String>,
    /// Interface.
    pub interface: String,
}

/// A file and its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileRecord {
    /// The file's path.
    pub path: PathBuf,
    /// The text that the daemon wrote.
    pub text: String,
}

/// A lease, with key and value as in etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseRecord {
    /// The last part of the key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Expiry in Unix seconds; `None` for a reservation.
    pub expires: Option<u64>,
}

/// The state file of one daemon.
#[derive(Debug)]
pub struct StateFile {
    /// `None` if the file cannot be written.
    path: Option<PathBuf>,
    disk: Option<Disk>,
    /// Digest of the written text, which takes two megabytes for ten thousand leases.
    written: Arc<Mutex<Option<u64>>>,
    complained: Arc<AtomicBool>,
}

impl State {
    /// Returns the MAC addresses of the previous run, if both are valid.
    pub fn identity(&self) -> Option<Identity> {
        let mac = |text: &Option<String>| -> Option<Mac> {
            let mac: Mac = text.as_deref()?.parse().ok()?;
            (!mac.is_multicast() && mac.octets() != [0; 6]).then_some(mac)
        };
        Some(Identity { mac: mac(&self.mac)?, mac_v6: mac(&self.mac_v6)? })
    }

    /// Records the MAC addresses.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.mac = Some(identity.mac.to_string());
        self.mac_v6 = Some(identity.mac_v6.to_string());
    }

    /// Records what the plan creates on the host.
    pub fn set_plan(&mut self, plan: &Plan, subnet_file: &Path) {
        self.devices = plan.tunnels.iter().map(|tunnel| tunnel.link.device.clone()).collect();
        let direct = plan.direct.iter().flat_map(|direct| {
            direct.routes.iter().map(|route| RouteRecord {
                to: route.to.to_string(),
                via: route.via.map(|via| via.to_string()),
                interface: direct.interface.clone(),
            })
        });
        self.routes = direct.collect();
        let text = model::subnet_env::render(&plan.subnet_env);
        let path = std::path::absolute(subnet_file).unwrap_or_else(|_| subnet_file.to_owned());
        self.subnet_file = Some(FileRecord { path, text });
    }

    /// Records the leases.
    pub fn set_leases<'a>(&mut self, own: &Owned, peers: impl Iterator<Item = &'a Lease>) {
        self.own = Some(LeaseRecord::of(&own.published));
        let differs = own.wished != own.published.attrs;
        self.wished = differs.then(|| own.wished.to_json());
        self.leases = peers.map(LeaseRecord::of).collect();
    }

    /// Returns this node's lease, if it is valid. Earlier versions did not record `wished`.
    pub fn own(&self) -> Option<Owned> {
        let published = self.own.as_ref()?.lease()?;
        match &self.wished {
            Some(wished) => Some(Owned { published, wished: LeaseAttrs::parse(wished).ok()? }),
            None => Some(Owned::as_wished(published)),
        }
    }

    /// Returns the other nodes' leases, without invalid ones.
    pub fn peers(&self) -> Vec<Lease> {
        self.leases.iter().filter_map(LeaseRecord::lease).collect()
    }
}

impl StoreRecord {
    /// Records a store that was read up to `position`.
    pub fn of(store: &StoreId, position: Option<Position>) -> StoreRecord {
        StoreRecord {
            name: store.name.clone(),
            endpoints: store.endpoints.clone(),
            cluster: position.map_or(0, |position| position.cluster),
            revision: position.map(|position| position.revision),
        }
    }

    /// Returns what identifies the store.
    pub fn id(&self) -> StoreId {
        StoreId { name: self.name.clone(), endpoints: self.endpoints.clone() }
    }

    /// Returns how far it was read.
    pub fn position(&self) -> Option<Position> {
        self.revision.map(|revision| Position { cluster: self.cluster, revision })
    }
}

impl LeaseRecord {
    fn of(lease: &Lease) -> LeaseRecord {
        LeaseRecord { key: lease.key.to_string(), value: lease.attrs.to_json(), expires: lease.expires }
    }

    /// Returns the lease, if it is valid.
    pub fn lease(&self) -> Option<Lease> {
        let (key, attrs) = (self.key.parse().ok()?, LeaseAttrs::parse(&self.value).ok()?);
        Some(Lease { key, attrs, expires: self.expires })
    }
}

impl StateFile {
    /// Returns the file at `path`, which `disk` writes beside the caller; without a path, nothing is kept.
    pub fn new(path: Option<PathBuf>, disk: Option<Disk>) -> StateFile {
        StateFile { path, disk, written: Arc::default(), complained: Arc::default() }
    }

    /// Returns the path; `None` if nothing is kept.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Reads the state of the previous run. An unreadable file gives an empty state and a warning.
    pub fn read(&self) -> State {
        let Some(path) = &self.path else { return State::default() };
        match read(path) {
            Ok(state) => state.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "state file of the previous run ignored");
                State::default()
            }
        }
    }

    /// Replaces the file, unless it was written with this content and is still there. Only the first failure
    /// is logged: the daemon works without.
    pub fn write(&self, state: State) {
        let Some(path) = self.path.clone() else { return };
        let (written, complained) = (Arc::clone(&self.written), Arc::clone(&self.complained));
        let work = move || {
            // Only this work takes the lock, which it may hold for as long as a filesystem hangs.
            let mut digest = written.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = write(&path, state, &mut digest) {
                complain(&complained, &path, &error);
            }
        };
        match &self.disk {
            None => work(),
            Some(disk) => {
                if let (Err(error), Some(path)) = (disk.post(work), &self.path) {
                    complain(&self.complained, path, &error);
                }
            }
        }
    }
}

fn write(path: &Path, state: State, written: &mut Option<u64>) -> io::Result<()> {
    let text = serde_json::to_string(&State { version: VERSION, pid: std::process::id(), ..state })?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let digest = Some(hasher.finish());
    if digest != *written || !path.exists() {
        replace(path, &text)?;
        *written = digest;
    }
    Ok(())
}

fn complain(complained: &AtomicBool, path: &Path, error: &io::Error) {
    if !complained.swap(true, Ordering::Relaxed) {
        let path = path.display();
        tracing::warn!(%path, %error, "cannot write the state file; a restart will start from the store");
    }
}

/// Reads the state at `path`; `None` if there is no file.
pub fn read(path: &Path) -> io::Result<Option<State>> {
    let text = match regular::read_to_string(path, LARGEST) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let state: State = serde_json::from_str(&text)?;
    if state.version != VERSION {
        return Err(io::Error::other(format!(
            "format version {} is not supported; expected {VERSION}",
            state.version
        )));
    }
    Ok(Some(state))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // Whoever has removed it has not stopped the daemon.
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let mut file = atomic_file::temporary(path)?;
    file.as_file_mut().write_all(text.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_file_is_private_and_read_back_as_written() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("one.json");
        let file = StateFile::new(Some(path.clone()), None);
        assert_eq!(file.read(), State::default());
        let state = sample();
        file.write(state.clone());
        let back = StateFile::new(Some(path.clone()), None).read();
        assert_eq!(back, State { version: VERSION, pid: std::process::id(), ..state.clone() });
        assert_eq!(back.identity(), Some(identity()));
        assert_eq!(back.peers().len(), 1);
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn invalid_files_are_ignored() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("one.json");
        let file = StateFile::new(Some(path.clone()), None);
        for text in
            ["", "{", "null", "[]", "{}", r#"{"version":2}"#, r#"{"version":1,"devices":7}"#, "\u{0}\u{1}"]
        {
            fs::write(&path, text).expect("write");
            assert_eq!(file.read(), State::default(), "{text:?}");
        }
        fs::write(&path, [0xff, 0xfe]).expect("write");
        assert_eq!(file.read(), State::default());
        fs::remove_file(&path).expect("remove");
        fs::create_dir(&path).expect("a directory in its place");
        assert_eq!(file.read(), State::default());
        // A write that fails is not an error either.
        StateFile::new(Some(path), None).write(sample());
        StateFile::new(None, None).write(sample());
    }

    #[test]
    fn our_lease_is_read_back_with_what_was_wished() {
        let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;
        let attrs = LeaseAttrs::parse(value).expect("attributes");
        let key = "10.244.3.0-24".parse().expect("a key");
        let plain = Owned::as_wished(Lease { key, attrs: attrs.clone(), expires: Some(9) });
        let mut overwritten = plain.clone();
        overwritten.published.attrs.public_ip = [198, 51, 100, 1].into();
        for own in [&plain, &overwritten, &plain] {
            let mut state = State::default();
            state.set_leases(own, std::iter::empty());
            let text = serde_json::to_string(&state).expect("JSON");
            // Where the two are the same, the file is the one of versions that knew no other wish.
            assert_eq!(text.contains("wished"), own != &plain, "{text}");
            let back: State = serde_json::from_str(&text).expect("a state");
            assert_eq!(back.own().as_ref(), Some(own));
        }
        let mut broken = State::default();
        broken.set_leases(&plain, std::iter::empty());
        broken.wished = Some("{".into());
        assert_eq!(broken.own(), None);
    }

    #[test]
    fn invalid_mac_addresses_are_not_reused() {
        for bad in ["", "no", "01:00:5e:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"] {
            let state = State { mac: Some(bad.into()), ..sample() };
            assert_eq!(state.identity(), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            try_bytes(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0usize..400, byte: u8, cut in 0usize..400) {
            let state = State { version: VERSION, ..sample() };
            let mut text = serde_json::to_vec(&state).expect("JSON");
            let at = at % text.len();
            text[at] = byte;
            text.truncate(text.len() - cut % text.len());
            try_bytes(&text);
        }
    }

    fn try_bytes(bytes: &[u8]) {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("one.json");
        fs::write(&path, bytes).expect("write");
        let state = StateFile::new(Some(path), None).read();
        let _ = (state.identity(), state.peers());
    }

    fn identity() -> Identity {
        Identity::from_random([2; 12])
    }

    fn sample() -> State {
        let mut state = State { devices: vec!["flannel.1".into()], ..State::default() };
        state.set_identity(&identity());
        let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.to_owned();
        let good = LeaseRecord { key: "10.244.3.0-24".into(), value, expires: Some(9) };
        state.leases = vec![good, LeaseRecord { key: "nonsense".into(), ..LeaseRecord::default() }];
        state
    }
}
