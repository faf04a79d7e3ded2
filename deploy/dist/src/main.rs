//! `deploy/release`: builds everything that a release holds into one directory.
//!
//! Each file appears under its name once it is whole. Nothing needs root, a daemon or a registry of images.

mod arch;
mod archive;
#[cfg(test)]
mod ci;
mod command;
mod debian;
mod image;
mod inventory;
mod layer;
mod notes;
mod oci;
mod output;
mod packages;
mod programs;
mod source;
mod toolchain;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use self::arch::Arch;
use self::output::Output;
use self::packages::Format;
use self::source::Source;
use self::toolchain::Toolchain;

/// Builds the files of a release.
#[derive(Debug, Parser)]
#[command(
    name = "deploy/release",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Options {
    #[command(subcommand)]
    task: Option<Task>,
    /// The directory for the files.
    #[arg(value_name = "DIR", required = true)]
    output: Option<PathBuf>,
    /// Build for these architectures.
    #[arg(
        long, value_enum, value_name = "LIST", value_delimiter = ',',
        default_values_t = [Arch::X86_64, Arch::Aarch64],
    )]
    target: Vec<Arch>,
    /// Build only these pieces, and what they need.
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    only: Vec<Piece>,
    /// Take the programs from DIR/ARCHITECTURE instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Use what earlier runs have downloaded, and nothing else.
    #[arg(long)]
    offline: bool,
}

/// What else can be asked for; a directory of such a name needs a ./ before it.
#[derive(Debug, Subcommand)]
enum Task {
    /// Print the notes of a version, from docs/changelog.md.
    Notes {
        /// The version, or Unreleased.
        #[arg(default_value = env!("CARGO_PKG_VERSION"))]
        version: String,
    },
}

/// A piece of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Piece {
    /// The static programs, with the symbols of each beside it.
    Programs,
    /// Of the programs, only the CNI plugin.
    Plugin,
    /// Archives of the programs.
    Tar,
    /// OCI images, one for each architecture and one for all.
    Image,
    /// Packages for Debian.
    Deb,
    /// Packages for Fedora and its like.
    Rpm,
}

fn main() -> ExitCode {
    match release(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deploy/release: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn release(options: &Options) -> Result<()> {
    let start = Instant::now();
    let source = Source::read()?;
    if let Some(Task::Notes { version }) = &options.task {
        let path = source.root.join("docs/changelog.md");
        let changelog =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        return writeln!(io::stdout(), "{}", notes::of(&changelog, version)?)
            .context("cannot print the notes");
    }
    let wants = |piece| options.only.is_empty() || options.only.contains(&piece);
    if source.commit.ends_with("-dirty") {
        eprintln!("deploy/release: the working tree is dirty; the version says {}", source.commit);
    }
    let packages = wants(Piece::Deb) || wants(Piece::Rpm);
    command::check(&needed(options).iter().map(String::as_str).collect::<Vec<_>>())?;
    let output = Output::open(options.output.as_deref().context("no directory for the files is given")?)?;
    let toolchain = match packages || options.programs.is_none() {
        true => Toolchain::prepare(options.offline)?,
        false => Toolchain::without_tools(options.offline)?,
    };
    let programs = programs::chosen(options.only == [Piece::Plugin]);
    for arch in &options.target {
        eprintln!("== programs for {} ({} s)", arch.name(), start.elapsed().as_secs());
        match &options.programs {
            Some(from) if options.only == [Piece::Image] => image::take(*arch, from, &output)?,
            Some(from) => programs::take(programs, *arch, &source, from, &output)?,
            None => programs::build(programs, *arch, &source, &toolchain, &output)?,
        }
    }
    if wants(Piece::Tar) {
        for arch in &options.target {
            archive::build(*arch, &source, &output)?;
        }
    }
    if wants(Piece::Image) {
        eprintln!("== image ({} s)", start.elapsed().as_secs());
        image::build(&options.target, &source, &toolchain, &output)?;
    }
    let formats: Vec<Format> = [(Piece::Deb, Format::Deb), (Piece::Rpm, Format::Rpm)]
        .into_iter()
        .filter_map(|(piece, format)| wants(piece).then_some(format))
        .collect();
    if !formats.is_empty() {
        eprintln!("== packages ({} s)", start.elapsed().as_secs());
        for arch in &options.target {
            packages::build(*arch, &formats, &source, &toolchain, &output)?;
        }
    }
    output.sums()?;
    eprintln!("== done after {} s: {}", start.elapsed().as_secs(), output.path().display());
    Ok(())
}

/// Returns the programs that a run needs from the beginning.
fn needed(options: &Options) -> Vec<String> {
    let mut names = vec!["readelf".to_owned()];
    if options.programs.is_none() {
        names.extend(["cargo".to_owned(), "rustc".to_owned(), "cc".to_owned()]);
        names.extend(options.target.iter().map(|arch| arch.objcopy()));
    }
    names
}
