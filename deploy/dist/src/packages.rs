//! Packages for Debian and for Fedora and its like, by nfpm from the descriptions in `deploy/packages`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

use crate::arch::Arch;
use crate::command::{read, run};
use crate::output::{Output, touch};
use crate::programs::record;
use crate::source::Source;
use crate::toolchain::Toolchain;

/// Where loden.service expects the program, and where packages put it.
const MOVED: (&str, &str) = ("/usr/local/bin/loden", "/usr/bin/loden");
const MAINTAINER: &str = "The loden authors <loden@localhost.localdomain>";
/// What stands in a description for each manual page.
const PAGES: &str = "*.gz";
/// The licences of all that is linked.
const LICENSES: &str = "licenses.gz";

/// A format of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Debian's.
    Deb,
    /// Fedora's.
    Rpm,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Deb => "deb",
            Format::Rpm => "rpm",
        }
    }

    fn file(self, package: &str, version: &str, arch: Arch) -> String {
        // nfpm writes the version of a preview so too: it comes before the version without one.
        let version = version.replacen('-', "~", 1);
        match self {
            Format::Deb => format!("{package}_{version}-1_{}.deb", arch.debian()),
            Format::Rpm => format!("{package}-{version}-1.{}.rpm", arch.name()),
        }
    }
}

/// Builds the packages of one architecture.
pub(crate) fn build(
    arch: Arch,
    formats: &[Format],
    source: &Source,
    toolchain: &Toolchain,
    output: &Output,
) -> Result<()> {
    let nfpm = present(toolchain.tool("nfpm"), toolchain.cache())?;
    output.work("packages", |stage| {
        fill(stage, arch, source, output)?;
        for package in ["loden", "loden-cni"] {
            for format in formats {
                output.place(&format.file(package, source.version, arch), |path| {
                    run(Command::new(&nfpm)
                        .current_dir(stage)
                        .args(["package", "--packager", format.name(), "--config"])
                        .arg(format!("{package}.yaml"))
                        .arg("--target")
                        .arg(path)
                        .env("LODEN_ARCH", arch.debian())
                        .env("LODEN_MAINTAINER", MAINTAINER)
                        .env("LODEN_VERSION", source.version)
                        .env("SOURCE_DATE_EPOCH", source.epoch.to_string())
                        .stdout(Stdio::null()))
                })?;
            }
        }
        Ok(())
    })
}

/// Refuses a tool that somebody has removed from the cache, which counts as complete.
fn present(tool: PathBuf, cache: &Path) -> Result<PathBuf> {
    let told = || format!("{} is missing; remove {} and start again", tool.display(), cache.display());
    ensure!(tool.is_file(), told());
    Ok(tool)
}

/// Lays out what the descriptions name.
fn fill(stage: &Path, arch: Arch, source: &Source, output: &Output) -> Result<()> {
    for program in ["loden", "loden-cni"] {
        fs::copy(output.path().join(arch.name()).join(program), stage.join(program))
            .with_context(|| format!("cannot read {program} of {}", arch.name()))?;
    }
    let deploy = source.root.join("deploy");
    let text =
        |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    for (from, to) in
        [("systemd/loden.service", "loden.service"), ("systemd/docker.service.d/loden.conf", "docker.conf")]
    {
        fs::write(stage.join(to), text(deploy.join(from))?.replace(MOVED.0, MOVED.1))?;
    }
    for entry in fs::read_dir(deploy.join("packages")).context("cannot list deploy/packages")? {
        let entry = entry?;
        fs::copy(entry.path(), stage.join(entry.file_name()))?;
    }
    zip(text(source.root.join("docs/changelog.md"))?.as_bytes(), &stage.join("changelog.gz"))?;
    zip(text(deploy.join("packages/loden-cni.1"))?.as_bytes(), &stage.join("loden-cni.1.gz"))?;
    fs::write(stage.join("changelog.yaml"), changelog(source))?;
    // Programs that another run has built may come without.
    let licenses = output.path().join(record(arch, source, "licenses.txt"));
    if licenses.is_file() {
        zip(text(licenses)?.as_bytes(), &stage.join(LICENSES))?;
    }
    let pages = generate(stage, arch, output)?;
    for name in ["loden.yaml", "loden-cni.yaml"] {
        let description = describe(&text(deploy.join("packages").join(name))?, &pages, stage);
        fs::write(stage.join(name), description)?;
    }
    touch(stage, source.epoch)
}

/// Writes the entry for the systems' own changelogs, in the form of nfpm's.
fn changelog(source: &Source) -> String {
    format!(
        "- semver: {}-1\n  date: {}\n  packager: {MAINTAINER}\n  \
         deb: {{urgency: medium, distributions: [stable]}}\n  changes:\n    \
         - note: Release {}; changelog.gz has what is new.\n",
        source.version,
        source.time(),
        source.version
    )
}

/// Repeats the lines of all manual pages for each page, because nfpm has no patterns for documentation, and
/// leaves out those of licences that are not there.
fn describe(description: &str, pages: &[String], stage: &Path) -> String {
    let lines = description.lines().flat_map(|line| match line {
        line if line.contains(PAGES) => pages.iter().map(|page| line.replace(PAGES, page)).collect(),
        line if line.contains(LICENSES) && !stage.join(LICENSES).is_file() => Vec::new(),
        line => vec![line.to_owned()],
    });
    lines.map(|line| line + "\n").collect()
}

/// Takes completions and manual pages out of the program that this machine can run, and returns the pages'
/// names.
fn generate(stage: &Path, arch: Arch, output: &Output) -> Result<Vec<String>> {
    let host = Arch::host().filter(|host| output.path().join(host.name()).join("loden").is_file());
    let loden = output.path().join(host.unwrap_or(arch).name()).join("loden");
    let told = "cannot take completions and manual pages out of loden; with --target name this machine's \
                architecture too, or install qemu-user-static and binfmt-support";
    fs::create_dir_all(stage.join("completions"))?;
    for (shell, name) in [("bash", "loden.bash"), ("zsh", "_loden"), ("fish", "loden.fish")] {
        let text = read(Command::new(&loden).args(["completions", shell])).context(told)?;
        fs::write(stage.join("completions").join(name), text)?;
    }
    let pages = stage.join("pages");
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(stage.join("manual"))?;
    run(Command::new(&loden).arg("manual").arg(&pages)).context(told)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&pages)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned() + ".gz";
        zip(&fs::read(entry.path())?, &stage.join("manual").join(&name))?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// Compresses without the name and the time, so that the bytes depend on the content alone.
fn zip(mut data: &[u8], path: &Path) -> Result<()> {
    let mut gzip = GzBuilder::new().write(File::create(path)?, Compression::best());
    std::io::copy(&mut data, &mut gzip)?;
    gzip.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests;
