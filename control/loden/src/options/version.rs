//! The options of `loden version`.

use clap::Args;

/// The options of `loden version`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct VersionOptions {
    /// Print JSON instead of lines.
    #[arg(long)]
    pub json: bool,
}
