//! What the files of a release are: static, stripped and small, with their symbols, packages and sums.

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::Needs;
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
        PROGRAMS.iter().for_each(|name| check(&release, arch, name));
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
        assert_eq!(told["commit"], check_provenance(&release, arch));
    }
}

/// Checks that a program is static, stripped and small, and has its symbols beside it.
pub(crate) fn check(release: &Release, arch: &str, name: &str) {
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
    let size = fs::metadata(&path).expect("a program").len();
    println!("{arch} {name}: {size} bytes");
    let limit = LIMITS.iter().find(|(limited, _)| *limited == name);
    assert!(limit.is_none_or(|(_, limit)| size < *limit), "{arch} {name}: {size} bytes");
}

/// Checks the record of what built the programs, and returns the commit in it.
pub(crate) fn check_provenance(release: &Release, arch: &str) -> Value {
    let record: Value = serde_json::from_str(&record(release, arch, "provenance.json")).expect("JSON");
    let definition = &record["predicate"]["buildDefinition"];
    let compiler = &definition["internalParameters"]["compiler"][0];
    assert!(compiler.as_str().is_some_and(|line| line.starts_with("rustc ")), "{definition}");
    let subjects = record["subject"].as_array().expect("subjects");
    assert!(!subjects.is_empty());
    for subject in subjects {
        let file = release.file(subject["name"].as_str().expect("a name"));
        assert_eq!(subject["digest"]["sha256"], sum(&file));
    }
    let place = text(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(!record.to_string().contains(&place), "a path of this machine");
    definition["externalParameters"]["commit"].clone()
}

/// Reads a record of the programs for an architecture.
pub(crate) fn record(release: &Release, arch: &str, ending: &str) -> String {
    fs::read_to_string(release.file(&format!("loden-{VERSION}-linux-{arch}.{ending}"))).expect("a record")
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

fn sum(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).expect("a file")))
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn shell(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("a program");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
