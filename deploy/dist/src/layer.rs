//! Archives whose bytes depend on their content alone: sorted, owned by root, with one time for all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The bits that let a program run as its owner or group.
const SETUID: u32 = 0o6000;

/// Files, links and directories, by their paths from the root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Directory { mode: u32 },
    File { data: Vec<u8>, mode: u32 },
    Link { target: String },
}

/// A compressed archive.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The bytes.
    pub data: Vec<u8>,
    /// The SHA-256 of the archive before compression.
    pub diff: String,
}

impl Layer {
    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, data: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        ensure!(mode & SETUID == 0, "/{path} would run with its owner's rights");
        self.add(path, Entry::File { data: data.into(), mode })
    }

    /// Adds a file of this machine.
    pub(crate) fn copy(&mut self, path: &str, from: &Path, mode: u32) -> Result<()> {
        let data = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, data, mode)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(path, Entry::Link { target: target.to_owned() })
    }

    /// Adds a directory. Those above a file are added with it.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(path, Entry::Directory { mode })
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        let normal = |part| matches!(part, Component::Normal(_));
        ensure!(
            !path.is_empty() && Path::new(path).components().all(normal),
            "{path:?} is no path from the root"
        );
        for parent in Path::new(path).ancestors().skip(1).filter(|parent| *parent != Path::new("")) {
            let parent = parent.to_string_lossy().into_owned();
            match self.entries.entry(parent).or_insert(Entry::Directory { mode: 0o755 }) {
                Entry::Directory { .. } => {}
                _ => bail!("/{path} lies below a file or link"),
            }
        }
        match self.entries.insert(path.to_owned(), entry.clone()) {
            Some(before) if before != entry && !matches!(before, Entry::Directory { .. }) => {
                bail!("/{path} is there twice")
            }
            _ => Ok(()),
        }
    }

    /// Writes the archive, with this time for each entry.
    pub(crate) fn pack(&self, time: u64) -> Result<Packed> {
        let archive = self.archive(time)?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&archive)?;
        Ok(Packed { data: gzip.finish()?, diff: digest(&archive) })
    }

    /// Writes files and directories into a new directory, without their modes.
    pub(crate) fn unpack(&self, into: &Path) -> Result<()> {
        fs::create_dir_all(into)?;
        for (path, entry) in &self.entries {
            let path = into.join(path);
            match entry {
                Entry::Directory { .. } => fs::create_dir_all(path)?,
                Entry::File { data, .. } => fs::write(path, data)?,
                Entry::Link { target } => symlink(target, path)?,
            }
        }
        Ok(())
    }

    /// Writes the archive without compression.
    pub(crate) fn archive(&self, time: u64) -> Result<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = Header::new_gnu();
            header.set_mtime(time);
            header.set_uid(0);
            header.set_gid(0);
            match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Entry::File { data, mode } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(data.len() as u64);
                    builder.append_data(&mut header, path, data.as_slice())?;
                }
                Entry::Link { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(builder.into_inner()?)
    }
}

/// Returns the SHA-256 in hexadecimal digits.
pub(crate) fn digest(data: &[u8]) -> String {
    format!("{:x}", Sha256::digest(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_additions_does_not_matter() {
        let mut one = Layer::default();
        one.file("b/c", "x", 0o644).expect("a file");
        one.link("a", "b/c").expect("a link");
        let mut other = Layer::default();
        other.link("a", "b/c").expect("a link");
        other.directory("b", 0o755).expect("a directory");
        other.file("b/c", "x", 0o644).expect("a file");
        let (one, other) = (one.pack(7).expect("a layer"), other.pack(7).expect("a layer"));
        assert_eq!((one.data, one.diff), (other.data, other.diff));
    }

    #[test]
    fn an_archive_has_names_modes_owner_and_time() {
        let mut layer = Layer::default();
        layer.file("opt/bin/x", "data", 0o755).expect("a file");
        layer.directory("tmp", 0o1777).expect("a directory");
        let long = format!("usr/{}/{}", "d".repeat(90), "f".repeat(90));
        layer.link(&long, "x").expect("a link");
        let archive = layer.archive(7).expect("an archive");
        let mut archive = tar::Archive::new(archive.as_slice());
        let entries = archive.entries().expect("entries").map(|entry| {
            let entry = entry.expect("an entry");
            let header = entry.header();
            let path = entry.path().expect("a path").display().to_string();
            assert_eq!(
                (header.uid().ok(), header.gid().ok(), header.mtime().ok()),
                (Some(0), Some(0), Some(7))
            );
            (path, header.mode().expect("a mode"))
        });
        let entries: Vec<(String, u32)> = entries.collect();
        let expected = [("opt/", 0o755), ("opt/bin/", 0o755), ("opt/bin/x", 0o755), ("tmp/", 0o1777)];
        let expected = expected.map(|(path, mode)| (path.to_owned(), mode));
        assert_eq!(entries[..4], expected);
        assert_eq!(entries.last(), Some(&(long, 0o777)));
    }

    #[test]
    fn what_must_not_be_in_an_image_is_refused() {
        let mut layer = Layer::default();
        layer.file("bin/x", "", 0o755).expect("a file");
        for (error, expected) in [
            (layer.file("bin/su", "", 0o4755), "/bin/su would run with its owner's rights"),
            (layer.file("bin/x", "other", 0o755), "/bin/x is there twice"),
            (layer.file("bin/x/y", "", 0o644), "/bin/x/y lies below a file or link"),
            (layer.file("/etc/passwd", "", 0o644), "\"/etc/passwd\" is no path from the root"),
            (layer.link("../x", "y"), "\"../x\" is no path from the root"),
        ] {
            assert_eq!(error.expect_err("it is refused").to_string(), expected);
        }
    }
}
