//! One daemon among several on a host: its name, its files, and the lock that makes it unique.
//!
//! ```text
//! /run/loden/<instance>.lock   locked while the daemon runs /run/loden/<instance>.json   state file, for a
//! restart and for `loden cleanup`; beside the subnet file where
//!                              /run/loden ends with a container
//! /run/loden/<instance>.sock   status socket, for `loden status`
//! ```

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use model::subnet_env::SUBNET_FILE;
use nix::libc::O_NONBLOCK;
use store::regular;

use crate::persist::atomic_file::parent;
use crate::settings::{RUN_DIRECTORY, Settings};

/// Name of the daemon that writes flannel's default subnet file.
const USUAL: &str = "flannel";
/// Maximum length of a name: directory and name must fit in a socket address of 108 bytes.
const LONGEST: usize = 64;

/// Reasons why an instance name cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The name is not a valid file name.
    #[error(
        "--instance {0:?}: a name consists of 1 to 64 letters, digits, dots, dashes or underscores, and does \
         not begin with a dot"
    )]
    Name(String),
    /// Another daemon uses the name.
    #[error(
        "another loden{} runs as instance {name:?}; give each its own --subnet-file, or its own --instance",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Taken {
        /// The name.
        name: String,
        /// The other daemon's process, if its lock file names it.
        pid: Option<u32>,
    },
}

/// One instance, which determines the paths of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
    directory: PathBuf,
    /// The directory of the state file.
    lasting: PathBuf,
}

/// The lock of an instance, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    // Closing the file releases the lock.
    file: File,
}

impl Instance {
    /// Returns the instance `name` with its files in `directory`.
    pub fn new(name: &str, directory: &Path) -> Result<Instance, InstanceError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let good = (1..=LONGEST).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed);
        if !good {
            return Err(InstanceError::Name(name.to_owned()));
        }
        Ok(Instance { name: name.to_owned(), directory: directory.to_owned(), lasting: directory.to_owned() })
    }

    /// Returns the instance of the daemon with these settings, with its state file where that lasts.
    pub fn of(settings: &Settings) -> Result<Instance, InstanceError> {
        let mut instance = Instance::named(settings)?;
        let beside = parent(&settings.subnet_file);
        let ends = || {
            let device = |path: &Path| Some(path.metadata().ok()?.dev());
            ends_with_the_container(&settings.run_dir, beside, device)
        };
        // Whoever names another directory knows what lasts.
        if settings.run_dir == Path::new(RUN_DIRECTORY) && ends() {
            instance.lasting = beside.to_owned();
        }
        Ok(instance)
    }

    /// Returns the instance of the daemon with these settings, with all files in the run directory. The
    /// default name is derived from the subnet file, which differs between the daemons of one host.
    pub fn named(settings: &Settings) -> Result<Instance, InstanceError> {
        let name = match &settings.instance {
            Some(name) => name.clone(),
            None => name_for(&settings.subnet_file),
        };
        Instance::new(&name, &settings.run_dir)
    }

    /// Lists every instance that has a socket or a state file in `directory`, sorted by name.
    pub fn all(directory: &Path) -> Vec<Instance> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                let file = entry.file_name();
                let name = Path::new(&file);
                let ours = name.extension().is_some_and(|kind| kind == "sock" || kind == "json");
                name.file_stem().filter(|_| ours)?.to_str().map(str::to_owned)
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names.iter().filter_map(|name| Instance::new(name, directory).ok()).collect()
    }

    /// Returns the instance's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of the status socket.
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// Returns the path of the state file.
    pub fn state(&self) -> PathBuf {
        self.lasting.join(format!("{}.json", self.name))
    }

    /// Returns the path of the file that is locked while the daemon runs.
    pub fn lock_file(&self) -> PathBuf {
        self.file("lock")
    }

    /// Tells whether any of the instance's files exists.
    pub fn has_files(&self) -> bool {
        [self.socket(), self.state(), self.lock_file()].iter().any(|path| path.symlink_metadata().is_ok())
    }

    /// Tells whether the lock is still that of the lock file, so that it keeps others out.
    pub fn is_locked_by(&self, lock: &Lock) -> bool {
        let identity = |file: &Metadata| (file.dev(), file.ino());
        let ours = lock.file.metadata().map(|file| identity(&file));
        let there = fs::symlink_metadata(self.lock_file()).map(|file| identity(&file));
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }

    /// Creates the directory of the files.
    pub fn make_directory(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)
    }

    /// Locks the name. Returns `Ok(Err)` if the lock file cannot be created.
    pub fn lock(&self) -> Result<io::Result<Lock>, InstanceError> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(O_NONBLOCK)
                .open(self.lock_file())
                .and_then(|file| regular::check(&file.metadata()?).map(|()| file))
        };
        let mut file = match open() {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.take(32).read_to_string(&mut text);
                return Err(InstanceError::Taken { name: self.name.clone(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Ok(Err(error)),
        }
        // The process id is for the error above; the lock works without it.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Ok(Lock { file }))
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", self.name))
    }
}

/// Tells whether files in the run directory go with the container that this process runs in, while those
/// beside the subnet file stay: the one is on the root filesystem, the other on a mount. `device` returns the
/// filesystem of a path that exists.
fn ends_with_the_container(run_dir: &Path, beside: &Path, device: impl Fn(&Path) -> Option<u64>) -> bool {
    let nearest = |path: &Path| path.ancestors().find_map(&device);
    let root = device(Path::new("/"));
    root.is_some() && nearest(run_dir) == root && device(beside).is_some_and(|device| Some(device) != root)
}

fn name_for(subnet_file: &Path) -> String {
    if subnet_file == Path::new(SUBNET_FILE) {
        return USUAL.to_owned();
    }
    let stem = subnet_file.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
    let stem: String = stem.chars().map(plain).take(LONGEST / 2).collect();
    let whole = std::path::absolute(subnet_file).unwrap_or_else(|_| subnet_file.to_owned());
    format!("{stem}-{:08x}", fnv1a(whole.as_os_str().as_encoded_bytes()))
}

/// Computes the 32-bit FNV-1a hash, which gives a path the same name in every version.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_subnet_files() {
        assert_eq!(name_for(Path::new(SUBNET_FILE)), "flannel");
        let (a, b) = (name_for(Path::new("/run/a/subnet.env")), name_for(Path::new("/run/b/subnet.env")));
        assert!(a.starts_with("subnet-") && a != b, "{a} {b}");
        for odd in ["/", "", "/x/..", "/\u{1F980}.env", &"/l".repeat(300)] {
            assert!(Instance::new(&name_for(Path::new(odd)), Path::new("/run")).is_ok(), "{odd}");
        }
        assert_eq!(fnv1a(b"a"), 0xe40c_292c, "the published test vector");
    }

    #[test]
    fn names_that_are_not_file_names_are_rejected() {
        for bad in ["", ".", "..", ".x", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(Instance::new(bad, Path::new("/run")).is_err(), "{bad:?}");
        }
    }

    /// A pod mounts the host's /run/flannel; its /run/loden is the container's.
    #[test]
    fn a_run_directory_of_a_container_does_not_last() {
        let beside = |root: u64, run: Option<u64>, loden: Option<u64>, flannel: Option<u64>| {
            let device = |path: &Path| match path.to_str() {
                Some("/") => Some(root),
                Some("/run") => run,
                Some("/run/loden") => loden,
                Some("/run/flannel") => flannel,
                _ => None,
            };
            ends_with_the_container(Path::new("/run/loden"), Path::new("/run/flannel"), device)
        };
        assert!(beside(1, Some(1), None, Some(2)), "a pod");
        assert!(beside(1, Some(1), Some(1), Some(2)), "a pod that was restarted");
        assert!(!beside(1, Some(1), Some(3), Some(2)), "a pod that mounts both");
        assert!(!beside(1, Some(2), None, Some(2)), "a host");
        assert!(
            !beside(1, Some(1), None, Some(1)) && !beside(1, Some(1), None, None),
            "nothing lasts longer"
        );
    }

    #[test]
    fn one_at_a_time() {
        let directory = tempfile::tempdir().expect("directory");
        let instance = Instance::new("one", directory.path()).expect("a name");
        let lock = instance.lock().expect("free").expect("a file");
        let error = instance.lock().expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("--instance"), "{error}");
        drop(lock);
        assert!(instance.lock().expect("free again").is_ok());
        let nowhere = Instance::new("one", Path::new("/nosuch")).expect("a name");
        assert!(nowhere.lock().expect("not taken").is_err());
    }

    #[test]
    fn all_are_those_with_a_socket_or_a_state() {
        let directory = tempfile::tempdir().expect("directory");
        for file in ["b.json", "a.sock", "a.json", "c.lock", ".x.json", "d"] {
            fs::write(directory.path().join(file), "").expect("write");
        }
        let all = Instance::all(directory.path());
        assert_eq!(all.iter().map(Instance::name).collect::<Vec<_>>(), ["a", "b"]);
        assert!(Instance::all(Path::new("/nosuch")).is_empty());
    }
}
