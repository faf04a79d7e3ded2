//! `deploy/release --only image`, from programs that stand for ours: twice the same, complete, and without
//! what an image must not have; and what it says when something is missing or ends it.

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use lab::{Namespace, Needs, mounts};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TOOLS: [&str; 4] = ["apt-get", "dpkg-deb", "git", "readelf"];
const ARCHS: [(&str, &str); 2] = [("x86_64", "amd64"), ("aarch64", "arm64")];
/// Every program of the image, and the file that it is.
const EXPECTED: [(&str, &str); 43] = [
    ("bin/cat", "usr/bin/busybox"),
    ("bin/chmod", "usr/bin/busybox"),
    ("bin/cp", "usr/bin/busybox"),
    ("bin/env", "usr/bin/busybox"),
    ("bin/false", "usr/bin/busybox"),
    ("bin/grep", "usr/bin/busybox"),
    ("bin/head", "usr/bin/busybox"),
    ("bin/id", "usr/bin/busybox"),
    ("bin/ip", "usr/bin/ip"),
    ("bin/ls", "usr/bin/busybox"),
    ("bin/mkdir", "usr/bin/busybox"),
    ("bin/mv", "usr/bin/busybox"),
    ("bin/ping", "usr/bin/busybox"),
    ("bin/ping6", "usr/bin/busybox"),
    ("bin/ps", "usr/bin/busybox"),
    ("bin/rm", "usr/bin/busybox"),
    ("bin/sh", "usr/bin/dash"),
    ("bin/sleep", "usr/bin/busybox"),
    ("bin/tail", "usr/bin/busybox"),
    ("bin/true", "usr/bin/busybox"),
    ("flannel", "opt/bin/loden-cni"),
    ("opt/bin/flanneld", "opt/bin/loden"),
    ("opt/bin/install-conf", "opt/bin/loden"),
    ("opt/bin/loden", "opt/bin/loden"),
    ("opt/bin/mk-docker-opts.sh", "opt/bin/loden"),
    ("sbin/ip6tables", "usr/sbin/ip6tables"),
    ("sbin/ip6tables-legacy", "usr/sbin/xtables-legacy-multi"),
    ("sbin/ip6tables-legacy-restore", "usr/sbin/xtables-legacy-multi"),
    ("sbin/ip6tables-legacy-save", "usr/sbin/xtables-legacy-multi"),
    ("sbin/ip6tables-nft", "usr/sbin/xtables-nft-multi"),
    ("sbin/ip6tables-nft-restore", "usr/sbin/xtables-nft-multi"),
    ("sbin/ip6tables-nft-save", "usr/sbin/xtables-nft-multi"),
    ("sbin/ip6tables-restore", "usr/sbin/ip6tables-restore"),
    ("sbin/ip6tables-save", "usr/sbin/ip6tables-save"),
    ("sbin/iptables", "usr/sbin/iptables"),
    ("sbin/iptables-legacy", "usr/sbin/xtables-legacy-multi"),
    ("sbin/iptables-legacy-restore", "usr/sbin/xtables-legacy-multi"),
    ("sbin/iptables-legacy-save", "usr/sbin/xtables-legacy-multi"),
    ("sbin/iptables-nft", "usr/sbin/xtables-nft-multi"),
    ("sbin/iptables-nft-restore", "usr/sbin/xtables-nft-multi"),
    ("sbin/iptables-restore", "usr/sbin/iptables-restore"),
    ("sbin/iptables-save", "usr/sbin/iptables-save"),
    ("sbin/nft", "usr/sbin/nft"),
];

#[test]
fn two_builds_are_equal_and_have_what_they_must_and_nothing_else() {
    if !Needs::default().programs(&TOOLS).are_met() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let programs = programs(place.path());
    let build = |name: &str, epoch: &str, more: &[&str]| {
        let output = place.path().join(name);
        let mut command = dist(&output, &programs);
        succeed(command.env("SOURCE_DATE_EPOCH", epoch).args(more));
        output
    };
    let (one, other) = (build("one", "1700000000", &[]), build("other", "1700000000", &["--offline"]));
    let sums = |output: &Path| fs::read_to_string(output.join("SHA256SUMS")).expect("sums");
    assert_eq!(sums(&one), sums(&other));
    let archives = ["-amd64", "-arm64", ""].map(|end| format!("loden-{VERSION}-image{end}.tar"));
    assert!(archives.iter().all(|name| sums(&one).contains(&format!("  {name}\n"))), "{}", sums(&one));

    for (arch, debian) in ARCHS {
        let files =
            unpack(&fs::read(one.join(format!("loden-{VERSION}-image-{debian}.tar"))).expect("an archive"));
        let image = Image::read(&files, debian);
        image.check_metadata(debian, "2023-11-14T22:13:20Z");
        image.check_files(arch);
        let listed = fs::read_to_string(one.join(format!("loden-{VERSION}-image-{debian}.packages")));
        image.check_packages(&listed.expect("a list"), debian);
        // The index in the directory and in the archive for all names the same image.
        let all = unpack(&fs::read(one.join(&archives[2])).expect("an archive"));
        for (path, data) in &all {
            let laid = fs::read(one.join(format!("loden-{VERSION}-image")).join(path));
            assert_eq!(&laid.expect("a file"), data, "{path}");
        }
        assert_eq!(Image::read(&all, debian).manifest, image.manifest);
    }

    // Another release on the same packages changes one layer of two.
    let later = build("later", "1700000001", &["--offline", "--target", "x86_64"]);
    let layers = |output: &Path| {
        let archive = fs::read(output.join(&archives[0])).expect("an archive");
        Image::read(&unpack(&archive), "amd64").manifest["layers"].clone()
    };
    let (before, after) = (layers(&one), layers(&later));
    assert_eq!((&before[0], before.as_array().map(Vec::len)), (&after[0], Some(2)));
    assert_ne!(before[1], after[1]);
}

#[test]
fn what_cannot_become_an_image_is_named() {
    if !Needs::root().programs(&TOOLS).are_met() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let programs = programs(place.path());
    let output = place.path().join("output");
    let fails = |command: &mut Command, expected: &[&str]| {
        let said = fail(command);
        assert!(expected.iter().all(|word| said.contains(word)), "{said}");
        let names = fs::read_dir(&output).into_iter().flatten().flatten();
        let names: Vec<String> =
            names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert!(!names.iter().any(|name| name.ends_with(".tar") || name == ".partial"), "{names:?}");
    };

    // Programs that are absent, of another architecture, or none.
    let from = |name: &str| place.path().join(name);
    for (name, loden, expected) in [
        ("absent", None, "cannot read "),
        ("foreign", Some(elf(183)), "loden is for aarch64, not for x86_64"),
        ("unknown", Some(elf(243)), "loden is for another architecture, not for x86_64"),
        ("script", Some(b"#!/bin/sh\n".to_vec()), "loden is not a program"),
        ("empty", Some(Vec::new()), "loden is not a program"),
    ] {
        let directory = from(name).join("x86_64");
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("loden-cni"), elf(62)).expect("a file");
        if let Some(loden) = loden {
            fs::write(directory.join("loden"), loden).expect("a file");
        }
        fails(dist(&output, &from(name)).args(["--target", "x86_64"]), &[expected]);
    }
    let mut command = dist(&output, &programs);
    fails(command.env("SOURCE_DATE_EPOCH", "soon"), &["SOURCE_DATE_EPOCH", "is not a number of seconds"]);

    // A tool that is missing.
    let tools = place.path().join("tools");
    fs::create_dir(&tools).expect("a directory");
    for tool in TOOLS.iter().filter(|tool| **tool != "dpkg-deb") {
        symlink(lab::find(tool).expect("asked for before"), tools.join(tool)).expect("a link");
    }
    fails(dist(&output, &programs).env("PATH", &tools), &["dpkg-deb is missing; Debian has it in dpkg"]);

    // Nothing was downloaded, or one package is damaged.
    let cache = place.path().join("cache");
    let offline = || {
        let mut command = dist(&output, &programs);
        command.env("XDG_CACHE_HOME", &cache).args(["--target", "x86_64"]);
        command
    };
    fails(offline().arg("--offline"), &["lists for amd64 were not downloaded yet", "without --offline"]);
    succeed(dist(&output, &programs).args(["--target", "x86_64"]));
    let kept = from_cache().join("loden/release/debian/amd64");
    let copy = cache.join("loden/release/debian/amd64");
    fs::create_dir_all(copy.parent().expect("a directory")).expect("a directory");
    let mut command = Command::new("cp");
    assert!(command.args(["-a", "-T"]).args([&kept, &copy]).status().expect("cp").success());
    let archives = fs::read_dir(copy.join("archives")).expect("archives");
    let dash = archives.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let dash = dash.into_iter().find(|name| name.starts_with("dash_")).expect("a package");
    let damaged = copy.join("archives").join(&dash);
    let whole = fs::read(&damaged).expect("a package");
    fs::write(&damaged, &whole[..whole.len() / 2]).expect("a file");
    for file in fs::read_dir(&output).expect("files").flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|end| end == "tar") {
            fs::remove_file(file).expect("no file");
        }
    }
    let lacks = format!("not downloaded yet: {dash}; run once without --offline");
    fails(offline().arg("--offline"), &[&lacks]);

    // Without a network it is named too, and with all packages there is no need of one, even for old lists.
    let nowhere = Namespace::create(&format!("dist-{}", std::process::id())).expect("a namespace");
    let alone = |mut command: Command| nowhere.output(&mut command).expect("dist");
    let said = String::from_utf8_lossy(&alone(offline()).stderr).into_owned();
    assert!(said.contains("cannot download ") && said.contains(&dash), "{said}");
    fs::write(&damaged, whole).expect("a file");
    let stamp = fs::File::options().write(true).open(copy.join("updated")).expect("a file");
    let old = std::time::SystemTime::now() - Duration::from_secs(3 * 86_400);
    stamp.set_modified(old).expect("a time");
    let done = alone(offline());
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("lists of 3 days ago"), "{said}");
}

#[test]
fn a_full_disk_and_a_kill_leave_no_half_image() {
    if !Needs::root().programs(&TOOLS).are_met() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let programs = programs(place.path());
    let output = place.path().join("output");
    fs::create_dir(&output).expect("a directory");
    let names = || {
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(&output).expect("files").flatten() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names
    };
    let is_image = |name: &String| name.contains("image");
    // Too small for Debian's packages, and for all images.
    for (size, expected, images) in [("4m", "full?", 0), ("40m", "No space left on device", 4)] {
        mounts::private(|| {
            mounts::tmpfs(&output, size).expect("a small disk");
            let said = fail(&mut dist(&output, &programs));
            assert!(said.contains(expected), "{said}");
            assert!(!names().iter().any(|name| name == ".partial" || name == "SHA256SUMS"), "{:?}", names());
            assert!(names().iter().filter(|name| is_image(name)).count() <= images, "{:?}", names());
        })
        .expect("a mount namespace");
    }

    let mut started = dist(&output, &programs).spawn().expect("dist");
    while !output.join(".partial/work-amd64").is_dir() {
        assert!(started.try_wait().expect("wait").is_none(), "it ended before it was killed");
        thread::sleep(Duration::from_millis(5));
    }
    started.kill().expect("a signal");
    started.wait().expect("an end");
    assert!(!names().iter().any(is_image), "{:?}", names());
    succeed(&mut dist(&output, &programs));
    assert!(!names().iter().any(|name| name.starts_with('.')), "{:?}", names());
    assert_eq!(names().iter().filter(|name| is_image(name)).count(), 6, "{:?}", names());
}

/// An image, unpacked.
struct Image {
    manifest: Value,
    config: Value,
    annotations: Value,
    /// The files of all layers. Links have their target, directories nothing.
    files: BTreeMap<String, File>,
}

struct File {
    kind: EntryType,
    mode: u32,
    target: String,
    data: Vec<u8>,
}

impl Image {
    /// Reads an image out of a layout, and checks every digest on the way.
    fn read(files: &BTreeMap<String, Vec<u8>>, debian: &str) -> Image {
        assert_eq!(json(&files["oci-layout"]), json!({ "imageLayoutVersion": "1.0.0" }));
        let top = json(&files["index.json"])["manifests"][0].clone();
        let annotations = top["annotations"].clone();
        let first = follow(files, &top);
        let manifest = match json(&first)["manifests"].as_array() {
            None => json(&first),
            Some(several) => {
                let is_wanted = |one: &&Value| one["platform"]["architecture"] == debian;
                json(&follow(files, several.iter().find(is_wanted).expect("a platform")))
            }
        };
        let config = json(&follow(files, &manifest["config"]));
        let mut image = Image { config, annotations, files: BTreeMap::new(), manifest };
        let layers = image.manifest["layers"].as_array().expect("layers").clone();
        for (number, layer) in layers.iter().enumerate() {
            let mut plain = Vec::new();
            let packed = follow(files, layer);
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("gzip");
            assert_eq!(image.config["rootfs"]["diff_ids"][number], json!(format!("sha256:{}", sum(&plain))));
            let mut archive = tar::Archive::new(plain.as_slice());
            let mut before = String::new();
            for entry in archive.entries().expect("entries") {
                let mut entry = entry.expect("an entry");
                let header = entry.header();
                let owner = (header.uid().expect("a number"), header.gid().expect("a number"));
                let (kind, mode) = (header.entry_type(), header.mode().expect("a mode"));
                let path = entry.path().expect("a path").display().to_string();
                assert_eq!(owner, (0, 0), "{path}");
                assert!(before < path, "{before} before {path}");
                let target = entry.link_name().expect("a link").map(|target| target.display().to_string());
                let mut data = Vec::new();
                entry.read_to_end(&mut data).expect("its data");
                before.clone_from(&path);
                let path = path.trim_end_matches('/').to_owned();
                image.files.insert(path, File { kind, mode, target: target.unwrap_or_default(), data });
            }
        }
        image
    }

    fn check_metadata(&self, debian: &str, created: &str) {
        let labels = &self.config["config"]["Labels"];
        assert_eq!((&self.config["architecture"], &self.config["os"]), (&json!(debian), &json!("linux")));
        assert_eq!((&self.config["created"], &self.manifest["annotations"]), (&json!(created), labels));
        assert_eq!(self.config["config"]["Entrypoint"], json!(["/opt/bin/flanneld"]));
        for (name, expected) in
            [("title", "loden"), ("version", VERSION), ("licenses", "Apache-2.0"), ("created", created)]
        {
            assert_eq!(labels[format!("org.opencontainers.image.{name}")], expected);
        }
        let revision = labels["org.opencontainers.image.revision"].as_str().expect("a commit");
        assert!(revision == "unknown" || revision.trim_end_matches("-dirty").len() == 12, "{revision}");
        assert_eq!(
            self.annotations["org.opencontainers.image.ref.name"],
            format!("localhost/loden:{VERSION}")
        );
    }

    fn check_files(&self, arch: &str) {
        for (path, file) in &self.files {
            assert_eq!(file.mode & 0o6000, 0, "{path} would run with its owner's rights");
            assert!(
                matches!(file.kind, EntryType::Regular | EntryType::Directory | EntryType::Symlink),
                "{path}: {:?}",
                file.kind
            );
            assert!(
                file.kind != EntryType::Symlink || self.files.contains_key(&self.resolve(path)),
                "{path}"
            );
        }
        for (path, expected) in EXPECTED {
            assert_eq!(self.resolve(path), expected, "{path}");
            assert_eq!(self.files[expected].mode, 0o755, "{path}");
        }
        let known: BTreeSet<&str> = EXPECTED.iter().map(|(_, file)| *file).collect();
        let is_library = |path: &str| path.starts_with("usr/lib/");
        for (path, file) in self.files.iter().filter(|(path, _)| !is_library(path)) {
            if file.kind == EntryType::Regular && file.mode & 0o111 != 0 {
                assert!(known.contains(path.as_str()), "{path} is a program that nobody asked for");
            }
        }
        // What a program or library names is there.
        let libraries = format!("usr/lib/{arch}-linux-gnu");
        let place = tempfile::tempdir().expect("a directory");
        let elf = place.path().join("elf");
        for (path, file) in self.files.iter().filter(|(_, file)| file.data.starts_with(b"\x7fELF")) {
            fs::write(&elf, &file.data).expect("a file");
            let mut command = Command::new("readelf");
            let output =
                command.env("LC_ALL", "C").args(["--wide", "-d"]).arg(&elf).output().expect("readelf");
            for line in
                String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("(NEEDED)"))
            {
                let name = line.split(['[', ']']).nth(1).expect("a name");
                assert!(self.files.contains_key(&format!("{libraries}/{name}")), "{path} needs {name}");
            }
        }
        let modules = format!("{libraries}/xtables/libxt_statistic.so");
        assert!(
            self.files.contains_key(&modules) && self.files.contains_key(&format!("{libraries}/libm.so.6"))
        );
    }

    fn check_packages(&self, listed: &str, debian: &str) {
        let names: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
        let prefix = "var/lib/dpkg/status.d/";
        let entries: Vec<&str> = self.files.keys().filter_map(|path| path.strip_prefix(prefix)).collect();
        assert_eq!(names, entries);
        assert!(names.contains(&"iptables") && !names.contains(&"libgcc-s1"), "{names:?}");
        for line in listed.lines() {
            let (name, version) = line.split_once(' ').expect("a version");
            let control = String::from_utf8_lossy(&self.files[&format!("{prefix}{name}")].data);
            assert!(control.contains(&format!("Version: {version}\n")), "{control}");
            let fits =
                ["all", debian].iter().any(|arch| control.contains(&format!("Architecture: {arch}\n")));
            assert!(fits, "{control}");
            assert!(
                self.files.contains_key(&self.resolve(&format!("usr/share/doc/{name}/copyright"))),
                "{name}"
            );
        }
    }

    /// Follows the links in a path.
    fn resolve(&self, path: &str) -> String {
        let mut done: Vec<String> = Vec::new();
        let mut parts: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        while let Some(part) = parts.pop() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(part);
            if let Some(file) = self.files.get(&done.join("/")).filter(|file| file.kind == EntryType::Symlink)
            {
                done.pop();
                if file.target.starts_with('/') {
                    done.clear();
                }
                parts.extend(file.target.split('/').rev().filter(|part| !part.is_empty()).map(str::to_owned));
            }
        }
        done.join("/")
    }
}

/// Reads what a descriptor points to, and checks its digest and size.
fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
    let named =
        descriptor["digest"].as_str().and_then(|text| text.strip_prefix("sha256:")).expect("a digest");
    let data = files[&format!("blobs/sha256/{named}")].clone();
    assert_eq!((sum(&data).as_str(), json!(data.len())), (named, descriptor["size"].clone()));
    data
}

fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("entries").map(|entry| {
        let mut entry = entry.expect("an entry");
        let mut data = Vec::new();
        entry.read_to_end(&mut data).expect("its data");
        (entry.path().expect("a path").display().to_string(), data)
    });
    entries.filter(|(path, _)| !path.ends_with('/')).collect()
}

fn json(data: &[u8]) -> Value {
    serde_json::from_slice(data).expect("JSON")
}

fn sum(data: &[u8]) -> String {
    format!("{:x}", Sha256::digest(data))
}

/// Makes programs for both architectures, of which only the heads are real.
fn programs(place: &Path) -> PathBuf {
    let programs = place.join("programs");
    for (arch, machine) in [("x86_64", 62), ("aarch64", 183)] {
        let directory = programs.join(arch);
        fs::create_dir_all(&directory).expect("a directory");
        for name in ["loden", "loden-cni"] {
            fs::write(directory.join(name), elf(machine)).expect("a file");
        }
    }
    programs
}

/// Returns a program's head (elf(5)): 64 bits, little-endian, version 1, ET_EXEC, e_machine.
fn elf(machine: u8) -> Vec<u8> {
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend([2, 0, machine, 0, 1, 0, 0, 0]);
    head.resize(52, 0);
    head.extend([64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    head
}

fn dist(output: &Path, programs: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dist"));
    command.arg(output).args(["--only", "image", "--programs"]).arg(programs);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("dist")
}

fn succeed(command: &mut Command) {
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs what must fail, and returns what it says.
fn fail(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the cache that all runs share.
fn from_cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).expect("HOME")
}
