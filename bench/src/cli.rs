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
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure, print the table, keep the raw results. Needs root.
    Run(RunOptions),
    /// Measure what many peers cost: traffic, idle CPU, joins, memory. Needs root.
    Scale(ScaleOptions),
    /// Measure what a restart costs among many peers. Needs root.
    Restart(ScaleOptions),
    /// Print the table of earlier runs again, from their raw results.
    Report(ReportOptions),
    /// Show what can be measured.
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
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds per load.
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = seconds)]
    pub seconds: f64,
    /// Wait up to so many seconds before each round for an idle machine; go on with a note if it is not.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = patience)]
    pub settle: f64,
    /// Subject the others are compared to; the first one measured if this one is not.
    #[arg(long, value_name = "SUBJECT", default_value = "kernel:vxlan")]
    pub baseline: Subject,
    /// The loden program [default: beside this one].
    #[arg(long, value_name = "PATH")]
    pub loden: Option<PathBuf>,
    /// Extra flags for `loden run`, in one argument: "--workers 1 --pin".
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub loden_args: String,
    /// Write the raw results to this file, after every round.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `loden-bench scale` and `loden-bench restart`.
#[derive(Clone, Debug, Args)]
pub struct ScaleOptions {
    /// Peers where there are many.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    pub peers: u32,
    /// Rounds of each part.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds per load.
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seconds to watch the daemons while nothing happens.
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = seconds)]
    pub idle: f64,
    /// Wait up to so many seconds before each round for an idle machine; go on with a note if it is not.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = patience)]
    pub settle: f64,
    /// The loden program [default: beside this one].
    #[arg(long, value_name = "PATH")]
    pub loden: Option<PathBuf>,
    /// Extra flags for `loden run`, in one argument: "--workers 1 --pin".
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub loden_args: String,
    /// Write the raw results into this directory, a file for each page.
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
    /// Write one SVG per testbed, load and figure into this directory; one level deeper by file if
    /// several are given.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

impl RunOptions {
    /// What to measure; a name given twice counts once.
    pub fn plan(&self) -> Plan {
        Plan {
            testbeds: once(&self.testbeds),
            subjects: once(&self.subjects),
            loads: once(&self.loads),
            rounds: self.rounds,
            seconds: self.seconds,
            settle: Duration::from_secs_f64(self.settle),
        }
    }

    /// The subject to compare to.
    pub fn baseline(&self) -> Subject {
        let asked = self.subjects.contains(&self.baseline).then_some(self.baseline);
        asked.or(self.subjects.first().copied()).unwrap_or(self.baseline)
    }
}

impl ScaleOptions {
    /// What to measure.
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

/// The text of `loden-bench list`: names with their meaning.
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
    within(text, 0.1)
}

fn patience(text: &str) -> Result<f64, String> {
    within(text, 0.0)
}

/// A number of seconds from `least` to an hour.
fn within(text: &str, least: f64) -> Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|e| e.to_string())?;
    if (least..=3600.0).contains(&seconds) { Ok(seconds) } else { Err(format!("{least} to 3600 seconds")) }
}

fn once<T: Copy + PartialEq>(given: &[T]) -> Vec<T> {
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
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_whole_programme() {
        let options = run_options(&[]);
        assert_eq!((options.rounds, options.seconds), (5, 3.0));
        let plan = options.plan();
        assert_eq!(plan.samples(), 2 * 5 * 4 * 6);
        assert_eq!(options.baseline(), Subject::KernelVxlan);
    }

    #[test]
    fn filters_keep_the_order_given_and_doubles_count_once() {
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
    fn nonsense_is_refused() {
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
    fn the_list_names_and_explains_everything() {
        let list = list();
        assert!(list.contains("  W                Wire-like"), "{list}");
        assert!(
            list.lines().filter(|line| line.starts_with("  ")).all(|line| line.trim().contains("  ")),
            "{list}"
        );
    }
}
