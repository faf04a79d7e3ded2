//! The options of `loden cleanup`.

use std::path::PathBuf;

use clap::Args;
use control::settings::RUN_DIRECTORY;

/// The options of `loden cleanup`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CleanupOptions {
    /// Remove only what the daemon of this name created.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Directory of the daemons' state files.
    #[arg(long, value_name = "PATH", default_value = RUN_DIRECTORY)]
    pub run_dir: PathBuf,
    /// List what would be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Continue even if the daemon is running.
    #[arg(long)]
    pub force: bool,
}
