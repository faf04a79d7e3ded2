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
