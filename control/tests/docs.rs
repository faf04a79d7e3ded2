//! The documentation says what the program has.

use path::DropReason;

const OPERATIONS: &str = include_str!("../../docs/operations.md");

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
    let text = control::board::Board::new("docs", "memory:").metrics();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        let short = name.strip_prefix("loden_reconcile").unwrap_or(name);
        assert!(
            OPERATIONS.contains(&format!("`{name}`")) || OPERATIONS.contains(&format!("`{short}`")),
            "{name}"
        );
    }
}

/// Each test that docs/compatibility.md names is there: its last part is a function, or a module of tests.
#[test]
fn every_test_that_compatibility_names_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = String::new();
    let mut folders = vec![root.join("control"), root.join("engine"), root.join("cni-plugin")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|end| end == "rs") {
                sources.push_str(&std::fs::read_to_string(entry).expect("a source"));
            }
        }
    }
    let document = std::fs::read_to_string(root.join("docs/compatibility.md")).expect("the document");
    let shown_by =
        document.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(3));
    let names: Vec<&str> =
        shown_by.flat_map(|cell| cell.split('`')).filter(|name| name.contains("::")).collect();
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        let last = name.rsplit("::").next().unwrap_or_default();
        let is_there =
            last == "tests" || last.ends_with("_tests") || sources.contains(&format!("fn {last}()"));
        assert!(is_there, "no test is called {name}");
    }
}
