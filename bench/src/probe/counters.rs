//! The daemon's counters, read from the file that `loden run --counters-file` updates.
//!
//! Every number in the JSON is kept under its path, without a list of counters, so that a counter added to
//! the engine appears in the raw results automatically.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// Every number in the file by its path (`a.b.0.c`).
pub type Counters = BTreeMap<String, f64>;

/// Polling interval while waiting for the next write of the file.
const POLL: Duration = Duration::from_millis(20);

/// Name of the counter from which syscalls per GiB are derived, at any path in the file.
const SYSCALLS: &str = "syscalls";

/// Waits until the file has been written after `moment`, then reads it. After the timeout reads the existing
/// file; `None` if no file is readable.
pub fn read_after(path: &Path, moment: SystemTime, timeout: Duration) -> Option<Counters> {
    let deadline = Instant::now() + timeout;
    while !is_newer(path, moment) && Instant::now() < deadline {
        thread::sleep(POLL);
    }
    parse(&std::fs::read_to_string(path).ok()?)
}

/// Parses the numbers of a JSON text by path; `None` if it is not JSON.
pub fn parse(text: &str) -> Option<Counters> {
    let mut counters = Counters::new();
    flatten(&serde_json::from_str(text).ok()?, String::new(), &mut counters);
    Some(counters)
}

/// Returns the change of each counter; unchanged ones are left out, new ones count from 0.
pub fn difference(before: &Counters, after: &Counters) -> Counters {
    let moved = after.iter().map(|(key, now)| (key, now - before.get(key).copied().unwrap_or(0.0)));
    moved.filter(|(_, step)| *step != 0.0).map(|(key, step)| (key.clone(), step)).collect()
}

/// Returns the number of system calls among changed counters: the sum of those at the least depth in the
/// file, so that a total is not added to its parts. `None` if there is no such counter.
pub fn syscalls(moved: &Counters) -> Option<f64> {
    let named = || moved.iter().filter(|(key, _)| key.rsplit('.').next() == Some(SYSCALLS));
    let depth = |key: &str| key.split('.').count();
    let highest = named().map(|(key, _)| depth(key)).min()?;
    Some(named().filter(|(key, _)| depth(key) == highest).map(|(_, step)| *step).sum())
}

fn is_newer(path: &Path, moment: SystemTime) -> bool {
    std::fs::metadata(path).and_then(|m| m.modified()).is_ok_and(|written| written > moment)
}

fn flatten(value: &Value, path: String, into: &mut Counters) {
    let join = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
    match value {
        Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                into.insert(path, number);
            }
        }
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(value, join(key), into)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(value, join(&i.to_string()), into));
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_at_any_depth() {
        let counters =
            parse(r#"{"syscalls":7,"workers":[{"reads":1},{"reads":2.5}],"name":"x","up":true}"#).unwrap();
        let found: Vec<_> = counters.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(found, [("syscalls", 7.0), ("workers.0.reads", 1.0), ("workers.1.reads", 2.5)]);
    }

    #[test]
    fn only_changed_counters_are_kept() {
        let before = parse(r#"{"a":1,"b":5}"#).unwrap();
        let after = parse(r#"{"a":1,"b":8,"c":2}"#).unwrap();
        let moved = difference(&before, &after);
        assert_eq!(moved.into_iter().collect::<Vec<_>>(), [("b".to_owned(), 3.0), ("c".to_owned(), 2.0)]);
    }

    #[test]
    fn a_total_wins_over_its_parts() {
        let with_total = parse(r#"{"syscalls":10,"w":[{"syscalls":4},{"syscalls":6}]}"#).unwrap();
        assert_eq!(syscalls(&with_total), Some(10.0));
        let tunnels =
            r#"{"t":[{"syscalls":3,"workers":[{"syscalls":3}]},{"syscalls":4,"totals":{"syscalls":4}}]}"#;
        assert_eq!(syscalls(&parse(tunnels).unwrap()), Some(7.0));
        let parts = parse(r#"{"w":[{"syscalls":4},{"syscalls":6}],"not_syscalls":9}"#).unwrap();
        assert_eq!(syscalls(&parts), Some(10.0));
        assert_eq!(syscalls(&parse(r#"{"reads":1}"#).unwrap()), None);
    }

    #[test]
    fn noise_has_no_counters() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("{\"a\":"), None);
        assert_eq!(parse("\"text\""), Some(Counters::new()));
    }
}
