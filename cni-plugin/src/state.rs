//! Saved state for DEL: the delegate's configuration, in one file for each interface of each container.
//!
//! flannel's plugin names the file after the container only. This plugin does the same for `eth0`, the usual
//! interface, so that each of the two can delete what the other created; for other interfaces, `@` and the
//! interface name follow.
//!
//! Next to a state, `.NAME.netns` records the interface's network namespace, because the runtime names none
//! to GC.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::Value;

use crate::netns::Netns;
use crate::reply::{Code, Failure};
use crate::request::is_container;

/// The interface whose file is named as flannel names it.
const FIRST: &str = "eth0";
/// Time limit for waiting until another plugin finishes with the same interface. A delegate takes about 0.1
/// s.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Polling interval for a lock.
const POLL: Duration = Duration::from_millis(20);

/// The directory of saved states.
#[derive(Clone, Debug)]
pub struct States {
    directory: PathBuf,
}

/// One interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container.
    pub container: String,
    /// The interface in the container.
    pub interface: String,
}

/// The content of a state file.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The delegate's configuration.
    Config(Value),
    /// The remains of a write that a crash cut short: an empty file, the beginning of a configuration, or
    /// zeros.
    Broken,
    /// No file, or another program's.
    Nothing,
}

/// A lock on one interface, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked: a plugin that has opened the file sees that its name is gone, and
        // retries.
        let _ = fs::remove_file(&self.path);
    }
}

impl Attachment {
    /// Returns true if the state file has flannel's name.
    pub fn is_first(&self) -> bool {
        self.interface == FIRST
    }
}

impl States {
    /// Names the directory, which may not exist yet.
    pub fn in_directory(directory: &Path) -> States {
        States { directory: directory.to_owned() }
    }

    /// Locks the interface, waiting until no other plugin works on it.
    pub fn lock(&self, attachment: &Attachment) -> Result<Lock, Failure> {
        self.wait_for_lock(attachment).map_err(|(_, failure)| failure)
    }

    /// Locks the interface for its deletion. Returns `None` if the directory is not writable: the deletion
    /// has to proceed, and no plugin can create an interface meanwhile.
    pub fn lock_for_deletion(&self, attachment: &Attachment) -> Result<Option<Lock>, Failure> {
        use ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match self.wait_for_lock(attachment) {
            Ok(lock) => Ok(Some(lock)),
            Err((ReadOnlyFilesystem | StorageFull | QuotaExceeded, _)) => Ok(None),
            Err((_, failure)) => Err(failure),
        }
    }

    fn wait_for_lock(&self, attachment: &Attachment) -> Result<Lock, (ErrorKind, Failure)> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        created.map_err(|error| (error.kind(), failed("create the directory", &self.directory, &error)))?;
        let path = self.sibling(attachment, "lock");
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match try_lock(&path) {
                Ok(Some(file)) => {
                    // Inherited by the delegate. If we are killed, the delegate holds the lock until it
                    // exits, so that its work is not undone before it is finished.
                    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))
                        .map_err(|error| (ErrorKind::Other, failed("pass on", &path, &error.into())))?;
                    return Ok(Lock { path, _file: file });
                }
                Ok(None) if Instant::now() >= deadline => {
                    let message = format!(
                        "another plugin is still working on interface {} of this container",
                        attachment.interface
                    );
                    let failure = Failure::new(Code::TryAgain, message, attachment.container.as_str());
                    return Err((ErrorKind::WouldBlock, failure));
                }
                Ok(None) => thread::sleep(POLL),
                Err(error) => return Err((error.kind(), failed("lock", &path, &error))),
            }
        }
    }

    /// Reads the state of an interface. Falls back to the file named after the container only, in which
    /// flannel's plugin may have saved this interface, if that file is of the same network.
    pub fn read(&self, attachment: &Attachment, network: &str) -> Result<Found, Failure> {
        match self.read_own(attachment)? {
            Found::Nothing if !attachment.is_first() => {
                let first = Attachment { interface: FIRST.to_owned(), ..attachment.clone() };
                match self.read_own(&first)? {
                    Found::Config(config) if config["name"] == network => Ok(Found::Config(config)),
                    _ => Ok(Found::Nothing),
                }
            }
            found => Ok(found),
        }
    }

    /// Reads the state in the file named after this interface.
    pub fn read_own(&self, attachment: &Attachment) -> Result<Found, Failure> {
        let path = self.path(attachment);
        match fs::read(&path) {
            Ok(bytes) => Ok(match serde_json::from_slice(&bytes) {
                Ok(config @ Value::Object(_)) => Found::Config(config),
                _ if bytes.is_empty() || bytes.starts_with(b"{") || bytes.starts_with(b"\0") => Found::Broken,
                _ => Found::Nothing,
            }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(Found::Nothing)
            }
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Reads the network namespace of the interface, if it was recorded.
    pub fn netns(&self, attachment: &Attachment) -> Option<Netns> {
        Netns::parse(&fs::read_to_string(self.sibling(attachment, "netns")).ok()?)
    }

    /// Writes the state atomically and durably.
    pub fn write(
        &self,
        attachment: &Attachment,
        config: &Value,
        netns: Option<&Netns>,
    ) -> Result<(), Failure> {
        let (path, namespace) = (self.path(attachment), self.sibling(attachment, "netns"));
        let temporary = self.sibling(attachment, "new");
        let open =
            |path: &Path| OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let write = || {
            // Needs no rename: a truncated record does not parse.
            match netns {
                Some(netns) => open(&namespace)?.write_all(netns.to_string().as_bytes())?,
                None => remove_file(&namespace)?,
            }
            let mut file = open(&temporary)?;
            file.write_all(config.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| {
            let _ = (fs::remove_file(&temporary), fs::remove_file(&namespace));
            failed("write", &path, &error)
        })
    }

    /// Removes the state, if there is one.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), Failure> {
        // The state first: a namespace record without a state counts for nothing.
        for path in [self.path(attachment), self.sibling(attachment, "netns")] {
            remove_file(&path).map_err(|error| failed("remove", &path, &error))?;
        }
        Ok(())
    }

    /// Lists all interfaces with a saved state, sorted. Files with other names are not ours.
    pub fn list(&self) -> Result<Vec<Attachment>, Failure> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.directory, &error)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut all: Vec<Attachment> = names.filter_map(|name| attachment(&name)).collect();
        all.sort();
        Ok(all)
    }

    /// Removes what a killed plugin left besides states: temporary files, locks that are not held, and
    /// namespace records without a state.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let of = |end| name.strip_prefix('.')?.strip_suffix(end).and_then(attachment);
            let Some(attachment) = of(".new").or_else(|| of(".lock")).or_else(|| of(".netns")) else {
                continue;
            };
            let has_state = || self.path(&attachment).exists();
            if name.ends_with(".netns") && has_state() {
                continue;
            }
            // The holder of the lock may be writing these files.
            let path = self.sibling(&attachment, "lock");
            if let Ok(Some(file)) = try_lock(&path) {
                let _ = fs::remove_file(self.sibling(&attachment, "new"));
                if !has_state() {
                    let _ = fs::remove_file(self.sibling(&attachment, "netns"));
                }
                drop(Lock { path, _file: file });
            }
        }
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.directory.join(name(attachment))
    }

    fn sibling(&self, attachment: &Attachment, end: &str) -> PathBuf {
        self.directory.join(format!(".{}.{end}", name(attachment)))
    }
}

/// Opens and locks the lock file; `None` if another process holds the lock.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // The holder may have removed the file between our open and our lock.
    let same =
        fs::metadata(path).is_ok_and(|named| file.metadata().is_ok_and(|ours| named.ino() == ours.ino()));
    Ok(same.then_some(file))
}

fn name(attachment: &Attachment) -> String {
    match attachment.interface.as_str() {
        FIRST => attachment.container.clone(),
        other => format!("{}@{other}", attachment.container),
    }
}

/// Parses a name made by [`name`].
fn attachment(name: &str) -> Option<Attachment> {
    let (container, interface) = name.split_once('@').unwrap_or((name, FIRST));
    let attachment = Attachment { container: container.to_owned(), interface: interface.to_owned() };
    (is_container(container) && !interface.is_empty()).then_some(attachment)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    let next = match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            "; make it writable, or set \"dataDir\" in the configuration to another directory"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some disk space",
        _ => "",
    };
    Failure::new(Code::Io, format!("cannot {what} {}", path.display()), format!("{error}{next}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn of(container: &str, interface: &str) -> Attachment {
        Attachment { container: container.into(), interface: interface.into() }
    }

    fn states() -> (tempfile::TempDir, States) {
        let directory = tempfile::tempdir().expect("a directory");
        let states = States::in_directory(&directory.path().join("var/flannel"));
        (directory, states)
    }

    #[test]
    fn each_interface_has_its_own_and_the_first_flannels_name() {
        let (_directory, states) = states();
        let (first, second) = (of("abc", "eth0"), of("abc", "net1"));
        for (attachment, config) in [(&first, json!({"a": 1})), (&second, json!({"b": 2}))] {
            assert_eq!(states.read(attachment, "cbr0"), Ok(Found::Nothing));
            let _lock = states.lock(attachment).expect("a lock");
            states.write(attachment, &config, None).expect("written");
            assert_eq!(states.read(attachment, "cbr0"), Ok(Found::Config(config)));
        }
        assert_eq!(states.list(), Ok(vec![first.clone(), second.clone()]));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&states.directory), mode(&states.directory.join("abc"))), (0o700, 0o600));
        assert_eq!(
            fs::read_dir(&states.directory).expect("there").count(),
            2,
            "no lock or temporary file is left"
        );
        for attachment in [&second, &first, &first] {
            states.remove(attachment).expect("removed, or not there");
        }
        assert_eq!(states.list(), Ok(vec![]));
    }

    #[test]
    fn another_interfaces_state_counts_only_for_its_own_network() {
        let (_directory, states) = states();
        let (first, second) = (of("abc", "eth0"), of("abc", "net1"));
        let config = json!({"name": "cbr0"});
        drop(states.lock(&first).expect("the directory"));
        states.write(&first, &config, None).expect("written");
        assert_eq!(states.read(&second, "cbr0"), Ok(Found::Config(config)), "may be flannel's state of net1");
        assert_eq!(states.read(&second, "another"), Ok(Found::Nothing));
        assert_eq!(states.read_own(&second), Ok(Found::Nothing));
        fs::write(states.path(&first), "{").expect("written");
        assert_eq!(states.read(&second, "cbr0"), Ok(Found::Nothing), "of an unknown network");
    }

    #[test]
    fn a_namespace_is_saved_and_removed_with_the_state() {
        let (_directory, states) = states();
        let mine = of("abc", "net1");
        let netns = Netns::at("/proc/self/ns/net").expect("there");
        drop(states.lock(&mine).expect("the directory"));
        states.write(&mine, &json!({}), Some(&netns)).expect("written");
        assert_eq!((states.netns(&mine), states.list()), (Some(netns.clone()), Ok(vec![mine.clone()])));
        states.write(&mine, &json!({}), None).expect("written");
        assert_eq!(states.netns(&mine), None, "the record of the older state");
        states.write(&mine, &json!({}), Some(&netns)).expect("written");
        states.remove(&mine).expect("removed");
        assert_eq!(fs::read_dir(&states.directory).expect("there").count(), 0);
    }

    #[test]
    fn a_broken_state_is_told_from_somebody_elses_file() {
        let (_directory, states) = states();
        fs::create_dir_all(&states.directory).expect("made");
        for (text, found) in [
            ("", Found::Broken),
            ("{\"name\":", Found::Broken),
            ("\0\0\0\0", Found::Broken),
            ("[]", Found::Nothing),
            ("Read me", Found::Nothing),
            ("\u{fffd}", Found::Nothing),
        ] {
            fs::write(states.directory.join("abc"), text).expect("written");
            assert_eq!(states.read_own(&of("abc", "eth0")), Ok(found), "{text}");
        }
        assert_eq!(states.read_own(&of("abd", "eth0")), Ok(Found::Nothing));
    }

    #[test]
    fn plugins_take_turns_on_an_interface() {
        let (_directory, states) = states();
        let mine = of("abc", "eth0");
        let lock = states.lock(&mine).expect("a lock");
        let other = states.lock(&of("abc", "net1")).expect("another interface");
        let began = Instant::now();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| states.lock(&mine).map(|_| began.elapsed()));
            thread::sleep(Duration::from_millis(200));
            drop((lock, other));
            let waited = waiting.join().expect("no panic").expect("its turn");
            assert!(waited >= Duration::from_millis(200), "{waited:?}");
        });
        assert_eq!(fs::read_dir(&states.directory).expect("there").count(), 0);
    }

    #[test]
    fn a_sweep_takes_what_a_killed_plugin_has_left_and_nothing_else() {
        let (_directory, states) = states();
        fs::create_dir_all(&states.directory).expect("made");
        let held = states.lock(&of("busy", "eth0")).expect("a lock");
        for name in [
            ".abc.new",
            ".abc.lock",
            ".abc.netns",
            ".busy.new",
            ".busy.netns",
            ".dead.netns",
            ".other",
            "README",
            "abc",
        ] {
            fs::write(states.directory.join(name), "x").expect("written");
        }
        states.sweep();
        let mut left: Vec<String> = fs::read_dir(&states.directory)
            .expect("there")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        left.sort();
        assert_eq!(left, [".abc.netns", ".busy.lock", ".busy.netns", ".busy.new", ".other", "README", "abc"]);
        drop(held);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let states = States::in_directory(Path::new("/proc/nowhere"));
        let failure = states.lock(&of("abc", "eth0")).expect_err("no directory");
        assert_eq!(failure.code, Code::Io as u64);
        assert!(failure.message.contains("/proc/nowhere"), "{failure:?}");
        assert_eq!(states.read_own(&of("abc", "eth0")), Ok(Found::Nothing));
    }
}
