//! A page made from raw JSON only: the environment, and one row per testbed, load and figure.

pub mod pivot;
pub mod plot;
pub mod stats;
pub mod table;

use std::fmt::Write as _;

use crate::raw::Raw;

/// The medium of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A terminal.
    Text,
    /// A document.
    Markdown,
}

/// Renders the page: environment, method and table, then notes and failures, which belong to the figures.
pub fn page(raw: &Raw, style: Style) -> String {
    let mut page = String::new();
    let bullet = if style == Style::Markdown { "- " } else { "" };
    for line in preamble(raw) {
        let _ = writeln!(page, "{bullet}{line}");
    }
    let _ = writeln!(page, "\n{}", table::render(&pivot::pivot(raw), style));
    for line in postscript(raw) {
        let _ = write!(page, "\n{bullet}{line}");
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn preamble(raw: &Raw) -> Vec<String> {
    let env = &raw.environment;
    let mut lines = vec![
        format!("kernel {} · {} · {} cores", env.kernel, env.cpu, env.cores),
        format!("commit {} · {}", env.commit, env.date),
        format!(
            "{} rounds of {} s per load, subjects interleaved",
            raw.settings.rounds, raw.settings.seconds
        ),
        format!(
            "medians; × is the median of the per-round ratios to {}, with (min..max)",
            raw.settings.baseline
        ),
    ];
    if !raw.settings.loden_args.is_empty() {
        lines.push(format!("loden run with: {}", raw.settings.loden_args.join(" ")));
    }
    lines
}

fn postscript(raw: &Raw) -> Vec<String> {
    let notes = raw.notes.iter().map(|note| format!("note: {note}"));
    notes.chain(failures(raw)).collect()
}

/// Returns one line per kind of failure, with the affected rounds.
fn failures(raw: &Raw) -> Vec<String> {
    let mut kinds: Vec<(String, String, Vec<String>)> = Vec::new();
    for failure in &raw.failures {
        let load = failure.load.as_deref().unwrap_or("start");
        let place = format!("{} {} {load}", failure.testbed, failure.subject);
        let error = failure.error.split_whitespace().collect::<Vec<_>>().join(" ");
        let round = failure.round.to_string();
        match kinds.iter_mut().find(|(p, e, _)| *p == place && *e == error) {
            Some((_, _, rounds)) => rounds.push(round),
            None => kinds.push((place, error, vec![round])),
        }
    }
    let line = |(place, error, rounds): (String, String, Vec<String>)| {
        format!("failed: {place}, round {}: {error}", rounds.join(", "))
    };
    kinds.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw;

    const FIXTURE: &str = include_str!("../../fixtures/two_rounds.json");

    fn assert_golden(style: Style, golden: &str, name: &str) {
        let page = page(&raw::parse(FIXTURE).unwrap(), style);
        assert_eq!(page, golden, "{name} differs; the page is:\n{page}");
    }

    #[test]
    fn the_text_page_is_the_golden_one() {
        assert_golden(Style::Text, include_str!("../../fixtures/two_rounds.txt"), "two_rounds.txt");
    }

    #[test]
    fn the_markdown_page_is_the_golden_one() {
        assert_golden(Style::Markdown, include_str!("../../fixtures/two_rounds.md"), "two_rounds.md");
    }

    #[test]
    fn equal_failures_share_a_line() {
        let mut raw = raw::parse(FIXTURE).unwrap();
        let failure = raw.failures[0].clone();
        raw.failures.push(raw::Failure { round: 2, ..failure.clone() });
        raw.failures.push(raw::Failure { error: "two\n\nlines".into(), ..failure });
        assert_eq!(
            failures(&raw),
            [
                "failed: W none:routes start, round 1, 2: no such device",
                "failed: W none:routes start, round 1: two lines"
            ]
        );
    }

    #[test]
    fn a_run_without_samples_still_makes_a_page() {
        let mut raw = raw::parse(FIXTURE).unwrap();
        raw.samples.clear();
        assert!(page(&raw, Style::Text).contains("commit"));
    }
}
