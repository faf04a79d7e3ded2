//! The documentation matches the program.

use std::path::{Path, PathBuf};

use path::DropReason;

const OPERATIONS: &str = include_str!("../../../../docs/operations.md");
const COMPATIBILITY: &str = include_str!("../../../../docs/compatibility.md");
const APPENDIX: &str = "\n## Appendix: ";

#[test]
fn every_drop_reason_is_explained_once_and_in_order() {
    let section = OPERATIONS.split("## Drop reasons").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.expect("a section on drop reasons").lines().filter(|line| line.starts_with("| `"));
    let explained: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    let names: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(explained, names, "docs/operations.md, \"Drop reasons\", needs one row for each reason");
}

#[test]
fn every_metric_is_explained() {
    let text = control::serve::board::Board::new("docs", "memory:").metrics();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        let short = name.strip_prefix("loden_reconcile").unwrap_or(name);
        assert!(
            OPERATIONS.contains(&format!("`{name}`")) || OPERATIONS.contains(&format!("`{short}`")),
            "{name}"
        );
    }
}

/// The appendix of docs/compatibility.md names tests that exist, in files that can be the modules it names.
#[test]
fn every_test_that_compatibility_names_exists() {
    let sources =
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &["control", "engine", "cni-plugin"]);
    let names: Vec<&str> = shown_by().into_iter().flat_map(|(_, tests)| tests).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| name.contains("::")).collect();
    assert!(names.len() > 100, "{names:?}");
    let wrong: Vec<&str> = names.into_iter().filter(|name| !is_there(&sources, name)).collect();
    assert!(wrong.is_empty(), "no test is called {wrong:#?}");
}

/// The appendix of docs/compatibility.md has each row of the tables, in their order, with a test at least.
#[test]
fn every_row_of_compatibility_names_a_test() {
    let (tables, _) = COMPATIBILITY.split_once(APPENDIX).expect("an appendix");
    let mut in_table = false;
    let mut rows = Vec::new();
    for line in tables.lines() {
        match line.strip_prefix("| ").and_then(|row| row.split_once(" | ")) {
            Some(("behaviour", _)) => in_table = true,
            Some((behaviour, _)) if in_table => rows.push(behaviour),
            Some(_) => {}
            None => in_table &= line.starts_with('|'),
        }
    }
    let (shown, tests): (Vec<&str>, Vec<Vec<&str>>) = shown_by().into_iter().unzip();
    assert!(rows.len() > 100, "{rows:?}");
    assert_eq!(rows, shown);
    assert!(tests.iter().all(|tests| !tests.is_empty()), "a row without a test");
}

/// The entries of the appendix: the first column of a row, and the tests that show it.
fn shown_by() -> Vec<(&'static str, Vec<&'static str>)> {
    let (_, appendix) = COMPATIBILITY.split_once(APPENDIX).expect("an appendix");
    let mut entries: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in appendix.lines() {
        if let Some(behaviour) = line.strip_prefix("- ") {
            entries.push((behaviour.strip_suffix(':').expect("a colon"), Vec::new()));
        } else if let Some(test) = line.strip_prefix("  - `") {
            let (_, tests) = entries.last_mut().expect("a row before its tests");
            tests.push(test.strip_suffix('`').expect("a name in backquotes"));
        }
    }
    entries
}

#[test]
fn a_name_needs_its_module_and_its_function() {
    let of = |path: &str| (module(Path::new(path)), "#[test]\nfn it_works() {}\nfn helper() {}\n".to_owned());
    let sources = [
        of("control/src/plan/tests.rs"),
        of("control/src/lease/ledger_tests.rs"),
        of("control/loden/tests/run.rs"),
    ];
    for good in ["plan::tests::it_works", "control::plan::tests::it_works", "lease::ledger::tests::it_works"]
    {
        assert!(is_there(&sources, good), "{good}");
    }
    assert!(is_there(&sources, "run::it_works"));
    for bad in [
        "plan::tests",
        "lease::ledger_tests",
        "store::tests::it_works",
        "plan::vxlan::tests::it_works",
        "plan::tests::it_wor",
        "plan::tests::helper",
    ] {
        assert!(!is_there(&sources, bad), "{bad}");
    }
}

/// The text of each source file below these folders, with the module that it is.
fn sources(root: &Path, folders: &[&str]) -> Vec<(Vec<String>, String)> {
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(folder).expect("a folder");
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                sources.push((module(path.strip_prefix(root).expect("below")), text));
            }
        }
    }
    sources
}

/// A module by the folders and the file that hold it. Unit tests are those of the module around them, whether
/// they stand in `x.rs`, `x/tests.rs` or `x_tests.rs`.
fn module(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let parts = path.components().map(|part| part.as_os_str().to_string_lossy().replace('-', "_"));
    let parts = parts.filter(|part| !matches!(part.as_str(), "src" | "tests" | "mod" | "lib" | "main"));
    parts.map(without_tests).collect()
}

fn without_tests(name: String) -> String {
    name.strip_suffix("_tests").map(str::to_owned).unwrap_or(name)
}

fn is_there(sources: &[(Vec<String>, String)], name: &str) -> bool {
    let Some((modules, function)) = name.rsplit_once("::") else { return false };
    let modules: Vec<String> = modules
        .split("::")
        .filter(|part| *part != "tests")
        .map(|part| without_tests(part.to_owned()))
        .collect();
    // A module would say yes to whatever it holds.
    !function.ends_with("tests")
        && sources.iter().any(|(module, text)| module.ends_with(&modules) && has_test(text, function))
}

/// Whether the text has a function of this name with a test's attribute above it.
fn has_test(text: &str, function: &str) -> bool {
    let head = format!("fn {function}()");
    text.match_indices(&head).any(|(at, _)| {
        let above = text[..at].rsplit('\n').skip(1).map(str::trim);
        let mut attributes = above.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        attributes.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}
