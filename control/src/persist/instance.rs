//! One daemon among several on a host: its name, its directory, and the lock that makes it the only one.
//!
//! ```text
//! /run/loden/<instance>.lock   held while the daemon lives
//! /run/loden/<instance>.json   what it has made on this host, for a restart and for `loden cleanup`
//! /run/loden/<instance>.sock   what `loden status` asks
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use model::subnet_env::SUBNET_FILE;

use crate::settings::Settings;

/// Name of the daemon that writes flannel's usual file.
const USUAL: &str = "flannel";
/// Longest name: with the directory it has to fit into a socket's address of 108 bytes.
const LONGEST: usize = 64;

/// Why the daemon cannot have its name.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Not a file name.
    #[error(
        "--instance {0:?}: a name has 1 to 64 letters, digits, dots, dashes or underscores, and no dot in front"
    )]
    Name(String),
    /// Another daemon has it.
    #[error(
        "another loden{} runs as instance {name:?}; give each its own --subnet-file, or its own --instance",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Taken {
        /// The name.
        name: String,
        /// The other daemon's process, if it has left a note.
        pid: Option<u32>,
    },
}

/// The places of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    name: String,
    directory: PathBuf,
}

/// The right to a name, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    // Closing the file gives the lock back.
    _file: File,
}

impl Places {
    /// The places of the instance `name` in `directory`.
    pub fn new(name: &str, directory: &Path) -> Result<Places, InstanceError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let good = (1..=LONGEST).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed);
        if !good {
            return Err(InstanceError::Name(name.to_owned()));
        }
        Ok(Places { name: name.to_owned(), directory: directory.to_owned() })
    }

    /// Those of the daemon with these settings. Daemons on one host have different subnet files anyway, so the
    /// name is made of that, unless one is given.
    pub fn of(settings: &Settings) -> Result<Places, InstanceError> {
        let name = match &settings.instance {
            Some(name) => name.clone(),
            None => name_for(&settings.subnet_file),
        };
        Places::new(&name, &settings.run_dir)
    }

    /// Every instance that has left something in `directory`, sorted.
    pub fn all(directory: &Path) -> Vec<Places> {
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
        names.iter().filter_map(|name| Places::new(name, directory).ok()).collect()
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the daemon answers `loden status`.
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// What the daemon has made on this host.
    pub fn state(&self) -> PathBuf {
        self.file("json")
    }

    /// Held while the daemon lives.
    pub fn lock_file(&self) -> PathBuf {
        self.file("lock")
    }

    /// Tells whether the instance has left any file.
    pub fn has_any(&self) -> bool {
        [self.socket(), self.state(), self.lock_file()].iter().any(|path| path.symlink_metadata().is_ok())
    }

    /// Makes the directory.
    pub fn make_directory(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)
    }

    /// Takes the name, for as long as the lock is kept; `Ok(Err)` when the system has no place for a lock.
    pub fn lock(&self) -> Result<io::Result<Lock>, InstanceError> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.lock_file())
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
        // For the message above; a lock without a note is as good.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Ok(Lock { _file: file }))
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", self.name))
    }
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

/// FNV-1a in 32 bits: the same name for the same path in every version.
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
            assert!(Places::new(&name_for(Path::new(odd)), Path::new("/run")).is_ok(), "{odd}");
        }
        assert_eq!(fnv1a(b"a"), 0xe40c_292c, "the published test vector");
    }

    #[test]
    fn names_that_are_no_file_names() {
        for bad in ["", ".", "..", ".x", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(Places::new(bad, Path::new("/run")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_at_a_time() {
        let directory = tempfile::tempdir().expect("directory");
        let places = Places::new("one", directory.path()).expect("a name");
        let lock = places.lock().expect("free").expect("a file");
        let error = places.lock().expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("--instance"), "{error}");
        drop(lock);
        assert!(places.lock().expect("free again").is_ok());
        let nowhere = Places::new("one", Path::new("/nosuch")).expect("a name");
        assert!(nowhere.lock().expect("not taken").is_err());
    }

    #[test]
    fn all_are_those_with_a_socket_or_a_state() {
        let directory = tempfile::tempdir().expect("directory");
        for file in ["b.json", "a.sock", "a.json", "c.lock", ".x.json", "d"] {
            fs::write(directory.path().join(file), "").expect("write");
        }
        let all = Places::all(directory.path());
        assert_eq!(all.iter().map(Places::name).collect::<Vec<_>>(), ["a", "b"]);
        assert!(Places::all(Path::new("/nosuch")).is_empty());
    }
}
