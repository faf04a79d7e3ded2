//! The options of `loden cleanup`.

use std::path::PathBuf;

use clap::Args;
use control::settings::RUN_DIRECTORY;

/// `loden cleanup`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CleanupOptions {
    /// Only what the daemon of this name has made.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Where the daemons' state files are.
    #[arg(long, value_name = "PATH", default_value = RUN_DIRECTORY)]
    pub run_dir: PathBuf,
    /// Say what would go, and leave it.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although a daemon runs.
    #[arg(long)]
    pub force: bool,
}
