//! `loden`: parse the command line, do it, set the exit code.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use control::flanneld::Request;
use control::install_cni::install_conf;
use control::options::{Command, Options, RunOptions};
use control::{cleanup, daemon, demo, docker_opts, doctor, flanneld, install_cni, load_command, status};
use tracing::level_filters::LevelFilter;

/// The command line makes no sense: what clap uses as well.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if flanneld::is_named_so(program.as_deref()) {
        return as_flanneld(arguments);
    }
    // flannel's programs, whose names are subcommands here.
    let name = if docker_opts::is_named_so(program.as_deref()) {
        Some(docker_opts::NAME)
    } else {
        install_conf::is_named_so(program.as_deref()).then_some(install_conf::NAME)
    };
    let options = match name {
        Some(name) => Options::parse_from(["loden", name].map(OsString::from).into_iter().chain(arguments)),
        None => Options::parse(),
    };
    if !matches!(options.command, Command::Flanneld(_)) {
        log_to_stderr(options.verbose);
    }
    match &options.command {
        Command::Run(run) => run_daemon(run),
        Command::Flanneld(line) => as_flanneld(line.arguments.iter().cloned()),
        Command::Status(options) => {
            status::run(options).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::Cleanup(options) => {
            in_runtime(cleanup::run(options)).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::Doctor(doctor) => {
            in_runtime(doctor::run(doctor)).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::Demo(demo) => demo::run(demo).unwrap_or_else(|error| failed(&format!("{error:#}"))),
        Command::InstallCni(options) => {
            install_cni::run(options).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::InstallConf(options) => {
            install_conf::run(options).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::MkDockerOpts(options) => {
            docker_opts::run(options).unwrap_or_else(|error| failed(&format!("{error:#}")))
        }
        Command::Load(load) => load_command::run(load).unwrap_or_else(|error| failed(&format!("{error:#}"))),
    }
}

/// flanneld's command line in place of our own.
fn as_flanneld(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match flanneld::parse(arguments, |name| std::env::var_os(name)) {
        Ok(Request::Run(invocation)) => {
            log_to_stderr(invocation.verbose);
            invocation.complaints.iter().for_each(|complaint| tracing::warn!("{complaint}"));
            run_daemon(&invocation.options)
        }
        Ok(Request::Version) => {
            eprintln!("loden {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Request::Usage) => {
            print!("{}", flanneld::usage());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flanneld: {error}; flanneld -h lists the flags");
            ExitCode::from(USAGE)
        }
    }
}

fn run_daemon(options: &RunOptions) -> ExitCode {
    in_runtime(daemon::run(options)).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
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
