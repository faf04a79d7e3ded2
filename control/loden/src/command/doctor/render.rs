//! Renders the diagnosis as one aligned table, with the cost of each gap below it.

use std::fmt::Write;

use super::diagnosis::{Diagnosis, Finding, Verdict};

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";
const BOLD: &str = "1";

/// Renders the diagnosis; `colours` is for a terminal.
pub(super) fn text(diagnosis: &Diagnosis, colours: bool) -> String {
    let paint = |text: &str, colour: &str| match colours {
        true => format!("\x1b[{colour}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let width = diagnosis.findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut out = format!("loden doctor on Linux {}\n", diagnosis.kernel);
    let mut group = "";
    for finding in &diagnosis.findings {
        if finding.group != group {
            group = finding.group;
            let _ = writeln!(out, "\n{}", paint(group, BOLD));
        }
        let (word, colour) = word(finding);
        // Padding comes before the colour: escape codes have no width.
        let answer = paint(&format!("{word:<7}"), colour);
        let line = format!("  {:<width$}  {answer}  {}", finding.name, finding.detail);
        let _ = writeln!(out, "{}", line.trim_end());
        for (label, text) in [("cost", finding.cost), ("fix", finding.fix)] {
            if !text.is_empty() {
                let _ = writeln!(out, "  {:width$}  {:7}  {label}: {text}", "", "");
            }
        }
    }
    let _ = writeln!(out, "\n{}", paint("The datapath would use", BOLD));
    for choice in &diagnosis.chosen {
        let (word, colour) = if choice.used { ("yes", GREEN) } else { ("no", YELLOW) };
        let line =
            format!("  {:<width$}  {}  {}", choice.feature, paint(&format!("{word:<7}"), colour), choice.why);
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let verdict = match diagnosis.can_run {
        true => paint("loden can run here.", GREEN),
        false => paint("loden cannot run here: see the entries marked \"needed\".", RED),
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}

fn word(finding: &Finding) -> (&'static str, &'static str) {
    match finding.verdict {
        Verdict::Yes => ("yes", GREEN),
        Verdict::No => ("no", YELLOW),
        Verdict::Needed => ("needed", RED),
        Verdict::Unknown => ("unknown", YELLOW),
        Verdict::Fact => ("", GREEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::diagnosis::Choice;

    #[test]
    fn aligned_without_colours() {
        let expected = "\
loden doctor on Linux 6.1.0 x86_64

TUN
  /dev/net/tun    needed   it is missing
                           fix: modprobe tun
  several queues  yes

This host
  interface eth0           MTU 1500

The datapath would use
  tso             yes
  uso             no       refused

loden cannot run here: see the entries marked \"needed\".
";
        assert_eq!(text(&diagnosis(), false), expected);
    }

    #[test]
    fn colours_change_no_letter() {
        let painted = text(&diagnosis(), true);
        assert!(painted.contains("\x1b[31mneeded "), "{painted}");
        let mut bare = String::new();
        for (number, part) in painted.split('\x1b').enumerate() {
            bare += if number == 0 { part } else { part.split_once('m').expect("an escape").1 };
        }
        // Trailing blanks of a line are inside the colour and therefore kept.
        let trimmed: Vec<&str> = bare.lines().map(str::trim_end).collect();
        assert_eq!(trimmed, text(&diagnosis(), false).lines().collect::<Vec<_>>());
    }

    fn diagnosis() -> Diagnosis {
        let finding = |group, name: &str, verdict, detail: &str, fix| Finding {
            group,
            name: name.into(),
            verdict,
            detail: detail.into(),
            cost: "",
            fix,
        };
        Diagnosis {
            kernel: "6.1.0 x86_64".into(),
            can_run: false,
            findings: vec![
                finding("TUN", "/dev/net/tun", Verdict::Needed, "it is missing", "modprobe tun"),
                finding("TUN", "several queues", Verdict::Yes, "", ""),
                finding("This host", "interface eth0", Verdict::Fact, "MTU 1500", ""),
            ],
            chosen: vec![
                Choice { feature: "tso", used: true, why: String::new() },
                Choice { feature: "uso", used: false, why: "refused".into() },
            ],
        }
    }
}
