//! `loden`: parse the command line, do it, set the exit code.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use control::options::{Command, Options};
use control::{daemon, demo, doctor, load_command};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let options = Options::parse();
    log_to_stderr(options.verbose);
    match &options.command {
        Command::Run(run) => {
            in_runtime(daemon::run(run)).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
        }
        Command::Doctor(doctor) => {
            in_runtime(doctor::run(doctor)).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::Demo(demo) => demo::run(demo).unwrap_or_else(|error| failed(&format!("{error:#}"))),
        Command::Load(load) => load_command::run(load).unwrap_or_else(|error| failed(&format!("{error:#}"))),
    }
}

/// Runs the future on this thread; its error or the runtime's own.
fn in_runtime<T, E: From<std::io::Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // Not waiting for threads that are still stopping: after a second signal nobody wants to.
    runtime.shutdown_background();
    result
}

fn failed(error: &dyn Display) -> ExitCode {
    eprintln!("loden: {error}");
    ExitCode::FAILURE
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .init();
}
