//! `loden install-conf`: one configuration, copied whole with its mode.
//!
//! What flannel's manifest starts as `/opt/bin/install-conf`; the binary does the same when it is called by that name.

use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;

use anyhow::anyhow;
use control::persist::atomic_file;

use super::{directory, given};
use crate::options::InstallConfOptions;

/// The subcommand, and flannel's program.
pub(crate) const NAME: &str = "install-conf";

/// Whether the program was called by the name of flannel's.
pub(crate) fn is_named_so(program: Option<&OsStr>) -> bool {
    crate::options::is_called(program, &[NAME])
}

/// Copies it, and prints one line.
pub(crate) fn run(options: &InstallConfOptions) -> anyhow::Result<ExitCode> {
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
