//! What the files of a release are: static, stripped and small, with their symbols, packages and sums.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use lab::{Needs, mounts};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{ARCHS, Release, and_emulators};

const PROGRAMS: [&str; 3] = ["loden", "loden-cni", "loden-bench"];
/// The limits of sizes in bytes.
const LIMITS: [(&str, u64); 2] = [("loden", 12_000_000), ("loden-cni", 1_000_000)];
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[test]
fn programs_need_nothing_and_are_small() {
    let Some(release) = Release::find(Needs::default().programs(&["readelf"])) else { return };
    for arch in ARCHS {
        for name in PROGRAMS {
            let path = release.program(arch, name);
            let read = |file: &Path, options: &str| shell("readelf", &["--wide", options, &text(file)]);
            let headers = read(&path, "-hldS");
            for absent in ["(NEEDED)", " INTERP ", ".symtab", ".debug_line"] {
                assert!(!headers.contains(absent), "{arch} {name}: {absent}");
            }
            for present in ["DYN (Position-Independent Executable file)", "GNU_RELRO", ".dep-v0"] {
                assert!(headers.contains(present), "{arch} {name}: no {present}\n{headers}");
            }
            let machine = if arch == "x86_64" { "X86-64" } else { "AArch64" };
            assert!(headers.contains(machine), "{arch} {name}");
            let symbols = path.with_file_name(format!("{name}.debug"));
            assert!(read(&symbols, "-S").contains(".debug_line"), "{arch} {name}");
            assert!(read(&path, "-p.gnu_debuglink").contains(&format!("{name}.debug")), "{arch} {name}");
        }
        for (name, limit) in LIMITS {
            let size = fs::metadata(release.program(arch, name)).expect("a program").len();
            println!("{arch} {name}: {size} bytes");
            assert!(size < limit, "{arch} {name}: {size} bytes");
        }
    }
}

#[test]
fn programs_tell_what_they_are() {
    let Some(release) = Release::find(and_emulators(Needs::default())) else { return };
    for arch in ARCHS {
        let output = release.command(arch, "loden").args(["version", "--json"]).output().expect("loden");
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(told["target"], json!(format!("{arch}-unknown-linux-musl")));
        assert_eq!((&told["libc"], &told["is_static"]), (&json!("musl"), &json!(true)));
        assert_eq!(told["version"], VERSION);
        let commit = told["commit"].as_str().expect("a commit");
        let record = fs::read(release.file(&format!("loden-{VERSION}-linux-{arch}.provenance.json")));
        let record: Value = serde_json::from_slice(&record.expect("a record")).expect("JSON");
        let definition = &record["predicate"]["buildDefinition"];
        assert_eq!(definition["externalParameters"]["commit"], commit);
        let compiler = &definition["internalParameters"]["compiler"][0];
        assert!(compiler.as_str().is_some_and(|line| line.starts_with("rustc ")), "{definition}");
        for subject in record["subject"].as_array().expect("subjects") {
            let file = release.file(subject["name"].as_str().expect("a name"));
            assert_eq!(subject["digest"]["sha256"], sum(&file));
        }
    }
}

#[test]
fn sums_are_those_of_all_files() {
    let Some(release) = Release::find(Needs::default().programs(&["sha256sum"])) else { return };
    let mut command = Command::new("sha256sum");
    let output = command.args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(release.file(""));
    let output = output.output().expect("sha256sum");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let sums = fs::read_to_string(release.file("SHA256SUMS")).expect("sums");
    for arch in ARCHS {
        for ending in ["cdx.json", "licenses.txt", "provenance.json"] {
            assert!(sums.contains(&format!("  loden-{VERSION}-linux-{arch}.{ending}\n")), "{sums}");
        }
        for name in PROGRAMS {
            assert!(sums.contains(&format!("  {arch}/{name}\n")), "{sums}");
        }
    }
}

/// Nothing of a file that did not fit stays under its name, and what was there before does.
#[test]
fn a_full_disk_is_named_and_leaves_no_half_file() {
    let needs = Needs::root().programs(&["cargo", "git", "readelf"]);
    let Some(release) = Release::find(needs) else { return };
    let place = tempfile::tempdir().expect("a directory");
    mounts::private(|| {
        mounts::tmpfs(place.path(), "4m").expect("a tmpfs");
        fs::create_dir(place.path().join("x86_64")).expect("a directory");
        fs::write(place.path().join("x86_64/loden"), "an older one").expect("a file");
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/release"))
            .arg(place.path())
            .args(["--only", "programs", "--programs"])
            .arg(release.file(""))
            .output()
            .expect("deploy/release");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot make x86_64/loden: ") && said.contains("No space left"), "{said}");
        assert_eq!(files(place.path()), BTreeMap::from([("x86_64/loden".to_owned(), 12)]));
    })
    .expect("private mounts");
}

/// Returns the files below a directory with their sizes.
fn files(place: &Path) -> BTreeMap<String, u64> {
    let listed = shell("find", &[&text(place), "-type", "f", "-printf", "%P %s\\n"]);
    let line = |line: &str| {
        line.split_once(' ').map(|(name, size)| (name.to_owned(), size.parse().expect("a size")))
    };
    listed.lines().filter_map(line).collect()
}

fn sum(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).expect("a file")))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn shell(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("a program");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
