//! `loden completions` and `loden manual`: what packages hold beside the program, out of the same options.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::CommandFactory;

use crate::options::{CommandLine, CompletionsOptions, ManualOptions};
use crate::output::print;

/// Prints the completions of one shell.
pub(crate) fn completions(options: CompletionsOptions) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut CommandLine::command(), "loden", &mut text);
    print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for the program and for each subcommand that `--help` lists.
pub(crate) fn manual(options: &ManualOptions) -> anyhow::Result<ExitCode> {
    let directory = &options.directory;
    ensure!(directory.is_dir(), "{} is not a directory; create it first", directory.display());
    clap_mangen::generate_to(CommandLine::command(), directory)
        .with_context(|| format!("cannot write the pages to {}", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
