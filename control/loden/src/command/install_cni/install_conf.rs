//! `loden install-conf`: copies one configuration atomically, with its mode.
//!
//! flannel's manifest starts it as `/opt/bin/install-conf`; the binary does the same under that name.

use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;

use anyhow::anyhow;
use control::persist::atomic_file;

use super::{directory, given};
use crate::options::InstallConfOptions;
use crate::output::print;

/// The name of the subcommand and of flannel's program.
pub(crate) const NAME: &str = "install-conf";

/// Tells whether the program was called `install-conf`.
pub(crate) fn is_program_name(program: Option<&OsStr>) -> bool {
    crate::options::is_called(program, &[NAME])
}

/// Copies the configuration and prints one line.
pub(crate) fn run(options: &InstallConfOptions) -> anyhow::Result<ExitCode> {
    let wanted = given(&options.source, options.target.clone(), &[])?;
    directory(atomic_file::parent(&wanted.path), "TARGET")?;
    let written = atomic_file::write(&wanted.path, &wanted.bytes, wanted.mode).map_err(|error| {
        let next = match error.source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => "mount its directory writable",
            io::ErrorKind::PermissionDenied => "run as root",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
            io::ErrorKind::IsADirectory => "give a file name, not a directory",
            _ => "check its directory",
        };
        anyhow!("{error}; {next}")
    })?;
    print(&format!("{} {}\n", if written { "installed" } else { "unchanged" }, wanted.path.display()))?;
    Ok(ExitCode::SUCCESS)
}
