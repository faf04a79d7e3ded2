//! `loden version`, `loden completions` and `loden manual`: what a build tells of itself, and what packages
//! take out of it.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

#[test]
fn a_build_names_its_version_target_and_parts() {
    let text = stdout(&loden(&["version"]));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(concat!("loden ", env!("CARGO_PKG_VERSION"))));
    let lines: Vec<(&str, &str)> =
        lines.map(|line| line.split_once(':').expect("a name and a value")).collect();
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["commit", "target", "libc", "stores", "backends", "firewalls"]);
    let build: Value = serde_json::from_slice(&loden(&["version", "--json"]).stdout).expect("JSON");
    assert_eq!(build["version"], json!(env!("CARGO_PKG_VERSION")));
    let target = build["target"].as_str().expect("a target");
    assert!(target.starts_with(std::env::consts::ARCH), "{target}");
    let linking = if build["is_static"] == json!(true) { "static" } else { "dynamic" };
    let libc = format!("{}, {linking}", build["libc"].as_str().expect("a C library"));
    assert_eq!((lines[1].1.trim(), lines[2].1.trim()), (target, libc.as_str()));
}

#[test]
fn each_shell_gets_completions_that_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = stdout(&loden(&["completions", shell]));
        for word in ["install-cni", "mk-docker-opts", "etcd-endpoints"] {
            assert!(text.contains(word), "{shell}: no {word}");
        }
    }
    let unknown = loden(&["completions", "csh"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

#[test]
fn completions_that_are_cut_short_are_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = command.args(["completions", "bash"]).stdout(full).output().expect("loden");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot write to the standard output: No space left"), "{said}");
}

#[test]
fn each_visible_subcommand_has_a_page() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().display().to_string();
    assert_eq!(stdout(&loden(&["manual", &path])), "");
    let mut pages: Vec<String> = fs::read_dir(&path)
        .expect("pages")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    pages.sort();
    let help = stdout(&loden(&["--help"]));
    let commands = help.split("Commands:").nth(1).and_then(|rest| rest.split("\n\n").next());
    let names = commands.expect("a list").lines().filter_map(|line| line.split_whitespace().next());
    let mut expected: Vec<String> = names.map(|name| format!("loden-{name}.1")).collect();
    expected.push("loden.1".to_owned());
    expected.sort();
    assert_eq!(pages, expected);
    for page in &pages {
        let text = fs::read_to_string(place.path().join(page)).expect("a page");
        assert!(text.contains(".SH NAME") && !text.contains("password="), "{page}: {text}");
    }
    let missing = loden(&["manual", "/nowhere/pages"]);
    let said = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(
        (missing.status.code(), said.trim()),
        (Some(1), "loden: /nowhere/pages is not a directory; create it first")
    );
}

fn loden(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    command.args(arguments).stdin(Stdio::null()).output().expect("loden")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}
