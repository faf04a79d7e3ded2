//! Saved state for DEL: the delegate's configuration, in one file for each interface of each container.
//!
//! flannel's plugin names the file after the container only. This plugin does the same for `eth0`, the usual
//! interface, so that each of the two can delete what the other created; for other interfaces, `@` and the
//! interface name follow. Beside a state are hidden files of the same name:
//!
//! | end | content |
//! |---|---|
//! | `.netns` | the interface's network namespace, because the runtime names none to GC |
//! | `.lock` | the processes that work on the interface |
//! | `.new` | a state that is being written |
//! | `.failed` | nothing; its time is that of a GC that failed to delete the interface, and to reach others |
//! | `.refused` | other networks that were refused the interface, whose DEL must not delete it |
//!
//! A name that could become too long for NAME_MAX is split: the files of such a container, except for
//! flannel's, are in a directory `@` with the first part of its ID, and their names begin with `+` and the
//! rest.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::files::{self, MAX_CONFIGURATION, ReadError};
use crate::lock::{self, Lock, Use};
use crate::netns::Netns;
use crate::reply::{Code, Failure};
use crate::request::is_container;

/// The interface whose file is named as flannel names it.
const FIRST: &str = "eth0";
/// Maximum length of a container ID whose files' names are not split.
const MAX_UNSPLIT: usize = 200;
/// Maximum length of a small file.
const MAX_TEXT: u64 = 1 << 16;
/// Time limit for waiting until another plugin finishes with the same interface. A delegate takes about 0.1
/// s.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the children of a delegate that has ended, if its plugin has ended too. They need some tens
/// of milliseconds; a daemon that the delegate started never ends.
const CHILDREN_FINISH: Duration = Duration::from_secs(2);
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
    /// The delegate's configuration, which has a name and a type.
    Config(Value),
    /// The remains of a write that a crash cut short: an empty file, the beginning of a configuration, or
    /// zeros; or a configuration that names no plugin or no network.
    Broken,
    /// No file, or another program's.
    Nothing,
}

impl Attachment {
    /// Returns true if the state file has flannel's name.
    pub fn is_first(&self) -> bool {
        self.interface == FIRST
    }

    /// Returns the directory of the state, below that of all, and the name of the file.
    fn state_place(&self) -> (Option<String>, String) {
        if self.is_first() { (None, self.container.clone()) } else { self.hidden_place() }
    }

    /// Returns the directory of the hidden files, and the name without its dot and end.
    fn hidden_place(&self) -> (Option<String>, String) {
        let (directory, container) = match self.container.split_at_checked(MAX_UNSPLIT) {
            Some((first, rest)) if !rest.is_empty() => (Some(format!("@{first}")), format!("+{rest}")),
            _ => (None, self.container.clone()),
        };
        match self.interface.as_str() {
            FIRST => (directory, container),
            other => (directory, format!("{container}@{other}")),
        }
    }

    /// Parses what `place` made, one of the two functions above.
    fn parse(
        place: impl Fn(&Attachment) -> (Option<String>, String),
        directory: Option<&str>,
        name: &str,
    ) -> Option<Attachment> {
        let (container, interface) = name.split_once('@').unwrap_or((name, FIRST));
        let container = match directory {
            Some(directory) => format!("{}{}", directory.strip_prefix('@')?, container.strip_prefix('+')?),
            None => container.to_owned(),
        };
        let attachment = Attachment { container, interface: interface.to_owned() };
        let is_good = is_container(&attachment.container) && !interface.is_empty();
        // Otherwise another name would be read as this attachment's.
        let is_made = || place(&attachment) == (directory.map(str::to_owned), name.to_owned());
        (is_good && is_made()).then_some(attachment)
    }
}

impl States {
    /// Names the directory, which may not exist yet.
    pub fn in_directory(directory: &Path) -> States {
        States { directory: directory.to_owned() }
    }

    /// Locks the interface, waiting until no other plugin works on it, but no longer than `limit`.
    pub fn lock(&self, attachment: &Attachment, limit: Duration) -> Result<Lock, Failure> {
        self.wait_for_lock(attachment, limit).map_err(|(_, failure)| failure)
    }

    /// Locks the interface for its deletion. Returns `None` if the directory is not writable: the deletion
    /// has to proceed, and no plugin can create an interface meanwhile.
    pub fn lock_for_deletion(
        &self,
        attachment: &Attachment,
        limit: Duration,
    ) -> Result<Option<Lock>, Failure> {
        use ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match self.wait_for_lock(attachment, limit) {
            Ok(lock) => Ok(Some(lock)),
            Err((ReadOnlyFilesystem | StorageFull | QuotaExceeded, _)) => Ok(None),
            Err((_, failure)) => Err(failure),
        }
    }

    fn wait_for_lock(&self, attachment: &Attachment, limit: Duration) -> Result<Lock, (ErrorKind, Failure)> {
        let path = self.sibling(attachment, "lock");
        let directory = path.parent().unwrap_or(&self.directory);
        let now = Instant::now();
        let deadline = now + limit.min(LOCK_TIMEOUT);
        let mut children_since = None;
        loop {
            let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            created.map_err(|error| (error.kind(), failed("create the directory", directory, &error)))?;
            match Lock::acquire(&path) {
                Ok(Some(lock)) => {
                    let passed = lock.pass_on();
                    passed.map_err(|error| (error.kind(), failed("pass on", &path, &error)))?;
                    return Ok(lock);
                }
                Ok(None) => {}
                // A plugin that has finished with this container has just removed its directory.
                Err(error) if error.is_absence() => {}
                // The name is ours, and nobody can lock what this is.
                Err(ReadError::NotRegular) if fs::remove_file(&path).is_ok() => {}
                Err(error) => return Err((error.kind(), unusual("lock", &path, &error))),
            }
            let is_over = match lock::still_used(&path) {
                Use::Full => false,
                Use::Children => children_since.get_or_insert_with(Instant::now).elapsed() >= CHILDREN_FINISH,
                Use::None => true,
            };
            if is_over {
                lock::replace(&path);
            }
            if Instant::now() >= deadline {
                let message = format!(
                    "another plugin is still working on interface {} of this container",
                    attachment.interface
                );
                let failure = Failure::new(Code::TryAgain, message, attachment.container.as_str());
                return Err((ErrorKind::WouldBlock, failure));
            }
            thread::sleep(POLL);
        }
    }

    /// Reads the state of an interface. Falls back to the file named after the container only, in which
    /// flannel's plugin may have saved this interface, if that file is of the same network. A state of
    /// another network that kept the interface from this one counts for nothing.
    pub fn read(&self, attachment: &Attachment, network: &str) -> Result<Found, Failure> {
        match self.read_own(attachment)? {
            Found::Config(config) if config["name"] != network && self.was_refused(attachment, network) => {
                Ok(Found::Nothing)
            }
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
        match files::read(&path, MAX_CONFIGURATION) {
            Ok(bytes) => Ok(match serde_json::from_slice(&bytes) {
                Ok(config @ Value::Object(_)) if is_complete(&config) => Found::Config(config),
                _ if bytes.is_empty() || bytes.starts_with(b"{") || bytes.starts_with(b"\0") => Found::Broken,
                _ => Found::Nothing,
            }),
            Err(ReadError::TooLong(_)) => Ok(Found::Broken),
            Err(ReadError::NotRegular) => Ok(Found::Nothing),
            Err(error) if error.is_absence() => Ok(Found::Nothing),
            Err(ReadError::Io(error)) => Err(failed("read", &path, &error)),
        }
    }

    /// Reads the network namespace of the interface, if it was recorded.
    pub fn netns(&self, attachment: &Attachment) -> Option<Netns> {
        let bytes = files::read(&self.sibling(attachment, "netns"), MAX_TEXT).ok()?;
        Netns::parse(&String::from_utf8(bytes).ok()?)
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
        // Whatever has the name is replaced, not written into.
        let create = |path: &Path| {
            remove_file(path)?;
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
        };
        let write = || {
            // Needs no rename: a truncated record does not parse.
            match netns {
                Some(netns) => create(&namespace)?.write_all(netns.to_string().as_bytes())?,
                None => remove_file(&namespace)?,
            }
            let mut file = create(&temporary)?;
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

    /// Removes the state, if there is one, and what is beside it.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), Failure> {
        // The state first: without it the others count for nothing.
        let others = ["netns", "refused", "failed", "new"].map(|end| self.sibling(attachment, end));
        for path in std::iter::once(self.path(attachment)).chain(others) {
            remove_file(&path).map_err(|error| failed("remove", &path, &error))?;
        }
        Ok(())
    }

    /// Records that the network was refused the interface because of its state, so that the DEL that follows
    /// a failed ADD deletes nothing.
    pub fn refuse(&self, attachment: &Attachment, network: &str) -> Result<(), Failure> {
        if self.was_refused(attachment, network) {
            return Ok(());
        }
        let path = self.sibling(attachment, "refused");
        let mut options = OpenOptions::new();
        let file = files::open(options.append(true).create(true).mode(0o600), &path);
        let written = file.and_then(|mut file| Ok(file.write_all(format!("{network}\n").as_bytes())?));
        written.map_err(|error| unusual("write", &path, &error))
    }

    fn was_refused(&self, attachment: &Attachment, network: &str) -> bool {
        let text = files::read(&self.sibling(attachment, "refused"), MAX_TEXT).unwrap_or_default();
        text.split(|byte| *byte == b'\n').any(|line| line == network.as_bytes())
    }

    /// Lists all interfaces with a saved state, sorted. Files with other names are not ours.
    pub fn list(&self) -> Result<Vec<Attachment>, Failure> {
        let mut all = Vec::new();
        let listed = self
            .visit(|directory, name| all.extend(Attachment::parse(Attachment::state_place, directory, name)));
        listed.map_err(|error| failed("list", &self.directory, &error))?;
        all.sort();
        Ok(all)
    }

    /// Returns when GC last failed to delete the interface and did not reach all others.
    pub fn failed(&self, attachment: &Attachment) -> Option<SystemTime> {
        fs::metadata(self.sibling(attachment, "failed")).and_then(|mark| mark.modified()).ok()
    }

    /// Records that GC has just failed to delete the interface, so that the next one begins with others.
    pub fn set_failed(&self, attachment: &Attachment) {
        let path = self.sibling(attachment, "failed");
        let mark = files::open(OpenOptions::new().write(true).create(true).mode(0o600), &path);
        // Without the mark the next GC begins with this interface again.
        let _ = mark.and_then(|mark| Ok(mark.set_modified(SystemTime::now())?));
    }

    /// Removes what a killed plugin left besides states: temporary files, locks that are not held, and
    /// records without a state.
    pub fn sweep(&self) {
        let mut left = Vec::new();
        let _ = self.visit(|directory, name| {
            let of = |end: &str| {
                let name = name.strip_prefix('.')?.strip_suffix(end)?;
                Attachment::parse(Attachment::hidden_place, directory, name)
            };
            left.extend(of(".new").or_else(|| of(".lock")).map(|one| (one, true)));
            let with_state = [".netns", ".refused", ".failed"].into_iter().find_map(of);
            left.extend(with_state.map(|one| (one, false)));
        });
        for (attachment, in_any_case) in left {
            let has_state = || self.path(&attachment).exists();
            if !in_any_case && has_state() {
                continue;
            }
            // The holder of the lock may be writing these files.
            if let Ok(Some(_lock)) = Lock::acquire(&self.sibling(&attachment, "lock")) {
                let _ = fs::remove_file(self.sibling(&attachment, "new"));
                for end in ["netns", "refused", "failed"] {
                    if !has_state() {
                        let _ = fs::remove_file(self.sibling(&attachment, end));
                    }
                }
            }
        }
    }

    /// Calls `each` with the directory, below ours, and the name of each file.
    fn visit(&self, mut each: impl FnMut(Option<&str>, &str)) -> io::Result<()> {
        for name in names(&self.directory)? {
            if !name.starts_with('@') {
                each(None, &name);
                continue;
            }
            for below in names(&self.directory.join(&name))? {
                each(Some(&name), &below);
            }
        }
        Ok(())
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        let (directory, name) = attachment.state_place();
        self.directory.join(directory.unwrap_or_default()).join(name)
    }

    fn sibling(&self, attachment: &Attachment, end: &str) -> PathBuf {
        let (directory, name) = attachment.hidden_place();
        self.directory.join(directory.unwrap_or_default()).join(format!(".{name}.{end}"))
    }
}

/// Returns true for a directory that exists only for the files of a container with a long ID.
pub(crate) fn is_own_directory(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"))
}

/// Returns true for a configuration that names its network and its plugin.
fn is_complete(config: &Value) -> bool {
    ["name", "type"].iter().all(|key| config[*key].as_str().is_some_and(|text| !text.is_empty()))
}

/// Lists the names in a directory, none if it does not exist or is no directory.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unusual(what: &str, path: &Path, error: &ReadError) -> Failure {
    match error {
        ReadError::Io(error) => failed(what, path, error),
        other => {
            let details = format!("{other}; remove it");
            Failure::new(Code::Io, format!("cannot {what} {}", path.display()), details)
        }
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

    fn config(name: &str) -> Value {
        json!({"name": name, "type": "bridge"})
    }

    const LIMIT: Duration = Duration::from_secs(10);

    fn states() -> (tempfile::TempDir, States) {
        let directory = tempfile::tempdir().expect("a directory");
        let states = States::in_directory(&directory.path().join("var/flannel"));
        (directory, states)
    }

    #[test]
    fn each_interface_has_its_own_and_the_first_flannels_name() {
        let (_directory, states) = states();
        let (first, second) = (of("abc", "eth0"), of("abc", "net1"));
        for (attachment, config) in [(&first, config("a")), (&second, config("b"))] {
            assert_eq!(states.read(attachment, "cbr0"), Ok(Found::Nothing));
            let _lock = states.lock(attachment, LIMIT).expect("a lock");
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
        let config = config("cbr0");
        drop(states.lock(&first, LIMIT).expect("the directory"));
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
        drop(states.lock(&mine, LIMIT).expect("the directory"));
        states.write(&mine, &config("cbr0"), Some(&netns)).expect("written");
        assert_eq!((states.netns(&mine), states.list()), (Some(netns.clone()), Ok(vec![mine.clone()])));
        states.write(&mine, &config("cbr0"), None).expect("written");
        assert_eq!(states.netns(&mine), None, "the record of the older state");
        states.write(&mine, &config("cbr0"), Some(&netns)).expect("written");
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
            ("{}", Found::Broken),
            (r#"{"name":"cbr0"}"#, Found::Broken),
            (r#"{"name":"","type":"bridge"}"#, Found::Broken),
            (r#"{"name":"cbr0","type":7}"#, Found::Broken),
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
    fn a_network_that_was_refused_the_interface_has_no_state() {
        let (_directory, states) = states();
        let mine = of("abc", "eth0");
        drop(states.lock(&mine, LIMIT).expect("the directory"));
        states.write(&mine, &config("cbr0"), None).expect("written");
        assert_eq!(
            states.read(&mine, "renamed"),
            Ok(Found::Config(config("cbr0"))),
            "a network may be renamed"
        );
        for _ in 0..2 {
            states.refuse(&mine, "another").expect("recorded");
            states.refuse(&mine, "third").expect("recorded");
        }
        for (network, found) in [
            ("another", Found::Nothing),
            ("third", Found::Nothing),
            ("anoth", Found::Config(config("cbr0"))),
            ("cbr0", Found::Config(config("cbr0"))),
        ] {
            assert_eq!(states.read(&mine, network), Ok(found), "{network}");
        }
        assert_eq!(fs::read_to_string(states.sibling(&mine, "refused")).expect("text"), "another\nthird\n");
        states.remove(&mine).expect("removed");
        assert_eq!(fs::read_dir(&states.directory).expect("there").count(), 0);
    }

    #[test]
    fn long_names_are_split_and_found_again() {
        let (_directory, states) = states();
        let mut all = Vec::new();
        for length in [1, 64, 199, 200, 201, 202, 248, 254, 255] {
            for interface in ["eth0", "net1", "fifteen-letters", "x.lock", "x.new"] {
                // The split may come before any character.
                for letter in ["a", ".", "-"] {
                    let container = format!("b{}", letter.repeat(length - 1));
                    all.push(of(&container, interface));
                }
            }
        }
        all.sort();
        all.dedup();
        let held: Vec<Lock> = all.iter().map(|one| states.lock(one, LIMIT).expect("a lock")).collect();
        for one in &all {
            let netns = Netns::at("/proc/self/ns/net").expect("there");
            let own = config(&format!("{}{}", one.interface, one.container.len()));
            states.write(one, &own, Some(&netns)).expect("written");
            states.refuse(one, "another").expect("recorded");
            assert_eq!((states.read_own(one), states.netns(one)), (Ok(Found::Config(own)), Some(netns)));
        }
        let long = "b".to_owned() + &"a".repeat(254);
        assert!(states.directory.join(&long).is_file(), "flannel's name");
        drop(held);
        states.sweep();
        assert!(states.list() == Ok(all.clone()), "not what was written");
        for one in &all {
            let _lock = states.lock(one, LIMIT).expect("a lock");
            states.remove(one).expect("removed");
        }
        assert_eq!(fs::read_dir(&states.directory).expect("there").count(), 0);
    }

    #[test]
    fn what_is_no_file_or_endless_is_no_state_and_blocks_nobody() {
        let (_directory, states) = states();
        let mine = of("abc", "eth0");
        drop(states.lock(&mine, LIMIT).expect("the directory"));
        let mkfifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        for end in ["lock", "netns", "new", "refused"] {
            mkfifo(&states.sibling(&mine, end));
        }
        mkfifo(&states.path(&mine));
        assert_eq!((states.read(&mine, "cbr0"), states.netns(&mine)), (Ok(Found::Nothing), None));
        states.sweep();
        let lock = states.lock(&mine, LIMIT).expect("a lock in place of the FIFO");
        let netns = Netns::at("/proc/self/ns/net").expect("there");
        states.write(&mine, &config("cbr0"), Some(&netns)).expect("written");
        assert_eq!(states.read(&mine, "cbr0"), Ok(Found::Config(config("cbr0"))));
        assert_eq!(states.netns(&mine), Some(netns));
        File::create(states.path(&mine)).and_then(|file| file.set_len(1 << 40)).expect("a hole");
        assert_eq!(states.read(&mine, "cbr0"), Ok(Found::Broken));
        fs::remove_file(states.path(&mine)).expect("removed");
        fs::create_dir(states.path(&mine)).expect("a directory");
        assert_eq!(states.read(&mine, "cbr0"), Ok(Found::Nothing));
        drop(lock);
    }

    #[test]
    fn plugins_take_turns_on_an_interface() {
        let (_directory, states) = states();
        let mine = of("abc", "eth0");
        let lock = states.lock(&mine, LIMIT).expect("a lock");
        let other = states.lock(&of("abc", "net1"), LIMIT).expect("another interface");
        let began = Instant::now();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| states.lock(&mine, LIMIT).map(|_| began.elapsed()));
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
        let held = states.lock(&of("busy", "eth0"), LIMIT).expect("a lock");
        for name in [
            ".abc.new",
            ".abc.lock",
            ".abc.netns",
            ".busy.new",
            ".busy.netns",
            ".dead.netns",
            ".dead.refused",
            ".dead.failed",
            ".abc.failed",
            ".abc.refused",
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
        assert_eq!(
            left,
            [
                ".abc.failed",
                ".abc.netns",
                ".abc.refused",
                ".busy.lock",
                ".busy.netns",
                ".busy.new",
                ".other",
                "README",
                "abc"
            ]
        );
        drop(held);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let states = States::in_directory(Path::new("/proc/nowhere"));
        let failure = states.lock(&of("abc", "eth0"), LIMIT).expect_err("no directory");
        assert_eq!(failure.code, Code::Io as u64);
        assert!(failure.message.contains("/proc/nowhere"), "{failure:?}");
        assert_eq!(states.read_own(&of("abc", "eth0")), Ok(Found::Nothing));
    }
}
