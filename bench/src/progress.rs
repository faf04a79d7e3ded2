//! Progress of a run on stderr: a bar on a terminal, a line per sample elsewhere.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;
use crate::raw::{self, Failure, Raw, Sample};
use crate::run::Watcher;
use crate::scenario::METRICS;

/// Shows progress and saves the raw results after every round.
pub struct Progress {
    bar: Option<ProgressBar>,
    output: Option<PathBuf>,
}

impl Progress {
    /// Creates the display for a run of `samples`, saved to `output` if given.
    pub fn new(samples: usize, output: Option<PathBuf>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(samples as u64);
            let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Progress { bar, output }
    }

    /// Creates a display of one line per sample that saves nothing.
    pub fn lines() -> Self {
        Progress { bar: None, output: None }
    }

    /// Removes the bar from the terminal.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Watcher for Progress {
    fn begins(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    fn ends(&mut self, outcome: Result<&Sample, &Failure>) {
        let line = match outcome {
            Ok(sample) => figures(sample),
            Err(failure) => describe(failure),
        };
        match &self.bar {
            Some(bar) if outcome.is_ok() => bar.inc(1),
            Some(bar) => bar.println(line),
            None => output::say(line),
        }
    }

    fn round_over(&mut self, raw: &Raw) -> Result<()> {
        self.output.as_ref().map_or(Ok(()), |path| raw::write(path, raw))
    }
}

/// Formats a sample as `I round 2 kernel:vxlan tcp-1: 9.53 Gbit/s, 1.21 CPU s/GB`.
fn figures(sample: &Sample) -> String {
    let known = METRICS.iter().filter_map(|metric| Some((metric, sample.metrics.get(metric.key)?)));
    let figures: Vec<_> = known.map(|(m, value)| format!("{value:.*} {}", m.decimals, m.label)).collect();
    let Sample { testbed, round, subject, load, .. } = sample;
    format!("{testbed} round {round} {subject} {load}: {}", figures.join(", "))
}

fn describe(failure: &Failure) -> String {
    let Failure { testbed, round, subject, load, error } = failure;
    format!("{testbed} round {round} {subject} {}: failed: {error}", load.as_deref().unwrap_or("start"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_sample_is_one_line() {
        let metrics = BTreeMap::from([("cpu_s_per_gb".to_owned(), 1.206), ("gbit_per_s".to_owned(), 9.5)]);
        let sample = Sample {
            testbed: "I".into(),
            subject: "s".into(),
            load: "tcp-1".into(),
            round: 2,
            metrics,
            ..Sample::default()
        };
        assert_eq!(figures(&sample), "I round 2 s tcp-1: 9.50 Gbit/s, 1.21 CPU s/GB");
    }

    #[test]
    fn a_failed_start_is_one_line() {
        let failure =
            Failure { testbed: "W".into(), subject: "s".into(), round: 1, error: "no".into(), load: None };
        assert_eq!(describe(&failure), "W round 1 s start: failed: no");
    }
}
