//! `loden`: parses the command line, runs the subcommand and sets the exit code.

mod command;
mod flanneld;
mod options;
mod output;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use clap::error::{ContextKind, ContextValue};

use self::command::install_cni::install_conf;
use self::command::{
    cleanup, demo, doctor, generate, install_cni, load, mk_docker_opts, run, status, version,
};
use self::flanneld::Request;
use self::options::{Command, CommandLine};
use self::output::{log_to_stderr, print, say};

/// Exit code for an invalid command line, the same as clap's.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if flanneld::is_program_name(program.as_deref()) {
        return as_flanneld(arguments);
    }
    // flannel's programs, whose names are subcommands here.
    let name = if mk_docker_opts::is_program_name(program.as_deref()) {
        Some(mk_docker_opts::NAME)
    } else {
        install_conf::is_program_name(program.as_deref()).then_some(install_conf::NAME)
    };
    let line = match name {
        Some(name) => {
            CommandLine::try_parse_from(["loden", name].map(OsString::from).into_iter().chain(arguments))
        }
        None => CommandLine::try_parse(),
    };
    let line = match line {
        Ok(line) => line,
        Err(answer) => return show(&advised(answer)),
    };
    if !matches!(line.command, Command::Flanneld(_)) {
        log_to_stderr(line.verbose);
    }
    exit_code(match &line.command {
        Command::Run(options) => in_runtime(run::run(options)),
        Command::Flanneld(line) => return as_flanneld(line.arguments.iter().cloned()),
        Command::Status(options) => status::run(options),
        Command::Cleanup(options) => in_runtime(cleanup::run(options)),
        Command::Doctor(options) => in_runtime(doctor::run(options)),
        Command::Demo(options) => demo::run(options),
        Command::InstallCni(options) => install_cni::run(options),
        Command::InstallConf(options) => install_conf::run(options),
        Command::MkDockerOpts(options) => mk_docker_opts::run(options),
        Command::Version(options) => version::run(*options),
        Command::Completions(options) => generate::completions(*options),
        Command::Manual(options) => generate::manual(options),
        Command::Load(options) => load::run(options),
    })
}

/// Adds what clap cannot know: which option is meant, and how a switch gets its value.
fn advised(mut answer: clap::Error) -> clap::Error {
    let Some(ContextValue::String(argument)) = answer.get(ContextKind::InvalidArg) else { return answer };
    match argument.as_str() {
        "--interface" => {
            answer.insert(ContextKind::SuggestedArg, ContextValue::String("--iface".to_owned()));
            // It shows the option that is not meant.
            answer.remove(ContextKind::Usage);
        }
        "true" | "false" => {
            let tip = format!("a switch takes its value after =, as in --ip-masq={argument}");
            answer.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        }
        _ => {}
    }
    answer
}

/// Prints what clap says instead of a command line: the help, the version, or what is wrong.
fn show(answer: &clap::Error) -> ExitCode {
    match answer.print() {
        Err(error) if error.kind() != ErrorKind::BrokenPipe && !answer.use_stderr() => {
            exit_code(Err(error).context("cannot write to the standard output"))
        }
        _ => ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(USAGE)),
    }
}

/// Runs with flanneld's command line.
fn as_flanneld(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match flanneld::parse(arguments, |name| std::env::var_os(name)) {
        Ok(Request::Run(invocation)) => {
            log_to_stderr(invocation.verbose);
            invocation.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            exit_code(in_runtime(run::run(&invocation.options)))
        }
        Ok(Request::Version) => {
            say(format_args!("loden {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Ok(Request::Usage) => exit_code(print(&flanneld::usage()).map(|()| ExitCode::SUCCESS)),
        Err(error) => {
            say(format_args!("flanneld: {error}; flanneld -h lists the flags"));
            ExitCode::from(USAGE)
        }
    }
}

/// Runs the future on this thread.
fn in_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot set up the event loop; check the limits on open files and threads")?;
    let result = runtime.block_on(work);
    // Does not wait for threads that are still stopping: after a second signal the process ends at once.
    runtime.shutdown_background();
    result
}

fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        say(format_args!("loden: {}", with_causes(&error)));
        ExitCode::FAILURE
    })
}

/// Returns the error's text, with the causes that the text does not contain.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.is_empty() {
            true => cause,
            false if text.contains(&cause) => text,
            false => format!("{text}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_on_the_command_line_are_explained() {
        for (line, expected, not) in [
            (&["run", "--ip-masq", "true"][..], "--ip-masq=true", "tip: to pass"),
            (&["run", "--ip-masq", "false"], "--ip-masq=false", "tip: to pass"),
            (&["run", "--interface", "eth0"], "'--iface'", "--instance"),
            (&["run", "--interface=eth0"], "'--iface'", "--instance"),
        ] {
            let line = std::iter::once("loden").chain(line.iter().copied());
            let text = advised(CommandLine::try_parse_from(line).expect_err("a mistake")).to_string();
            assert!(text.contains(expected) && !text.contains(not), "{text}");
        }
    }

    #[test]
    fn a_cause_in_the_text_is_not_repeated() {
        let cause = || std::io::Error::other("refused");
        let named = anyhow::Error::new(cause()).context("cannot ask: refused; be root");
        assert_eq!(with_causes(&named), "cannot ask: refused; be root");
        assert_eq!(with_causes(&anyhow::Error::new(cause()).context("cannot ask")), "cannot ask: refused");
    }
}
