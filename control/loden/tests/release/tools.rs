//! What `deploy/release` says and leaves where it cannot work.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use lab::{Needs, mounts};

use crate::programs::{shell, text};
use crate::{ARCHS, Release};

/// Nothing of a file that did not fit stays under its name, and what was there before does.
#[test]
fn a_full_disk_is_named_and_leaves_no_half_file() {
    let needs = Needs::root().programs(&["cargo", "git", "readelf"]);
    let Some(release) = Release::with_plugin(needs) else { return };
    let place = tempfile::tempdir().expect("a directory");
    mounts::private(|| {
        mounts::tmpfs(place.path(), "256k").expect("a tmpfs");
        fs::create_dir(place.path().join("x86_64")).expect("a directory");
        fs::write(place.path().join("x86_64/loden-cni"), "an older one").expect("a file");
        let said = failed(command(place.path()).arg("--programs").arg(release.file("")));
        assert!(said.contains("cannot make x86_64/loden-cni: ") && said.contains("No space left"), "{said}");
        assert_eq!(files(place.path()), BTreeMap::from([("x86_64/loden-cni".to_owned(), 12)]));
    })
    .expect("private mounts");
}

#[test]
fn missing_tools_are_named_before_anything_is_built() {
    let tools = ["cargo", "cc", "dirname", "git", "rustc", "sh"];
    if !Needs::default().programs(&tools).are_met() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let (tools_there, output) = (place.path().join("bin"), place.path().join("files"));
    fs::create_dir(&tools_there).expect("a directory");
    for tool in tools {
        symlink(lab::find(tool).expect("asked for before"), tools_there.join(tool)).expect("a link");
    }
    let said = failed(command(&output).env("PATH", &tools_there));
    assert!(said.contains("readelf is missing; Debian has it in binutils\n"), "{said}");
    for arch in ARCHS.iter().filter(|arch| **arch != std::env::consts::ARCH) {
        assert!(said.contains(&format!("{arch}-linux-gnu-objcopy is missing; Debian has it in ")), "{said}");
    }
    assert!(!output.exists(), "nothing was begun");
}

#[test]
fn without_the_network_it_says_what_is_not_there() {
    let needs = Needs::default().programs(&["cargo", "git", "readelf", "aarch64-linux-gnu-objcopy"]);
    if !needs.are_met() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let (cache, output) = (place.path().join("cache"), place.path().join("files"));
    let said = failed(command(&output).arg("--offline").env("XDG_CACHE_HOME", &cache));
    let lacks =
        format!("{}/loden/release/python is not complete; run once without --offline", cache.display());
    assert!(said.contains(&lacks), "{said}");
    assert!(files(&output).is_empty(), "{:?}", files(&output));
}

/// Returns `deploy/release` for the plugin alone.
fn command(output: &Path) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/release"));
    command.arg(output).args(["--only", "plugin"]);
    command
}

/// Runs a command that must fail, and returns what it says.
fn failed(command: &mut Command) -> String {
    let output = command.output().expect("deploy/release");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// Returns the files below a directory with their sizes.
fn files(place: &Path) -> BTreeMap<String, u64> {
    let listed = shell("find", &[&text(place), "-type", "f", "-printf", "%P %s\\n"]);
    let line = |line: &str| {
        line.split_once(' ').map(|(name, size)| (name.to_owned(), size.parse().expect("a size")))
    };
    listed.lines().filter_map(line).collect()
}
