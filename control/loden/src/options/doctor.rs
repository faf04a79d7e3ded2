//! The options of `loden doctor`.

use clap::Args;

/// The options of `loden doctor`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}
