//! What a program of a release is, and the records beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Release;

/// The limits of sizes in bytes.
const LIMITS: [(&str, u64); 1] = [("loden-cni", 1_000_000)];
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Checks that a program is static, stripped and small, and has its symbols beside it.
pub(crate) fn check(release: &Release, arch: &str, name: &str) {
    let path = release.program(arch, name);
    let read = |file: &Path, options: &str| shell("readelf", &["--wide", options, &text(file)]);
    let headers = read(&path, "-hldS");
    for absent in ["(NEEDED)", " INTERP ", ".symtab", ".debug_line"] {
        assert!(!headers.contains(absent), "{arch} {name}: {absent}");
    }
    for present in ["GNU_RELRO", ".dep-v0"] {
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
