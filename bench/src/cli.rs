//! The command line: `run`, `scale`, `restart`, `report`, `list`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::run::Plan;
use crate::scale;
use crate::scenario::{Load, Subject, Testbed};

/// Measures loden against other ways to carry pod packets, side by side on one machine.
#[derive(Debug, Parser)]
#[command(name = "loden-bench", version, disable_help_subcommand = true)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure, print the table and keep the raw results. Requires root.
    Run(RunOptions),
    /// Measure the cost of many peers: traffic, idle CPU, joins, memory. Requires root.
    Scale(ScaleOptions),
    /// Measure the cost of a restart with many peers. Requires root.
    Restart(ScaleOptions),
    /// Print the table of earlier runs from their raw results.
    Report(ReportOptions),
    /// List testbeds, subjects and loads.
    List,
}

/// `loden-bench run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Testbeds, in this order.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = ["I", "W"])]
    pub testbeds: Vec<Testbed>,
    /// Subjects, interleaved in this order.
    #[arg(long, value_name = "LIST", value_delimiter = ',',
          default_values = ["kernel:vxlan", "loden:vxlan", "loden:udp", "none:routes"])]
    pub subjects: Vec<Subject>,
    /// Loads, in this order.
    #[arg(long, value_name = "LIST", value_delimiter = ',',
          default_values = ["tcp-1", "tcp-4", "udp64-1", "udp64-64", "rtt", "rtt-apart"])]
    pub loads: Vec<Load>,
    /// Rounds per testbed.
    #[arg(
        long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000),
    )]
    pub rounds: u32,
    /// Seconds per load.
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seconds to wait before each round for an idle machine; if it stays busy, continue with a note.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds_or_none)]
    pub settle: f64,
    /// Subject to compare the others to; if it is not measured, the first one is used.
    #[arg(long, value_name = "SUBJECT", default_value = "kernel:vxlan")]
    pub baseline: Subject,
    /// The loden program [default: next to this one].
    #[arg(long, value_name = "PATH")]
    pub loden: Option<PathBuf>,
    /// Extra flags for `loden run`, in one argument: "--workers 1 --pin".
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub loden_args: String,
    /// Write the raw results to this file after every round.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `loden-bench scale` and `loden-bench restart`.
#[derive(Clone, Debug, Args)]
pub struct ScaleOptions {
    /// Number of peers of the large cluster.
    #[arg(
        long, value_name = "N", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(100..=50_000),
    )]
    pub peers: u32,
    /// Rounds of each part.
    #[arg(
        long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000),
    )]
    pub rounds: u32,
    /// Seconds per load.
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seconds to watch the idle daemons.
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = seconds)]
    pub idle: f64,
    /// Seconds to wait before each round for an idle machine; if it stays busy, continue with a note.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds_or_none)]
    pub settle: f64,
    /// The loden program [default: next to this one].
    #[arg(long, value_name = "PATH")]
    pub loden: Option<PathBuf>,
    /// Extra flags for `loden run`, in one argument: "--workers 1 --pin".
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub loden_args: String,
    /// Write the raw results into this directory, one file per page.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// `loden-bench report`.
#[derive(Clone, Debug, Args)]
pub struct ReportOptions {
    /// Raw results written by `loden-bench run --output`.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Print Markdown, for a document.
    #[arg(long)]
    pub markdown: bool,
    /// Write one SVG per testbed, load and figure into this directory, or with several files into a
    /// subdirectory for each.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

impl RunOptions {
    /// Returns the plan; names given twice count once.
    pub fn plan(&self) -> Plan {
        Plan {
            testbeds: unique(&self.testbeds),
            subjects: unique(&self.subjects),
            loads: unique(&self.loads),
            rounds: self.rounds,
            seconds: self.seconds,
            settle: Duration::from_secs_f64(self.settle),
        }
    }

    /// Returns the subject to compare the others to.
    pub fn baseline(&self) -> Subject {
        let measured = self.subjects.contains(&self.baseline).then_some(self.baseline);
        measured.or(self.subjects.first().copied()).unwrap_or(self.baseline)
    }
}

impl ScaleOptions {
    /// Returns the parameters of the measurement.
    pub fn plan(&self) -> scale::Options {
        scale::Options {
            peers: self.peers as usize,
            rounds: self.rounds,
            seconds: self.seconds,
            idle: self.idle,
            settle: Duration::from_secs_f64(self.settle),
            output: self.output.clone(),
        }
    }
}

/// Returns the text of `loden-bench list`: names and descriptions.
pub fn list() -> String {
    let mut lines = vec!["testbeds".to_owned()];
    lines.extend(describe::<Testbed>());
    lines.push("subjects".to_owned());
    lines.extend(describe::<Subject>());
    lines.push("loads".to_owned());
    lines.extend(describe::<Load>());
    lines.join("\n")
}

fn describe<T: ValueEnum>() -> Vec<String> {
    let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let help =
        |value: &clap::builder::PossibleValue| value.get_help().map(ToString::to_string).unwrap_or_default();
    values.map(|value| format!("  {:<17}{}", value.get_name(), help(&value))).collect()
}

fn seconds(text: &str) -> Result<f64, String> {
    seconds_from(text, 0.1)
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    seconds_from(text, 0.0)
}

/// Parses a number of seconds from `min` to an hour.
fn seconds_from(text: &str, min: f64) -> Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|e| e.to_string())?;
    if (min..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("must be {min} to 3600 seconds"))
    }
}

fn unique<T: Copy + PartialEq>(given: &[T]) -> Vec<T> {
    let mut kept = Vec::new();
    for value in given {
        if !kept.contains(value) {
            kept.push(*value);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn run_options(arguments: &[&str]) -> RunOptions {
        let all = ["loden-bench", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_measure_everything() {
        let options = run_options(&[]);
        assert_eq!((options.rounds, options.seconds), (5, 3.0));
        let plan = options.plan();
        assert_eq!(plan.samples(), 2 * 5 * 4 * 6);
        assert_eq!(options.baseline(), Subject::KernelVxlan);
    }

    #[test]
    fn filters_keep_the_given_order_and_duplicates_count_once() {
        let options = run_options(&[
            "--subjects",
            "none:routes,loden:udp,none:routes",
            "--testbeds",
            "W",
            "--loads=rtt",
            "--loden-args",
            "--workers 1",
        ]);
        let plan = options.plan();
        assert_eq!(plan.subjects, [Subject::NoneRoutes, Subject::LodenUdp]);
        assert_eq!((plan.testbeds, plan.loads), (vec![Testbed::WireLike], vec![Load::RoundTrip]));
        assert_eq!(options.baseline(), Subject::NoneRoutes);
        assert_eq!(options.loden_args, "--workers 1");
    }

    #[test]
    fn invalid_arguments_are_rejected() {
        for arguments in [
            ["--seconds", "0"],
            ["--seconds", "nan"],
            ["--rounds", "0"],
            ["--settle", "-1"],
            ["--subjects", "loden"],
        ] {
            assert!(
                Cli::try_parse_from(["loden-bench", "run"].iter().chain(&arguments)).is_err(),
                "{arguments:?}"
            );
        }
        assert!(Cli::try_parse_from(["loden-bench", "report"]).is_err());
        assert!(Cli::try_parse_from(["loden-bench", "scale", "--peers", "10"]).is_err());
    }

    #[test]
    fn the_list_names_and_describes_everything() {
        let list = list();
        assert!(list.contains("  W                Wire-like"), "{list}");
        assert!(
            list.lines().filter(|line| line.starts_with("  ")).all(|line| line.trim().contains("  ")),
            "{list}"
        );
    }
}
