//! `subnet.env`: the file whose appearance tells the CNI plugin that this node is ready.
//!
//! The file is replaced atomically, after everything that it describes is in place. It is never removed,
//! because a restarted daemon reads its previous subnet from it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use model::subnet_env::{self, Recorded, SubnetEnv};
use store::{Kind, regular};

use crate::persist::atomic_file;

/// A failure to write `subnet.env`.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}; choose another place with --subnet-file")]
pub struct SubnetFileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl SubnetFileError {
    pub(super) fn kind(&self) -> Kind {
        let number = self.source.raw_os_error().unwrap_or_default();
        Kind::new("subnet file").of(self.what).of(number).of(self.source.kind())
    }
}

/// Writes the file unless it already has this content. Returns true if it was written.
///
/// The file has mode 0644 regardless of the umask; missing directories are created with mode 0755.
pub fn apply(path: &Path, desired: &SubnetEnv) -> Result<bool, SubnetFileError> {
    let text = subnet_env::render(desired);
    let failed = |what| move |source| SubnetFileError { what, path: path.to_owned(), source };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(atomic_file::parent(path))
        .map_err(failed("create the directory of"))?;
    atomic_file::write(path, text.as_bytes(), 0o644).map_err(|error| failed(error.what)(error.source))
}

/// Returns the error for a file whose filesystem does not answer.
pub(super) fn unanswered(path: &Path, source: io::Error) -> SubnetFileError {
    SubnetFileError { what: "write", path: path.to_owned(), source }
}

/// Returns true if the file already has this content.
pub fn is_written(path: &Path, desired: &SubnetEnv) -> bool {
    let text = subnet_env::render(desired);
    regular::read(path, text.len() as u64).is_ok_and(|present| present == text.as_bytes())
}

/// Reads what an earlier run wrote; `None` if there is no readable file.
pub fn previous(path: &Path) -> Option<Recorded> {
    let text = match regular::read_to_string(path, regular::USUAL) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(
                path = %path.display(), %error,
                "cannot read the previous subnet file; ignoring it"
            );
            return None;
        }
    };
    let recorded = subnet_env::parse(&text);
    for problem in &recorded.problems {
        tracing::warn!(path = %path.display(), "{problem}");
    }
    Some(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn written_once_with_the_right_mode_and_nothing_beside_it() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("run/flannel/subnet.env");
        assert!(apply(&path, &env(1450)).expect("first"));
        assert!(!apply(&path, &env(1450)).expect("same again"));
        assert!(apply(&path, &env(1400)).expect("changed"));
        let mode = fs::metadata(&path).expect("file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(fs::read_dir(path.parent().expect("parent")).expect("list").count(), 1);
        assert_eq!(previous(&path).expect("readable").mtu, Some(1400));
    }

    #[test]
    fn a_failure_leaves_the_old_file_alone_and_names_the_path() {
        let directory = tempfile::tempdir().expect("directory");
        let blocker = directory.path().join("file");
        fs::write(&blocker, "in the way").expect("write");
        let path = blocker.join("subnet.env");
        let error = apply(&path, &env(1450)).expect_err("a file is no directory").to_string();
        assert!(error.contains("subnet.env") && error.contains("--subnet-file"), "{error}");
        assert_eq!(fs::read_to_string(&blocker).expect("read"), "in the way");
    }

    #[test]
    fn a_device_is_not_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("subnet.env");
        std::os::unix::fs::symlink("/dev/null", &path).expect("a link");
        let error = apply(&path, &env(1450)).expect_err("a device").to_string();
        assert!(error.contains("it is a device") && error.contains("--subnet-file"), "{error}");
        assert!(path.is_symlink() && !is_written(&path, &env(1450)));
    }

    #[test]
    fn no_file_means_no_previous_subnet() {
        let directory = tempfile::tempdir().expect("directory");
        assert_eq!(previous(&directory.path().join("none")), None);
    }

    fn env(mtu: u32) -> SubnetEnv {
        let network = |text: &str| text.parse().expect("network");
        SubnetEnv {
            ipv4: Some((network("10.5.0.0/16"), network("10.5.1.0/24"))),
            ipv6: None,
            mtu,
            ip_masq: false,
        }
    }
}
