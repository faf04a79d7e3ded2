//! Archives of the programs for those who use neither packages nor images.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

use crate::arch::Arch;
use crate::output::Output;
use crate::programs::{PROGRAMS, record};
use crate::source::Source;

/// Packs the programs of one architecture, and their symbols into another archive.
pub(crate) fn build(arch: Arch, source: &Source, output: &Output) -> Result<()> {
    let programs = output.path().join(arch.name());
    let text = |name: &str| source.root.join(name);
    let mut files: Vec<(String, PathBuf, u32)> = vec![
        ("LICENSE".into(), text("LICENSE"), 0o644),
        ("changelog.md".into(), text("docs/changelog.md"), 0o644),
        ("loden.service".into(), text("deploy/systemd/loden.service"), 0o644),
    ];
    let licenses = output.path().join(record(arch, source, "licenses.txt"));
    if licenses.is_file() {
        files.push(("licenses.txt".into(), licenses, 0o644));
    }
    files.extend(PROGRAMS.map(|(program, _)| (program.into(), programs.join(program), 0o755)));
    output.place(&record(arch, source, "tar.gz"), |path| pack(&mut files, source, path))?;
    let symbols = PROGRAMS.map(|(program, _)| format!("{program}.debug"));
    let there = symbols.into_iter().filter(|name| programs.join(name).is_file());
    let mut files: Vec<_> = there.map(|name| (name.clone(), programs.join(name), 0o644)).collect();
    match files.is_empty() {
        true => Ok(()),
        false => output.place(&record(arch, source, "symbols.tar.gz"), |path| pack(&mut files, source, path)),
    }
}

/// Packs files so that the bytes depend on names, modes and contents alone.
fn pack(files: &mut [(String, PathBuf, u32)], source: &Source, path: &Path) -> Result<()> {
    files.sort();
    let gzip = GzBuilder::new().write(File::create(path)?, Compression::best());
    let mut archive = tar::Builder::new(gzip);
    for (name, from, mode) in files {
        let data = fs::read(&*from).with_context(|| format!("cannot read {}", from.display()))?;
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(source.epoch);
        archive.append_data(&mut header, format!("loden-{}/{name}", source.version), &*data)?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn an_archive_depends_on_contents_alone() {
        let place = tempfile::tempdir().expect("a directory");
        let source =
            Source { root: "/".into(), version: "1.2.3", commit: "abc".into(), epoch: 1_000_000_000 };
        let file = |name: &str| place.path().join(name);
        fs::write(file("a"), "one").expect("a file");
        fs::write(file("b"), "two").expect("a file");
        let mut files = vec![("z".into(), file("a"), 0o755), ("y".into(), file("b"), 0o644)];
        pack(&mut files, &source, &file("first")).expect("an archive");
        files.reverse();
        fs::write(file("a"), "one").expect("a newer file");
        pack(&mut files, &source, &file("second")).expect("an archive");
        assert_eq!(fs::read(file("first")).expect("bytes"), fs::read(file("second")).expect("bytes"));
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(file("first")).expect("a file")));
        let found: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                let header = entry.header();
                let numbers = (header.mode().expect("a mode"), header.mtime().expect("a time"));
                (entry.path().expect("a path").display().to_string(), numbers, text)
            })
            .collect();
        let time = source.epoch;
        assert_eq!(
            found,
            [
                ("loden-1.2.3/y".into(), (0o644, time), "two".into()),
                ("loden-1.2.3/z".into(), (0o755, time), "one".into()),
            ]
        );
        let mut lost = vec![("x".into(), file("lost"), 0o644)];
        let error = pack(&mut lost, &source, &file("third")).expect_err("no such file");
        assert!(error.to_string().starts_with("cannot read "), "{error}");
    }
}
