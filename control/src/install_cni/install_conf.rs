//! `loden install-conf`: one configuration, copied whole with its mode.
//!
//! What flannel's manifest starts as `/opt/bin/install-conf`; the binary does the same when it is called by that name.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;

use super::{directory, given};
use crate::persist::atomic_file;

/// The subcommand, and flannel's program.
pub const NAME: &str = "install-conf";

/// `loden install-conf`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The configuration, like a ConfigMap's.
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// The file it is to be, like `/etc/cni/net.d/10-flannel.conflist`.
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}

/// Whether the program was called by the name of flannel's.
pub fn is_named_so(program: Option<&OsStr>) -> bool {
    crate::options::is_called(program, &[NAME])
}

/// Copies it, and prints one line.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let wanted = given(&options.source, options.target.clone())?;
    directory(atomic_file::parent(&wanted.path), "TARGET")?;
    let written = atomic_file::write(&wanted.path, &wanted.bytes, wanted.mode).map_err(|error| {
        let next = match error.source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => "mount its directory writable",
            io::ErrorKind::PermissionDenied => "run as root",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room",
            io::ErrorKind::IsADirectory => "name a file, not a directory",
            _ => "look at its directory",
        };
        anyhow!("{error}; {next}")
    })?;
    println!("{} {}", if written { "installed" } else { "unchanged" }, wanted.path.display());
    Ok(ExitCode::SUCCESS)
}
