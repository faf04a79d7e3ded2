//! The lock on one interface: a locked file, held until it is dropped or, if the plugin is killed, until its
//! delegate has finished.
//!
//! The delegate inherits the locked descriptor, so that its work is not undone before it is finished. A
//! daemon that the delegate starts inherits it too and would hold the lock for as long as it runs, so the
//! file names the processes that the lock is for. Once they have ended, the file is replaced.

use std::fmt::{self, Display};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::killpg;
use nix::unistd::Pid;

use crate::files::{self, ReadError};
use crate::state::is_own_directory;

/// Maximum length of the text in a lock file.
const MAX_TEXT: u64 = 256;
/// No plugin holds a lock for longer, so one that is older and does not say whose it is, is nobody's.
const LONGEST_USE: Duration = Duration::from_secs(150);

/// A lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

/// The processes that a lock is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Users {
    /// The PID namespace in which the numbers have a meaning.
    namespace: u64,
    plugin: Process,
    delegate: Option<Process>,
}

/// A process, by its number and start time in clock ticks since boot (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    start: u64,
}

/// How far a lock that is held elsewhere is still in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its plugin or delegate still works, or may still work.
    Full,
    /// Both have ended, but children of the delegate that left no daemon may still work.
    Children,
    /// Nobody works under the lock.
    None,
}

impl Lock {
    /// Opens and locks the file; `None` if another process holds the lock, or is replacing the file.
    pub fn acquire(path: &Path) -> Result<Option<Lock>, ReadError> {
        let file =
            files::open(OpenOptions::new().write(true).create(true).truncate(false).mode(0o600), path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // The holder may have removed the file between our open and our lock.
        if !is_named(&file, path) {
            return Ok(None);
        }
        let lock = Lock { path: path.to_owned(), file };
        lock.record(None);
        Ok(Some(lock))
    }

    /// Lets delegates inherit the lock.
    pub fn pass_on(&self) -> io::Result<()> {
        fcntl(&self.file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(io::Error::from)
    }

    /// Records the delegate that works under the lock from now on.
    pub fn record(&self, delegate: Option<u32>) {
        let Some(users) = Users::now(delegate) else { return };
        // Without the record the lock is in use for as long as anybody holds it.
        let text = users.to_string();
        let _ = self.file.set_len(0).and_then(|()| self.file.write_all_at(text.as_bytes(), 0));
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked: a plugin that has opened the file sees that its name is gone, and
        // retries. The name may be a successor's if this plugin was taken for dead.
        if is_named(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
        // A directory of this attachment alone, which the caller created for the lock.
        if let Some(directory) = self.path.parent().filter(|place| is_own_directory(place)) {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Returns how far the lock, which another process holds, is still in use.
pub fn still_used(path: &Path) -> Use {
    let text = files::read(path, MAX_TEXT).unwrap_or_default();
    match Users::parse(&String::from_utf8_lossy(&text)) {
        Some(users) if Some(users.namespace) == pid_namespace() => users.still_work(path),
        // Of an earlier version, or of plugins that this one cannot see.
        _ => by_age(path),
    }
}

/// Removes the lock file of nobody, so that the next one can be created. Does nothing if another plugin is
/// doing the same.
pub fn replace(path: &Path) {
    let Ok(file) = files::open(OpenOptions::new().read(true), path) else { return };
    let Some(directory) = path.parent().and_then(|directory| File::open(directory).ok()) else { return };
    // Between these two steps nobody else may have replaced the file.
    if directory.try_lock().is_ok() && is_named(&file, path) && still_used(path) != Use::Full {
        let _ = fs::remove_file(path);
    }
}

impl Users {
    fn now(delegate: Option<u32>) -> Option<Users> {
        let delegate = delegate.and_then(Process::of);
        Some(Users { namespace: pid_namespace()?, plugin: Process::of(std::process::id())?, delegate })
    }

    fn still_work(&self, path: &Path) -> Use {
        if self.plugin.runs() || self.delegate.is_some_and(Process::runs) {
            return Use::Full;
        }
        // A plugin that was killed in between has started a delegate without recording it.
        let Some(delegate) = self.delegate else { return by_age(path) };
        let group = Pid::from_raw(delegate.id.cast_signed());
        if killpg(group, None).is_ok() { Use::Children } else { Use::None }
    }

    fn parse(text: &str) -> Option<Users> {
        let mut numbers = text.strip_suffix('\n')?.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let namespace = next()?;
        let mut process = || Some(Process { id: u32::try_from(next()?).ok()?, start: next()? });
        Some(Users { namespace, plugin: process()?, delegate: process() })
    }
}

/// Judges a lock that does not say whose it is.
fn by_age(path: &Path) -> Use {
    let made = fs::metadata(path).and_then(|file| file.modified());
    let age = made.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
    if age.is_some_and(|age| age > LONGEST_USE) { Use::None } else { Use::Full }
}

impl Display for Users {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.namespace, self.plugin.id, self.plugin.start)?;
        if let Some(delegate) = &self.delegate {
            write!(formatter, " {} {}", delegate.id, delegate.start)?;
        }
        writeln!(formatter)
    }
}

impl Process {
    /// Returns the process, unless it has ended.
    fn of(id: u32) -> Option<Process> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name, in parentheses, may contain anything.
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Process { id, start })
    }

    fn runs(self) -> bool {
        Process::of(self.id) == Some(self)
    }
}

fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|namespace| namespace.ino())
}

fn is_named(file: &File, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|named| file.metadata().is_ok_and(|ours| named.ino() == ours.ino()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_lock_is_used_while_its_plugin_or_delegate_runs() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("lock");
        let lock = Lock::acquire(&path).expect("a file").expect("a lock");
        assert_eq!(still_used(&path), Use::Full);
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep");
        lock.record(Some(child.id()));
        let of =
            |plugin: Process, delegate| Users { namespace: pid_namespace().expect("one"), plugin, delegate };
        let (us, it) = (Process::of(std::process::id()).expect("us"), Process::of(child.id()).expect("it"));
        let gone = Process { start: it.start + 1, ..it };
        for (users, expected) in [
            (of(us, Some(it)), Use::Full),
            (of(gone, Some(it)), Use::Full),
            (of(us, None), Use::Full),
            (of(us, Some(gone)), Use::Full),
            (of(gone, None), Use::Full),
            (of(gone, Some(gone)), Use::None),
            (Users { namespace: 1, ..of(gone, Some(gone)) }, Use::Full),
        ] {
            fs::write(&path, users.to_string()).expect("written");
            assert_eq!(still_used(&path), expected, "{users:?}");
            assert_eq!(Users::parse(&users.to_string()), Some(users));
        }
        let old = SystemTime::now() - LONGEST_USE - Duration::from_secs(1);
        for text in [of(gone, None).to_string(), String::new(), "rubbish\n".into()] {
            fs::write(&path, text).expect("written");
            assert_eq!(still_used(&path), Use::Full);
            File::options().write(true).open(&path).and_then(|file| file.set_modified(old)).expect("a time");
            assert_eq!(still_used(&path), Use::None, "no plugin takes so long");
        }
        child.kill().expect("killed");
        // Not yet waited for.
        while Process::of(child.id()).is_some() {
            std::thread::yield_now();
        }
        child.wait().expect("an end");
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_of_nobody_is_replaced_and_a_lock_in_use_is_not() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("lock");
        let held = Lock::acquire(&path).expect("a file").expect("a lock");
        replace(&path);
        assert!(path.exists() && Lock::acquire(&path).expect("a file").is_none());
        let gone = Process { id: 1, start: 0 };
        let users = Users { plugin: gone, delegate: Some(gone), ..Users::now(None).expect("us") };
        fs::write(&path, users.to_string()).expect("written");
        // Process 1 is another, and no process group of that number is ours to see: it may have children.
        replace(&path);
        assert!(!path.exists());
        let next = Lock::acquire(&path).expect("a file").expect("a lock");
        drop(held);
        assert!(path.exists(), "the successor's");
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_record_says_nothing() {
        for text in ["", "\n", "1\n", "1 2\n", "1 2 3", "1 -2 3\n", "x 2 3\n", "1 99999999999 3\n"] {
            assert_eq!(Users::parse(text), None, "{text:?}");
        }
        let users = Users::parse("1 2 3\n").expect("a plugin alone");
        assert_eq!(users.delegate, None);
        assert_eq!(Users::parse("1 2 3 4\n").expect("a plugin").delegate, None);
    }
}
