//! The rules of the house that no compiler checks: which crate may use which, and how wide a line is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

const ARCHITECTURE: &str = include_str!("../../../../docs/architecture.md");
const RUSTFMT: &str = include_str!("../../../../rustfmt.toml");

/// Packages from outside that only these of our crates may use, in tests as well.
const RESERVED: [(&str, &[&str]); 8] = [
    ("boringtun", &["path"]),
    ("clap", &["bench", "dist", "loden"]),
    ("libc", &["io"]),
    ("mio", &["io"]),
    ("ring", &["path"]),
    ("rusqlite", &["bench", "loden", "store"]),
    ("snow", &["path"]),
    ("tokio", &["bench", "control", "lab", "loden", "store"]),
];

type Arrows = BTreeSet<(String, String)>;

/// The first block of docs/architecture.md draws each arrow between our crates: "A uses B".
#[test]
fn the_crates_arrows_are_those_of_the_drawing() {
    let crates = crates();
    let ours: BTreeSet<&str> = crates.keys().map(String::as_str).collect();
    let mut used = Arrows::new();
    for (name, dependencies) in &crates {
        for dependency in dependencies.iter().filter(|dependency| ours.contains(dependency.name.as_str())) {
            if dependency.kind != "dev" {
                used.insert((name.clone(), dependency.name.clone()));
            }
        }
    }
    let drawn = drawn(ARCHITECTURE.split("```").nth(1).expect("a drawing"));
    let undrawn: Vec<_> = used.difference(&drawn).collect();
    let unused: Vec<_> = drawn.difference(&used).collect();
    assert!(undrawn.is_empty() && unused.is_empty(), "not in the drawing: {undrawn:?}; not used: {unused:?}");
}

/// An arrow that a test needs leads the same way as the others: no crate's tests use one that stands above
/// it.
#[test]
fn tests_use_no_crate_from_above() {
    let crates = crates();
    let below = |name: &str| reachable(&crates, name);
    for (name, dependencies) in &crates {
        for dependency in dependencies.iter().filter(|dependency| crates.contains_key(&dependency.name)) {
            assert!(
                !below(&dependency.name).contains(name),
                "{name} uses {}, which uses it",
                dependency.name
            );
        }
    }
}

#[test]
fn packages_with_a_home_are_used_nowhere_else() {
    for (name, dependencies) in crates() {
        for (package, homes) in RESERVED {
            let uses = dependencies.iter().any(|dependency| dependency.name == package);
            assert!(!uses || homes.contains(&name.as_str()), "{name} uses {package}, which is for {homes:?}");
        }
    }
}

/// A package that needs a newer Rust than this workspace declares would be found by its users only.
#[test]
fn no_dependency_needs_a_newer_rust_than_the_declared_one() {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = metadata(&["--filter-platform", &platform]);
    let version = |package: &Value| {
        let text = package["rust_version"].as_str().unwrap_or("1.0").to_owned();
        let parts: Vec<u32> = text.split('.').map(|part| part.parse().expect("a number")).collect();
        (parts[0], parts[1], parts.get(2).copied().unwrap_or_default())
    };
    let packages = metadata["packages"].as_array().expect("packages");
    let ours = packages.iter().find(|package| package["name"] == "loden").map(version).expect("loden");
    let newer: Vec<String> = packages
        .iter()
        .filter(|package| version(package) > ours)
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["rust_version"]))
        .collect();
    assert!(packages.len() > 200 && newer.is_empty(), "declared is {ours:?}: {newer:#?}");
}

/// rustfmt leaves comments and strings as wide as they are. A literal without a blank cannot be broken.
#[test]
fn no_line_is_wider_than_rustfmt_is_told() {
    let width = RUSTFMT.lines().find_map(|line| line.strip_prefix("max_width = ")).expect("a width");
    let width: usize = width.parse().expect("a number");
    let mut wide = Vec::new();
    for path in sources() {
        let text = std::fs::read_to_string(root().join(&path)).expect("a source");
        for (number, line) in text.lines().enumerate() {
            if !fits(line, width) {
                wide.push(format!("{}:{}: {} columns", path.display(), number + 1, line.chars().count()));
            }
        }
    }
    assert!(wide.is_empty(), "lines of more than {width} columns:\n{}", wide.join("\n"));
}

#[test]
fn only_a_literal_that_cannot_be_broken_may_be_wider() {
    for (line, expected) in [
        ("short", true),
        ("// a comment of two words", false),
        ("let x = \"A=1,B=2,C=3,D=4,E=5\";", true),
        ("let x = \"A=1 B=2 C=3 D=4 E=5\";", false),
        ("let long_name = f(another_name);", false),
    ] {
        assert_eq!(fits(line, 16), expected, "{line}");
    }
}

#[test]
fn a_drawing_is_read_arrow_by_arrow() {
    let arrow = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let expected = [arrow("a", "b"), arrow("b", "c"), arrow("b", "d"), arrow("x", "c")];
    assert_eq!(drawn("\na ──► b ──► c, d\nx     ──► c\n"), expected.into());
}

fn fits(line: &str, width: usize) -> bool {
    let Some((limit, _)) = line.char_indices().nth(width) else { return true };
    // flannel's rules stand in tests as iptables-save prints them.
    if line.starts_with("-A ") {
        return true;
    }
    let start = line[..limit].rfind(' ').map_or(0, |blank| blank + 1);
    let word = line[start..].split(' ').next().unwrap_or_default();
    word.matches('"').count() >= 2
}

/// What one of our crates uses, and whether only its tests do.
struct Dependency {
    name: String,
    kind: String,
}

/// Our crates with what they use, as cargo sees it.
fn crates() -> BTreeMap<String, Vec<Dependency>> {
    let metadata = metadata(&["--no-deps"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    let uses = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        let read = |dependency: &Value| Dependency {
            name: text(&dependency["name"]),
            kind: text(&dependency["kind"]),
        };
        dependencies.iter().map(read).collect()
    };
    packages.iter().map(|package| (text(&package["name"]), uses(package))).collect()
}

fn metadata(arguments: &[&str]) -> Value {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    serde_json::from_slice(&cargo.stdout).expect("JSON")
}

/// All crates of ours that this one is built with.
fn reachable(crates: &BTreeMap<String, Vec<Dependency>>, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        let dependencies = crates.get(&name).into_iter().flatten();
        for dependency in dependencies.filter(|dependency| dependency.kind != "dev") {
            if crates.contains_key(&dependency.name) && found.insert(dependency.name.clone()) {
                open.push(dependency.name.clone());
            }
        }
    }
    found
}

/// Each line of a drawing is a chain of crates; crates with a comma between them share their arrows.
fn drawn(drawing: &str) -> Arrows {
    let mut arrows = Arrows::new();
    for line in drawing.lines() {
        let groups: Vec<Vec<&str>> =
            line.split("──►").map(|group| group.split(',').map(str::trim).collect()).collect();
        for pair in groups.windows(2) {
            for from in &pair[0] {
                arrows.extend(pair[1].iter().map(|to| (String::from(*from), String::from(*to))));
            }
        }
    }
    arrows
}

/// The Rust sources of this tree, without what cargo builds.
fn sources() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::new()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                let name = entry.file_name();
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") {
                sources.push(path);
            }
        }
    }
    sources.sort();
    sources
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
