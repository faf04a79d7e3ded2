//! Atomic replacement of a file.
//!
//! The new file is written beside the old one, synced, and renamed over it: a reader sees the old bytes or
//! the new ones, and a program that runs from the old file continues.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use store::regular;

/// The permission bits of a mode.
const MODE_BITS: u32 = 0o7777;

/// A file that could not be replaced, with the step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct WriteError {
    /// The step that failed, as an imperative followed by the path.
    pub what: &'static str,
    /// The file to replace.
    pub path: PathBuf,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

/// Replaces the file unless it has these bytes and this mode already. Returns true if it was written. The
/// umask has no effect.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, WriteError> {
    let mode = mode & MODE_BITS;
    if is_already_so(path, bytes, mode) {
        return Ok(false);
    }
    let failed = |what| move |source| WriteError { what, path: path.to_owned(), source };
    let directory = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // In the same directory, since a rename is atomic only within one filesystem. On an error, dropping the
    // temporary file removes it.
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .tempfile_in(directory)
        .map_err(failed("create a temporary file for"))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed("write"))?;
    file.persist(path).map_err(|error| failed("rename a temporary file to")(error.error))?;
    // The rename survives a power failure only once the directory is synced as well.
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory of"))?;
    Ok(true)
}

/// Returns the directory that contains the path.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_already_so(path: &Path, bytes: &[u8], mode: u32) -> bool {
    fs::metadata(path).is_ok_and(|there| {
        there.is_file() && there.len() == bytes.len() as u64 && there.mode() & MODE_BITS == mode
    }) && regular::read(path, bytes.len() as u64).is_ok_and(|there| there == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_bytes_or_mode_is_written() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        assert!(write(&path, b"one", 0o644).expect("first"));
        assert!(!write(&path, b"one", 0o644).expect("same"));
        assert!(write(&path, b"two", 0o644).expect("bytes"));
        assert!(write(&path, b"two", 0o755).expect("mode"));
        let there = fs::metadata(&path).expect("file");
        assert_eq!((fs::read(&path).expect("read"), there.mode() & MODE_BITS), (b"two".to_vec(), 0o755));
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn an_open_file_keeps_its_bytes() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        write(&path, b"old", 0o644).expect("first");
        let mut reader = File::open(&path).expect("open");
        write(&path, b"new", 0o644).expect("second");
        assert_eq!(io::read_to_string(&mut reader).expect("read"), "old");
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_no_other() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("a directory in the way");
        let error = write(&path, b"bytes", 0o644).expect_err("a directory").to_string();
        assert!(error.contains("taken"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }
}
