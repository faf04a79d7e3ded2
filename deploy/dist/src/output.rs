//! The directory of the release: one run at a time, and no half file under a final name.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Where files are made, inside the directory so that they can be renamed.
const PARTIAL: &str = ".partial";
const LOCK: &str = ".lock";
const SUMS: &str = "SHA256SUMS";

/// The directory of the release.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    _lock: File,
}

impl Output {
    /// Opens the directory, and removes what an interrupted run left unfinished.
    pub(crate) fn open(path: &Path) -> Result<Output> {
        let told = || format!("cannot write to {}", path.display());
        fs::create_dir_all(path).with_context(told)?;
        let path = path.canonicalize().with_context(told)?;
        let lock = File::create(path.join(LOCK)).with_context(told)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another run writes to {}", path.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(told),
        }
        let output = Output { path, _lock: lock };
        output.clear().with_context(told)?;
        Ok(output)
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file or directory by `make`, and gives it its name when that succeeded.
    pub(crate) fn place(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let partial = self.path.join(PARTIAL);
        let made = partial.join(name);
        let told = || format!("cannot make {name}");
        fs::create_dir_all(made.parent().unwrap_or(&partial)).with_context(told)?;
        let done = make(&made).and_then(|()| self.rename(&made, name).map_err(anyhow::Error::from));
        if done.is_err() {
            // The reason matters more than what cannot be removed; the next run tries again.
            let _ = self.clear();
        }
        done.with_context(told)
    }

    /// Gives `work` a directory of this name for files that are no part of the release.
    pub(crate) fn work(&self, name: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let place = self.path.join(PARTIAL).join(format!("work-{name}"));
        fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
        let done = work(&place);
        // The next run removes what stays.
        let _ = fs::remove_dir_all(&place);
        done
    }

    /// Lists the sums of all files, sorted by name, as `sha256sum --check` reads them.
    pub(crate) fn sums(&self) -> Result<()> {
        let mut files = Vec::new();
        walk(&self.path, &mut files).context("cannot list the files")?;
        files.sort();
        let mut text = String::new();
        for file in &files {
            let name = file.strip_prefix(&self.path)?.display().to_string();
            if name != SUMS && name != LOCK {
                text += &format!("{}  {name}\n", sum(file)?);
            }
        }
        self.place(SUMS, |path| Ok(fs::write(path, text)?))
    }

    fn rename(&self, made: &Path, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        }
        if made.is_file() {
            File::open(made)?.sync_all()?;
        }
        fs::rename(made, path)
    }

    fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.path.join(PARTIAL)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Empty directories, or what the next run removes.
        let _ = self.clear();
        let _ = fs::remove_file(self.path.join(LOCK));
    }
}

/// Returns the SHA-256 of a file in hexadecimal digits.
pub(crate) fn sum(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let told = || format!("cannot read {}", path.display());
    io::copy(&mut File::open(path).with_context(told)?, &mut hash).with_context(told)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Gives each file below a directory this time, in seconds since 1970.
pub(crate) fn touch(directory: &Path, time: u64) -> Result<()> {
    let mut files = Vec::new();
    walk(directory, &mut files)?;
    for file in &files {
        File::open(file)?.set_modified(UNIX_EPOCH + Duration::from_secs(time))?;
    }
    Ok(())
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true if entry.file_name() == PARTIAL => {}
            true => walk(&entry.path(), files)?,
            false => files.push(entry.path()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let place = tempfile::tempdir().expect("a directory");
        let output = Output::open(place.path()).expect("an output");
        output.place("a/one", |path| Ok(fs::write(path, "old")?)).expect("a file");
        let error = output.place("a/one", |path| {
            fs::write(path, "ne")?;
            bail!("disk full")
        });
        assert_eq!(format!("{:#}", error.expect_err("it failed")), "cannot make a/one: disk full");
        assert_eq!(fs::read_to_string(place.path().join("a/one")).expect("the old one"), "old");
        output.place("a/one", |path| Ok(fs::write(path, "new")?)).expect("a file");
        output.place("b", |path| Ok(fs::write(path, "")?)).expect("a file");
        output.sums().expect("sums");
        let sums = fs::read_to_string(place.path().join(SUMS)).expect("sums");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(sums.ends_with(&format!("  a/one\n{empty}  b\n")), "{sums}");
        drop(output);
        let names: Vec<_> =
            fs::read_dir(place.path()).expect("files").map(|entry| entry.expect("one").file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn a_second_run_is_refused_and_leftovers_are_removed() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(place.path().join(PARTIAL).join("x86_64")).expect("a leftover");
        let first = Output::open(place.path()).expect("an output");
        assert!(!place.path().join(PARTIAL).exists());
        let error = Output::open(place.path()).expect_err("it is taken");
        assert!(error.to_string().starts_with("another run writes to "), "{error}");
        drop(first);
        Output::open(place.path()).expect("it is free again");
    }
}
