//! The samples as a table: one row per testbed, load and figure; one column per subject.

use crate::raw::{Raw, Sample};
use crate::report::stats::{Summary, ratios, summarise};
use crate::scenario::{METRICS, Metric};

/// Columns and rows of a table, in order.
#[derive(Debug)]
pub struct Pivot {
    /// Subjects by name, the baseline first.
    pub subjects: Vec<String>,
    /// Rows by testbed, then load, then figure.
    pub rows: Vec<Row>,
}

/// One testbed, load and figure.
#[derive(Debug)]
pub struct Row {
    /// Testbed by name.
    pub testbed: String,
    /// Load by name.
    pub load: String,
    /// The figure.
    pub metric: &'static Metric,
    /// One per subject, in the order of [`Pivot::subjects`]; `None` for a subject without a sample.
    pub cells: Vec<Option<Cell>>,
}

/// A subject's values in one row.
#[derive(Debug)]
pub struct Cell {
    /// (round, value), in the order taken.
    pub values: Vec<(u32, f64)>,
    /// Summary of the values.
    pub summary: Summary,
    /// Summary of the per-round ratios to the baseline; `None` for the baseline itself, for a figure that is
    /// not compared, and without a common round.
    pub ratio: Option<Summary>,
}

/// Builds the table of a run. Figures that no subject has for a testbed and load give no row.
pub fn pivot(raw: &Raw) -> Pivot {
    let mut subjects = in_order(raw, |s| &s.subject);
    // The sort is stable: the baseline moves to the front, the others keep their order.
    subjects.sort_by_key(|subject| *subject != raw.settings.baseline);
    let mut rows = Vec::new();
    for testbed in in_order(raw, |s| &s.testbed) {
        for load in in_order(raw, |s| &s.load) {
            let samples: Vec<&Sample> =
                raw.samples.iter().filter(|s| s.testbed == testbed && s.load == load).collect();
            for metric in METRICS {
                let values: Vec<_> =
                    subjects.iter().map(|subject| values(&samples, subject, metric)).collect();
                let baseline = subjects.iter().position(|s| *s == raw.settings.baseline);
                let cells: Vec<_> = (0..subjects.len()).map(|i| cell(&values, i, baseline, metric)).collect();
                if cells.iter().any(Option::is_some) {
                    rows.push(Row { testbed: testbed.clone(), load: load.clone(), metric, cells });
                }
            }
        }
    }
    Pivot { subjects, rows }
}

fn in_order(raw: &Raw, key: impl Fn(&Sample) -> &String) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for sample in &raw.samples {
        if !seen.contains(key(sample)) {
            seen.push(key(sample).clone());
        }
    }
    seen
}

fn values(samples: &[&Sample], subject: &str, metric: &Metric) -> Vec<(u32, f64)> {
    let of_subject = samples.iter().filter(|s| s.subject == subject);
    of_subject.filter_map(|s| s.metrics.get(metric.key).map(|value| (s.round, *value))).collect()
}

fn cell(
    values: &[Vec<(u32, f64)>],
    subject: usize,
    baseline: Option<usize>,
    metric: &Metric,
) -> Option<Cell> {
    let own = &values[subject];
    let summary = summarise(own.iter().map(|(_, value)| *value))?;
    let compared = baseline.filter(|b| metric.compared && *b != subject);
    let ratio = compared.and_then(|b| summarise(ratios(own, &values[b])));
    Some(Cell { values: own.clone(), summary, ratio })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw;

    fn fixture() -> Raw {
        raw::parse(include_str!("../../fixtures/two_rounds.json")).unwrap()
    }

    #[test]
    fn the_baseline_comes_first_and_rows_keep_their_order() {
        let pivot = pivot(&fixture());
        assert_eq!(pivot.subjects, ["kernel:vxlan", "loden:vxlan", "none:routes"]);
        let rows: Vec<_> =
            pivot.rows.iter().map(|r| format!("{} {} {}", r.testbed, r.load, r.metric.key)).collect();
        assert_eq!(rows[0], "I tcp-1 gbit_per_s");
        assert_eq!(rows.last().unwrap(), "W tcp-1 cpu_s_per_gb");
    }

    #[test]
    fn an_absent_baseline_leaves_values_without_ratios() {
        let mut raw = fixture();
        raw.settings.baseline = "nobody".into();
        let pivot = pivot(&raw);
        assert!(pivot.rows.iter().flat_map(|r| r.cells.iter().flatten()).all(|c| c.ratio.is_none()));
    }
}
