//! The private key of the `wireguard` backend: a file as WireGuard's own tools write it, made where there is none.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::wireguard::{parse_key, render_key};
use path::wireguard::SecretKey;

/// Where flannel has it. On many hosts it is gone after a reboot, and the next one is published then.
const USUAL: &str = "/run/flannel/wgkey";
/// Names another place.
const VARIABLE: &str = "WIREGUARD_KEY_FILE";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("cannot {what} the private key {}: {source}; {VARIABLE} names another file", .path.display())]
    File {
        /// What was tried, as an imperative.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file has something else in it.
    #[error(
        "{} holds no private key, which is 32 bytes in base64; remove it and a new one is made, which peers then learn",
        .path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// The file that the environment names, or the usual one.
pub fn path(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    variable(VARIABLE).filter(|value| !value.is_empty()).map_or_else(|| PathBuf::from(USUAL), PathBuf::from)
}

/// Reads the key, or makes the file with the one that `new` gives.
pub fn load(path: &Path, new: impl FnOnce() -> [u8; 32]) -> Result<SecretKey, KeyError> {
    let failed = |what| move |source| KeyError::File { what, path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            let key = parse_key(text.trim()).ok_or_else(|| KeyError::Content { path: path.to_owned() })?;
            Ok(SecretKey(key))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = new();
            make(path, &render_key(&key)).map_err(failed("make"))?;
            Ok(SecretKey(key))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(KeyError::Content { path: path.to_owned() })
        }
        Err(error) => Err(failed("read")(error)),
    }
}

/// Whole or not at all, and nobody else's to read.
fn make(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let half = path.with_extension("new");
    let _ = fs::remove_file(&half);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&half)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&half, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_and_read_from_then_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("deep/wgkey");
        let made = load(&place, || [7; 32]).expect("a key");
        assert_eq!(made.0, [7; 32]);
        assert_eq!(fs::metadata(&place).expect("a file").permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read_to_string(&place).expect("text").len(), 44, "as wg genkey writes it");
        assert_eq!(load(&place, || [8; 32]).expect("the same").0, [7; 32]);
        assert_eq!(fs::read_dir(directory.path().join("deep")).expect("list").count(), 1);
    }

    #[test]
    fn what_is_no_key_is_named_and_not_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("wgkey");
        for bytes in [&b""[..], b"secret", &[0xff; 44], b"c2hvcnQ="] {
            fs::write(&place, bytes).expect("write");
            let error = load(&place, || panic!("not made anew")).expect_err("no key").to_string();
            assert!(error.contains("wgkey") && !error.contains("secret"), "{error}");
        }
        fs::remove_file(&place).expect("remove");
        fs::create_dir(&place).expect("a directory in its place");
        let error = load(&place, || panic!("not made")).expect_err("no key").to_string();
        assert!(error.contains("WIREGUARD_KEY_FILE"), "{error}");
        let set = |value: &'static str| path(|name| (name == "WIREGUARD_KEY_FILE").then(|| value.into()));
        assert_eq!((set("/a/b"), set("")), (PathBuf::from("/a/b"), PathBuf::from("/run/flannel/wgkey")));
    }
}
