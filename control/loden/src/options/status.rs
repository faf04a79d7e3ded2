//! The options of `loden status`.

use std::path::PathBuf;

use clap::Args;
use control::settings::RUN_DIRECTORY;

/// The options of `loden status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusOptions {
    /// Show only the daemon of this name.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Directory of the daemons' sockets.
    #[arg(long, value_name = "PATH", default_value = RUN_DIRECTORY)]
    pub run_dir: PathBuf,
    /// Print JSON instead of text: {"daemons": [...]}.
    #[arg(long)]
    pub json: bool,
}
