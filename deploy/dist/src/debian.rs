//! Packages of Debian for the image: downloaded for an architecture, unpacked, and reduced to the programs
//! that are wanted, with the libraries that they need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;
use crate::command::{read, run};
use crate::layer::Layer;
use crate::output::sum;

/// The suite of the image.
const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How programs and libraries begin.
pub(crate) const ELF: &[u8] = b"\x7fELF";
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

/// Unpacked packages, each in a directory of its own.
#[derive(Debug)]
pub(crate) struct Unpacked {
    packages: BTreeMap<String, Package>,
    /// The paths that a layer has got, with the packages that they are from.
    taken: BTreeMap<String, String>,
    /// The newest time of a file, in seconds since 1970.
    pub time: u64,
}

#[derive(Debug)]
struct Package {
    root: PathBuf,
    version: String,
    control: String,
}

/// A package as the mirror offers it.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    file: String,
    /// The SHA-256.
    sum: String,
}

/// Downloads what is missing, and unpacks all into a directory.
pub(crate) fn unpack(
    cache: &Path,
    into: &Path,
    arch: Arch,
    wanted: &Wanted,
    offline: bool,
) -> Result<Unpacked> {
    let place = cache.join("debian").join(arch.debian());
    fs::create_dir_all(place.join("lists/partial"))?;
    fs::create_dir_all(place.join("archives/partial"))?;
    // Runs with other outputs share these files.
    let lock = File::create(place.join("lock"))?;
    lock.lock()?;
    let names: Vec<&String> = wanted.packages.keys().collect();
    let archives = download(&place, arch, &names, offline)?;
    let mut unpacked = Unpacked { packages: BTreeMap::new(), taken: BTreeMap::new(), time: 0 };
    for archive in archives {
        let control = read(Command::new("dpkg-deb").arg("--field").arg(&archive))?;
        let field = |name: &str| control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let (name, version) = (field("Package"), field("Version"));
        let (name, version) = name.zip(version).context("a package without name or version")?;
        let (name, version, root) = (name.to_owned(), version.to_owned(), into.join(name));
        run(Command::new("dpkg-deb").arg("--extract").args([&archive, &root]))
            .with_context(|| format!("cannot unpack {name}; is the disk of {} full?", into.display()))?;
        unpacked.packages.insert(name, Package { root, version, control });
    }
    Ok(unpacked)
}

/// Returns the packages' archives, complete and as the mirror's signed lists describe them.
fn download(place: &Path, arch: Arch, names: &[&String], offline: bool) -> Result<Vec<PathBuf>> {
    configure(place, arch)?;
    update(place, arch, offline)?;
    let offers = read(apt(place).args(["download", "--print-uris"]).args(names))
        .with_context(|| format!("{SUITE} lacks a package of deploy/image/packages"))?;
    let offers = offers.lines().map(offer).collect::<Result<Vec<Offer>>>()?;
    ensure!(offers.len() == names.len(), "apt offers {} packages for {} names", offers.len(), names.len());
    let archives = place.join("archives");
    let missing = || -> Vec<&str> {
        let whole = |offer: &Offer| sum(&archives.join(&offer.file)).is_ok_and(|sum| sum == offer.sum);
        offers.iter().filter(|offer| !whole(offer)).map(|offer| offer.file.as_str()).collect()
    };
    let lacking = missing();
    if !lacking.is_empty() {
        ensure!(!offline, "not downloaded yet: {}; run once without --offline", lacking.join(", "));
        eprintln!("== downloading {} packages of {SUITE} for {}", lacking.len(), arch.debian());
        for file in lacking {
            // What an interrupted run has left.
            remove(&archives.join(file))?;
        }
        run(apt(place).current_dir(&archives).args(["download", "--quiet=2"]).args(names))
            .with_context(|| format!("cannot download {}", missing().join(", ")))?;
        let lacking = missing();
        ensure!(lacking.is_empty(), "not as the lists describe them: {}", lacking.join(", "));
    }
    Ok(offers.iter().map(|offer| archives.join(&offer.file)).collect())
}

/// Reads the suite's lists again if they are old.
fn update(place: &Path, arch: Arch, offline: bool) -> Result<()> {
    let stamp = place.join("updated");
    let read_at = fs::metadata(&stamp).and_then(|data| data.modified()).ok();
    let age = read_at.map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
    if age.is_some_and(|age| age < FRESH || offline) {
        return Ok(());
    }
    ensure!(
        !offline,
        "{SUITE}'s lists for {} were not downloaded yet; run once without --offline",
        arch.debian()
    );
    eprintln!("== downloading {SUITE}'s lists for {}", arch.debian());
    let updated = run(apt(place).args(["update", "--quiet=2", "--option=APT::Update::Error-Mode=any"]));
    match (updated, age) {
        (Ok(()), _) => Ok(fs::write(&stamp, "")?),
        // Without a network the earlier ones serve.
        (Err(error), Some(age)) => {
            let days = age.as_secs() / 86_400;
            eprintln!("deploy/release: {error:#}; using {SUITE}'s lists of {days} days ago");
            Ok(())
        }
        (Err(error), None) => Err(error).with_context(|| format!("cannot download {SUITE}'s lists")),
    }
}

/// Parses a line of `apt-get download --print-uris`: 'URI' FILE SIZE SHA256:SUM.
fn offer(line: &str) -> Result<Offer> {
    let mut words = line.split(' ').skip(1);
    let (file, sum) = words.next().zip(words.nth(1)).with_context(|| format!("apt printed {line:?}"))?;
    let sum = sum.strip_prefix("SHA256:").with_context(|| format!("apt knows no SHA-256 of {file}"))?;
    Ok(Offer { file: file.to_owned(), sum: sum.to_owned() })
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
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
    /// Adds to a layer what is wanted, the libraries that it and these programs need, and for each package
    /// that gave something its licence and its entry for programs that look for packages with known faults.
    pub(crate) fn fill(
        &mut self,
        layer: &mut Layer,
        arch: Arch,
        wanted: &Wanted,
        programs: &[PathBuf],
    ) -> Result<()> {
        let libraries = format!("usr/lib/{}", arch.multiarch());
        let mut queue: VecDeque<String> = VecDeque::new();
        for path in wanted.packages.values().flatten() {
            let path = path.replace("MULTIARCH", &arch.multiarch());
            match path.strip_suffix('*').and_then(|start| start.rsplit_once('/')) {
                None => queue.push_back(path),
                Some((directory, prefix)) => {
                    let names = self.list(directory)?;
                    let names = names.iter().filter(|name| name.starts_with(prefix));
                    queue.extend(names.map(|name| format!("{directory}/{name}")));
                }
            }
        }
        for program in programs {
            queue.extend(needs(program, &libraries)?);
        }
        while let Some(path) = queue.pop_front() {
            if self.taken.contains_key(&path) {
                continue;
            }
            let file = self.take(&path)?;
            let data = fs::symlink_metadata(&file)?;
            let time = data.modified()?.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            self.time = self.time.max(time);
            if data.is_symlink() {
                let target = fs::read_link(&file)?.to_string_lossy().into_owned();
                layer.link(&path, &target)?;
                queue.push_back(follow(&path, &target)?);
                continue;
            }
            layer.copy(&path, &file, if data.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 })?;
            if fs::read(&file)?.starts_with(ELF) {
                queue.extend(needs(&file, &libraries)?);
            }
        }
        self.describe(layer)
    }

    /// Adds the certificate authorities to a layer, all in one file.
    pub(crate) fn authorities(&mut self, layer: &mut Layer) -> Result<()> {
        let directory = "usr/share/ca-certificates/mozilla";
        let mut text = String::new();
        for name in self.list(directory)? {
            text += &fs::read_to_string(self.take(&format!("{directory}/{name}"))?)?;
        }
        ensure!(text.contains("BEGIN CERTIFICATE"), "the package of certificate authorities has none");
        layer.file("etc/ssl/certs/ca-certificates.crt", text, 0o644)
    }

    /// Returns the packages that gave something, with their versions.
    pub(crate) fn versions(&self) -> BTreeMap<&str, &str> {
        let packages = self.taken.values().filter_map(|name| self.packages.get_key_value(name));
        packages.map(|(name, package)| (name.as_str(), package.version.as_str())).collect()
    }

    /// Adds the licences and entries of the packages that gave something.
    fn describe(&mut self, layer: &mut Layer) -> Result<()> {
        let mut queue: VecDeque<String> = self.versions().into_keys().map(str::to_owned).collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = queue.pop_front() {
            let Some(package) = self.packages.get(&name) else {
                bail!("the licence of a package is in {name}: add it to deploy/image/packages");
            };
            if !seen.insert(name.clone()) {
                continue;
            }
            let entry = format!("var/lib/dpkg/status.d/{name}");
            layer.file(&entry, package.control.as_bytes(), 0o644)?;
            let documents = format!("usr/share/doc/{name}");
            // The packages of one source may share a directory.
            if let Ok(target) = fs::read_link(package.root.join(&documents)) {
                let target = target.to_string_lossy().into_owned();
                layer.link(&documents, &target)?;
                queue.push_back(target);
            } else {
                let licence = format!("{documents}/copyright");
                layer.copy(&licence, &package.root.join(&licence), 0o644)?;
                self.taken.insert(licence, name);
            }
        }
        Ok(())
    }

    /// Returns where a path lies, and remembers whose it is.
    fn take(&mut self, path: &str) -> Result<PathBuf> {
        let found = self.packages.iter().find_map(|(name, package)| {
            let file = package.root.join(path);
            fs::symlink_metadata(&file).is_ok().then_some((name, file))
        });
        let (name, file) =
            found.with_context(|| format!("no package has /{path}; see deploy/image/packages"))?;
        self.taken.insert(path.to_owned(), name.clone());
        Ok(file)
    }

    /// Returns the names in a directory, in order.
    fn list(&self, directory: &str) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for package in self.packages.values() {
            for entry in fs::read_dir(package.root.join(directory)).into_iter().flatten() {
                names.insert(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        ensure!(!names.is_empty(), "no package has /{directory}; see deploy/image/packages");
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
    fn an_offer_has_a_file_and_its_sum() {
        let line = "'http://a.example/z/zlib1g_1.3_amd64.deb' zlib1g_1%3a1.3_amd64.deb 9 SHA256:ab";
        let expected = Offer { file: "zlib1g_1%3a1.3_amd64.deb".to_owned(), sum: "ab".to_owned() };
        assert_eq!(offer(line).expect("an offer"), expected);
        for (line, expected) in [
            ("", "apt printed \"\""),
            ("'http://a.example/x.deb' x.deb", "apt printed \"'http://a.example/x.deb' x.deb\""),
            ("'http://a.example/x.deb' x.deb 9 MD5Sum:ab", "apt knows no SHA-256 of x.deb"),
        ] {
            assert_eq!(offer(line).expect_err("no offer").to_string(), expected);
        }
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
