//! `loden-bench`: parses the command line, runs the subcommand and sets the exit code.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use bench::cli::{Cli, Command, ReportOptions, RunOptions, ScaleOptions, list};
use bench::interrupt::{Interrupt, Interrupted};
use bench::progress::Progress;
use bench::raw::{self, Environment, Raw, SCHEMA, Settings};
use bench::report::{self, Style, pivot, plot};
use bench::scenario::{Testbed, name_of};
use bench::subject::Context;
use bench::{ethtool, host, output, run, scale};
use clap::Parser as _;

/// Exit code after Ctrl-C, as in shells: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = match Cli::try_parse() {
        Ok(options) => options,
        Err(answer) => {
            // Nobody reads any more, or the disk is full: the code says the rest.
            let failed = answer.print().is_err_and(|error| error.kind() != ErrorKind::BrokenPipe);
            let code = if failed && !answer.use_stderr() { 1 } else { answer.exit_code() };
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
    };
    let answer = match options.command {
        Command::Run(options) => measure(&options),
        Command::Scale(options) => measure_many(&options, scale::scale),
        Command::Restart(options) => measure_many(&options, scale::restart),
        Command::Report(options) => show(&options).map(|()| ExitCode::SUCCESS),
        Command::List => output::print(&format!("{}\n", list())).map(|()| ExitCode::SUCCESS),
    };
    answer.unwrap_or_else(|error| {
        output::say(format_args!("loden-bench: {error:#}"));
        if error.is::<Interrupted>() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
    })
}

/// Runs the measurement. Succeeds only if every sample was taken.
fn measure(options: &RunOptions) -> Result<ExitCode> {
    let plan = options.plan();
    ensure!(lab::userns::privileged(), "creating network namespaces requires root: run with sudo");
    if plan.testbeds.contains(&Testbed::WireLike) {
        ethtool::find().map_err(anyhow::Error::msg)?;
    }
    let context = context(options.loden.as_deref(), &options.loden_args)?;
    let settings = Settings {
        rounds: plan.rounds,
        seconds: plan.seconds,
        baseline: name_of(options.baseline()),
        loden_args: context.loden_args.clone(),
    };
    let mut raw = Raw {
        schema: SCHEMA,
        environment: host::observe(),
        settings,
        samples: Vec::new(),
        failures: Vec::new(),
        notes: Vec::new(),
    };
    let mut progress = Progress::new(plan.samples(), options.output.clone());
    let ended = run::run(&plan, &context, &mut raw, &mut progress);
    progress.finish();
    if let Err(error) = &ended {
        raw.notes.push(format!("the run ended early: {error:#}"));
    }
    if let Some(path) = &options.output {
        raw::write(path, &raw)?;
    }
    if !raw.samples.is_empty() {
        output::print(&report::page(&raw, Style::Text))?;
    }
    ended?;
    if !raw.failures.is_empty() {
        bail!("{} of {} samples failed, or could not start", raw.failures.len(), plan.samples());
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a measurement with many peers.
fn measure_many(
    options: &ScaleOptions,
    measure: impl Fn(&scale::Options, &Context, &Environment) -> Result<()>,
) -> Result<ExitCode> {
    ensure!(lab::userns::privileged(), "creating network namespaces requires root: run with sudo");
    let context = context(options.loden.as_deref(), &options.loden_args)?;
    measure(&options.plan(), &context, &host::observe())?;
    Ok(ExitCode::SUCCESS)
}

fn context(program: Option<&Path>, arguments: &str) -> Result<Context> {
    Ok(Context {
        loden: loden(program)?,
        loden_args: arguments.split_whitespace().map(str::to_owned).collect(),
        interrupt: Interrupt::listen()?,
    })
}

fn show(options: &ReportOptions) -> Result<()> {
    let style = if options.markdown { Style::Markdown } else { Style::Text };
    let several = options.files.len() > 1;
    for (i, file) in options.files.iter().enumerate() {
        let raw = raw::read(file)?;
        if several {
            output::print(&format!("{}{}\n", if i > 0 { "\n" } else { "" }, heading(file, style)))?;
        }
        output::print(&report::page(&raw, style))?;
        if let Some(directory) = &options.plot {
            let stem = file.file_stem().filter(|_| several).map(PathBuf::from).unwrap_or_default();
            let written = plot::write(&pivot::pivot(&raw), &directory.join(stem))?;
            output::say(format_args!("{} plots in {}", written.len(), directory.display()));
        }
    }
    Ok(())
}

fn heading(file: &Path, style: Style) -> String {
    let name = file.display();
    if style == Style::Markdown { format!("## {name}\n") } else { format!("{name}\n") }
}

/// Returns the path of the given program, or of the one next to this program.
fn loden(given: Option<&Path>) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_path_buf(),
        None => {
            std::env::current_exe().context("cannot find this program's own path")?.with_file_name("loden")
        }
    };
    // Absolute, because the daemons may be started in another directory.
    let path = path.canonicalize().with_context(|| {
        format!("no loden program at {}: run cargo build --release -p loden, or set --loden", path.display())
    })?;
    Ok(path)
}
