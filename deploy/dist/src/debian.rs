//! Packages of Debian for the image: downloaded for an architecture, unpacked, and reduced to the programs
//! that are wanted, with the libraries that they need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;
use crate::command::{read, run};
use crate::layer::Layer;

/// The suite of the image.
const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists of packages that are younger are not read again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// The packages of an image, and what is taken from each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    packages: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    /// Parses lines of a package's name and the paths to take; libraries are taken as they are needed.
    pub(crate) fn parse(text: &str) -> Wanted {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let words = lines.map(|line| line.split_whitespace().map(str::to_owned));
        let packages = words.filter_map(|mut words| Some((words.next()?, words.collect())));
        Wanted { packages: packages.collect() }
    }
}

/// Unpacked packages.
#[derive(Debug)]
pub(crate) struct Unpacked {
    root: PathBuf,
    /// The versions by name.
    pub versions: BTreeMap<String, String>,
    /// The packages' control files by name.
    control: BTreeMap<String, String>,
    /// The newest time of a file, in seconds since 1970.
    pub time: u64,
}

/// Downloads what is missing, and unpacks all.
pub(crate) fn unpack(cache: &Path, arch: Arch, wanted: &Wanted, offline: bool) -> Result<Unpacked> {
    let place = cache.join("debian").join(arch.debian());
    let root = place.join("root");
    fs::create_dir_all(place.join("lists/partial"))?;
    fs::create_dir_all(place.join("archives/partial"))?;
    configure(&place, arch)?;
    let stamp = place.join("updated");
    let age = fs::metadata(&stamp).and_then(|data| data.modified()).ok();
    let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
    if age.is_none_or(|age| age > FRESH) {
        ensure!(!offline || age.is_some(), "{SUITE}'s lists are not there; run once without --offline");
        if !offline {
            run(apt(&place).args(["update", "--quiet=2"])).with_context(|| {
                format!("cannot read {SUITE}'s lists; with --offline those of an earlier run serve")
            })?;
            fs::write(&stamp, "")?;
        }
    }
    let names: Vec<&String> = wanted.packages.keys().collect();
    // Each line: 'URI' FILE SIZE SUM.
    let listed = read(apt(&place).args(["download", "--print-uris"]).args(&names))?;
    let files: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    ensure!(files.len() == names.len(), "apt lists {} files for {} packages", files.len(), names.len());
    let archives = place.join("archives");
    let missing = files.iter().filter(|file| !archives.join(file).is_file()).count();
    if missing > 0 {
        ensure!(!offline, "{missing} packages of {SUITE} are not there; run once without --offline");
        run(apt(&place).current_dir(&archives).args(["download", "--quiet=2"]).args(&names))?;
    }
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&root)?,
    }
    let mut unpacked = Unpacked { root, versions: BTreeMap::new(), control: BTreeMap::new(), time: 0 };
    for file in files {
        let file = archives.join(file);
        run(Command::new("dpkg-deb").arg("--extract").args([&file, &unpacked.root]))?;
        let control = read(Command::new("dpkg-deb").arg("--field").arg(&file))?;
        let field = |name: &str| control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let (name, version) = (field("Package"), field("Version"));
        let (name, version) = name.zip(version).context("a package without name or version")?;
        unpacked.versions.insert(name.to_owned(), version.to_owned());
        unpacked.control.insert(name.to_owned(), control);
    }
    Ok(unpacked)
}

fn apt(place: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("APT_CONFIG", place.join("apt.conf")).env("LC_ALL", "C");
    apt
}

/// Writes a configuration that shares nothing with this machine's but the mirror.
fn configure(place: &Path, arch: Arch) -> Result<()> {
    let mirrors = mirrors()?;
    let mut sources = String::new();
    for (mirror, suite) in mirrors {
        sources += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    }
    fs::write(place.join("sources.list"), sources)?;
    fs::write(place.join("status"), "")?;
    let path = place.display();
    let text = format!(
        "APT::Architecture \"{0}\";\nAPT::Architectures {{ \"{0}\"; }};\nAPT::Sandbox::User \"root\";\n\
         Dir::Etc::sourcelist \"{path}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Dir::State::Lists \"{path}/lists\";\nDir::State::status \"{path}/status\";\n\
         Dir::Cache \"{path}\";\nAcquire::Languages \"none\";\n",
        arch.debian()
    );
    Ok(fs::write(place.join("apt.conf"), text)?)
}

/// Returns the mirrors of the suite and of its security updates: those that this machine uses.
fn mirrors() -> Result<Vec<(String, String)>> {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        texts.extend(entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()));
    }
    let found = choose(&texts.join("\n"));
    ensure!(!found.is_empty(), "no mirror of Debian in /etc/apt; the image is made of Debian's packages");
    Ok(found)
}

fn choose(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.flat_map(str::split_whitespace).filter(|word| word.starts_with("http"));
    let clean: Vec<&str> = words.map(|word| word.trim_end_matches('/')).collect();
    let main = clean.iter().find(|word| word.ends_with("/debian"));
    let security = clean.iter().find(|word| word.ends_with("/debian-security"));
    let main = main.map(|mirror| ((*mirror).to_owned(), SUITE.to_owned()));
    let security = security.map(|mirror| ((*mirror).to_owned(), format!("{SUITE}-security")));
    main.into_iter().chain(security).collect()
}

impl Unpacked {
    /// Adds to a layer what is wanted, the libraries that it needs, each package's licence and its entry for
    /// programs that look for packages with known faults.
    pub(crate) fn fill(&mut self, layer: &mut Layer, arch: Arch, wanted: &Wanted) -> Result<()> {
        let libraries = format!("usr/lib/{}", arch.multiarch());
        let mut queue: VecDeque<String> = VecDeque::new();
        for path in wanted.packages.values().flatten() {
            let path = path.replace("MULTIARCH", &arch.multiarch());
            match path.strip_suffix("/*") {
                None => queue.push_back(path),
                Some(directory) => {
                    for entry in self.list(directory)? {
                        queue.push_back(format!("{directory}/{entry}"));
                    }
                }
            }
        }
        let mut seen = BTreeSet::new();
        while let Some(path) = queue.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let file = self.root.join(&path);
            let data = fs::symlink_metadata(&file)
                .with_context(|| format!("no package has /{path}; see deploy/image/packages"))?;
            let time = data.modified()?.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            self.time = self.time.max(time);
            if data.is_symlink() {
                let target = fs::read_link(&file)?.to_string_lossy().into_owned();
                layer.link(&path, &target)?;
                queue.push_back(follow(&path, &target)?);
                continue;
            }
            layer.copy(&path, &file, if data.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 })?;
            if fs::read(&file)?.starts_with(b"\x7fELF") {
                queue.extend(needs(&file, &libraries)?);
            }
        }
        let taken: BTreeSet<String> = seen;
        for (name, control) in &self.control {
            let licence = format!("usr/share/doc/{name}/copyright");
            if let Ok(text) = fs::read(self.root.join(&licence)) {
                layer.file(&licence, text, 0o644)?;
            }
            layer.file(&format!("var/lib/dpkg/status.d/{name}"), control.as_bytes(), 0o644)?;
        }
        ensure!(taken.len() > self.control.len() / 2, "nothing was taken from most packages");
        Ok(())
    }

    /// Returns the certificate authorities, one after the other.
    pub(crate) fn authorities(&self) -> Result<String> {
        let directory = "usr/share/ca-certificates/mozilla";
        let mut text = String::new();
        for name in self.list(directory)? {
            text += &fs::read_to_string(self.root.join(directory).join(name))?;
        }
        ensure!(text.contains("BEGIN CERTIFICATE"), "the package of certificate authorities has none");
        Ok(text)
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.root.join(directory))
            .with_context(|| format!("no package has /{directory}; see deploy/image/packages"))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// Returns the path that a link leads to.
fn follow(path: &str, target: &str) -> Result<String> {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => path.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.pop().is_none() => bail!("/{path} leads out of the root"),
            ".." => {}
            _ => parts.push(part),
        }
    }
    // Debian's /lib is a link to /usr/lib.
    if matches!(parts.first(), Some(&("lib" | "lib64" | "bin" | "sbin"))) {
        parts.insert(0, "usr");
    }
    Ok(parts.join("/"))
}

/// Returns the loader and the libraries that a program or library names.
fn needs(file: &Path, libraries: &str) -> Result<Vec<String>> {
    let text = read(Command::new("readelf").env("LC_ALL", "C").args(["--wide", "-l", "-d"]).arg(file))?;
    let between = |line: &str, start: &str| {
        let rest = line.split_once(start)?.1;
        Some(rest.split_once(']')?.0.to_owned())
    };
    let loader = text.lines().filter_map(|line| between(line, "program interpreter: "));
    let loader = loader.map(|path| follow("", &path));
    let needed = text.lines().filter_map(|line| between(line, "Shared library: ["));
    loader.chain(needed.map(|name| Ok(format!("{libraries}/{name}")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_packages_is_read_line_by_line() {
        let wanted = Wanted::parse("# comment\na usr/bin/a usr/bin/b\n\nlibc6\n");
        let expected = [("a", vec!["usr/bin/a", "usr/bin/b"]), ("libc6", vec![])];
        let owned = |(name, paths): (&str, Vec<&str>)| {
            (name.to_owned(), paths.into_iter().map(str::to_owned).collect())
        };
        assert_eq!(wanted.packages, expected.map(owned).into());
    }

    #[test]
    fn the_mirrors_are_this_machines() {
        let new = "Types: deb\n# http://old.example/debian\nURIs: http://a.example/debian/\nSuites: x\n\n\
                   URIs: http://a.example/debian-security\n";
        let old =
            "deb http://a.example/debian x main\ndeb http://a.example/debian-security x-security main\n";
        let expected =
            [("http://a.example/debian", SUITE), ("http://a.example/debian-security", "trixie-security")];
        let expected = expected.map(|(mirror, suite)| (mirror.to_owned(), suite.to_owned()));
        assert_eq!((choose(new), choose(old)), (expected.to_vec(), expected.to_vec()));
        assert_eq!(choose("URIs: http://a.example/ubuntu"), []);
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        for (path, target, expected) in [
            ("usr/lib/x/liba.so.1", "liba.so.1.2", "usr/lib/x/liba.so.1.2"),
            ("usr/lib64/ld.so", "../lib/x/ld.so", "usr/lib/x/ld.so"),
            ("usr/sbin/iptables", "/etc/alternatives/iptables", "etc/alternatives/iptables"),
            ("", "/lib/ld-linux-aarch64.so.1", "usr/lib/ld-linux-aarch64.so.1"),
        ] {
            assert_eq!(follow(path, target).expect("a path"), expected);
        }
        assert!(follow("a/b", "../../../c").is_err());
    }
}
