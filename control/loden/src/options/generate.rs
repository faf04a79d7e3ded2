//! The options of `loden completions` and `loden manual`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// The options of `loden completions`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CompletionsOptions {
    /// The shell.
    pub shell: Shell,
}

/// The options of `loden manual`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ManualOptions {
    /// The directory to write the pages to; it must exist.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}
