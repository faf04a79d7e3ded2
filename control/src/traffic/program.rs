//! Runs one program of the firewall to its end, with input and a time limit.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest run of one program. Waiting for the lock of another one is part of it.
const LIMIT: Duration = Duration::from_secs(20);
/// Where Debian and others keep them, though an ordinary PATH may end before.
const USUAL_PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// As much of a program's complaint as an error quotes, in characters.
const QUOTE: usize = 300;

/// A program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("cannot find {name}: install the package {package}{}", alternative(package))]
    Missing {
        /// The program.
        name: String,
        /// The package it comes with.
        package: &'static str,
    },
    /// It could not be started, or its pipes broke.
    #[error("cannot run {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{} failed ({status}): {complaint}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// Its exit code, or the signal that ended it.
        status: std::process::ExitStatus,
        /// What it said, shortened.
        complaint: String,
    },
    /// It did not end.
    #[error("{} has not ended within {} seconds and was stopped", program.display(), LIMIT.as_secs())]
    Slow {
        /// The program.
        program: PathBuf,
    },
}

/// The directories in which programs are looked for.
#[derive(Clone, Debug)]
pub struct Programs {
    directories: Vec<PathBuf>,
}

impl Programs {
    /// Those of `PATH`, then the usual ones.
    pub fn from_env() -> Programs {
        let path: OsString = std::env::var_os("PATH").unwrap_or_default();
        let usual = USUAL_PLACES.map(PathBuf::from);
        Programs { directories: std::env::split_paths(&path).chain(usual).collect() }
    }

    /// These alone.
    pub fn in_directories(directories: Vec<PathBuf>) -> Programs {
        Programs { directories }
    }

    /// The first of that name, which comes with `package`.
    pub fn find(&self, name: &str, package: &'static str) -> Result<PathBuf, ProgramError> {
        let mut places = self.directories.iter().map(|directory| directory.join(name));
        places
            .find(|place| place.is_file())
            .ok_or_else(|| ProgramError::Missing { name: name.to_owned(), package })
    }
}

/// Runs `program` with `input`; what it printed. It ends with the future.
pub async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    let output = timeout(LIMIT, output(program, arguments, input))
        .await
        .map_err(|_| ProgramError::Slow { program: program.to_owned() })?
        .map_err(|source| ProgramError::Start { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said =
        String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
    let complaint = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(ProgramError::Failed {
        program: program.to_owned(),
        status: output.status,
        complaint: complaint.chars().take(QUOTE).collect(),
    })
}

async fn output(program: &Path, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let write = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        match stdin.write_all(input.as_bytes()).await {
            // It has ended before it read all; its exit code says more than the broken pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            answer => answer,
        }
    };
    // Both at once: a full pipe on one side must not stop the other.
    let (written, output) = tokio::join!(write, child.wait_with_output());
    written?;
    output
}

fn alternative(package: &str) -> &'static str {
    match package {
        "iptables" => ", or set EnableNFTables in the network configuration to use nftables",
        _ => "",
    }
}
