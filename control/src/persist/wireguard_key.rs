//! The private key of the `wireguard` backend: a file in the format of WireGuard's own tools, created if
//! missing.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use model::wireguard::{parse_key, render_key};
use path::wireguard::SecretKey;
use store::regular;

use crate::persist::atomic_file;

/// flannel's path. On many hosts the file is lost in a reboot, and the next key is then published.
const USUAL: &str = "/run/flannel/wgkey";
/// The variable that sets another path.
const VARIABLE: &str = "WIREGUARD_KEY_FILE";

/// Reasons why the key is not available.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or created.
    #[error("cannot {what} the private key {}: {source}; set another path with {VARIABLE}", .path.display())]
    File {
        /// The step that failed, as an imperative.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file does not contain a key.
    #[error(
        "{} does not contain a private key, 32 bytes in base64; remove the file to have a new key created \
         and published",
        .path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// Returns the path from the environment, or flannel's.
pub fn path(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    variable(VARIABLE).filter(|value| !value.is_empty()).map_or_else(|| PathBuf::from(USUAL), PathBuf::from)
}

/// Reads the key, or creates the file with the key from `new`.
pub fn load(path: &Path, new: impl FnOnce() -> [u8; 32]) -> Result<SecretKey, KeyError> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let key = new();
    match create(path, &render_key(&key)) {
        Ok(()) => Ok(SecretKey(key)),
        // Another daemon created the file first: both use its key.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read(path)?.ok_or_else(|| failed("create", path, error))
        }
        Err(error) => Err(failed("create", path, error)),
    }
}

/// Reads the key; `None` if there is no file.
fn read(path: &Path) -> Result<Option<SecretKey>, KeyError> {
    match regular::read_to_string(path, regular::USUAL) {
        Ok(text) => {
            let key = parse_key(text.trim()).ok_or_else(|| KeyError::Content { path: path.to_owned() })?;
            Ok(Some(SecretKey(key)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(KeyError::Content { path: path.to_owned() })
        }
        Err(error) => Err(failed("read", path, error)),
    }
}

/// Creates the file atomically, readable only by its owner, and never replaces another file.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let directory = atomic_file::parent(path);
    fs::create_dir_all(directory)?;
    let mut file = atomic_file::temporary(path)?;
    file.as_file().set_permissions(Permissions::from_mode(0o400))?;
    file.as_file_mut().write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map(drop).map_err(|error| error.error)
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> KeyError {
    KeyError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_created_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("deep/wgkey");
        let created = load(&place, || [7; 32]).expect("a key");
        assert_eq!(created.0, [7; 32]);
        assert_eq!(fs::metadata(&place).expect("a file").permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read_to_string(&place).expect("text").len(), 44, "as wg genkey writes it");
        assert_eq!(load(&place, || [8; 32]).expect("the same").0, [7; 32]);
        assert_eq!(fs::read_dir(directory.path().join("deep")).expect("list").count(), 1);
    }

    #[test]
    fn two_daemons_that_create_the_key_at_once_use_the_same_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("wg.key");
        let neighbour = directory.path().join("wg.new");
        fs::write(&neighbour, "somebody else's").expect("a neighbour");
        let second = load(&place, || {
            assert_eq!(load(&place, || [1; 32]).expect("the first").0, [1; 32]);
            [2; 32]
        });
        assert_eq!(second.expect("the same").0, [1; 32]);
        assert_eq!(fs::read_to_string(neighbour).expect("it"), "somebody else's");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 2);
    }

    #[test]
    fn an_invalid_key_is_reported_without_its_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("wgkey");
        for bytes in [&b""[..], b"secret", &[0xff; 44], b"c2hvcnQ="] {
            fs::write(&place, bytes).expect("write");
            let error = load(&place, || panic!("not created again")).expect_err("no key").to_string();
            assert!(error.contains("wgkey") && !error.contains("secret"), "{error}");
        }
        fs::remove_file(&place).expect("remove");
        fs::create_dir(&place).expect("a directory in its place");
        let error = load(&place, || panic!("not created")).expect_err("no key").to_string();
        assert!(error.contains("WIREGUARD_KEY_FILE"), "{error}");
        let set = |value: &'static str| path(|name| (name == "WIREGUARD_KEY_FILE").then(|| value.into()));
        assert_eq!((set("/a/b"), set("")), (PathBuf::from("/a/b"), PathBuf::from("/run/flannel/wgkey")));
    }
}
