//! Runs one firewall program to completion, with input and a time limit.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use store::Kind;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::children;

/// Time limit for one program, including the time that it waits for another program's lock.
const LIMIT: Duration = Duration::from_secs(20);
/// Directories to search after PATH: an ordinary user's PATH may lack those where Debian and others install
/// firewall programs.
const USUAL_PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Number of characters of a program's output that an error quotes.
const QUOTE: usize = 300;

/// The failure of a program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program is not installed.
    #[error("cannot find {name}: install the package {package}{}", alternative(package))]
    Missing {
        /// The program.
        name: String,
        /// The package that contains the program.
        package: &'static str,
    },
    /// The program could not be started, or its pipes broke.
    #[error("cannot run {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The program exited with an error.
    #[error("{} failed ({status}): {complaint}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// The exit code, or the signal that ended the program.
        status: std::process::ExitStatus,
        /// The program's output, shortened.
        complaint: String,
    },
    /// The program did not finish in time.
    #[error("{} did not finish within {} seconds and was killed", program.display(), LIMIT.as_secs())]
    Slow {
        /// The program.
        program: PathBuf,
    },
}

impl ProgramError {
    /// Returns the kind of this failure, whatever the program printed.
    pub fn kind(&self) -> Kind {
        match self {
            ProgramError::Missing { name, .. } => Kind::new("program missing").of(name),
            ProgramError::Start { program, source } => {
                Kind::new("program not started").of(program.display()).of(source.kind())
            }
            ProgramError::Failed { program, status, .. } => {
                Kind::new("program failed").of(program.display()).of(status)
            }
            ProgramError::Slow { program } => Kind::new("program slow").of(program.display()),
        }
    }
}

/// The directories in which to search for programs.
#[derive(Clone, Debug)]
pub struct Programs {
    directories: Vec<PathBuf>,
}

impl Programs {
    /// Returns the directories of `PATH`, followed by the usual ones.
    pub fn from_env() -> Programs {
        let path: OsString = std::env::var_os("PATH").unwrap_or_default();
        let usual = USUAL_PLACES.map(PathBuf::from);
        Programs { directories: std::env::split_paths(&path).chain(usual).collect() }
    }

    /// Restricts the search to these directories.
    pub fn in_directories(directories: Vec<PathBuf>) -> Programs {
        Programs { directories }
    }

    /// Returns the first program of this name; the error names its `package`.
    pub fn find(&self, name: &str, package: &'static str) -> Result<PathBuf, ProgramError> {
        let mut places = self.directories.iter().map(|directory| directory.join(name));
        places
            .find(|place| place.is_file())
            .ok_or_else(|| ProgramError::Missing { name: name.to_owned(), package })
    }
}

/// Runs `program` with `input` and returns what it printed. Dropping the future kills the program.
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
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let (mut child, _ours) = children::spawn(&mut command)?;
    let stdin = child.stdin.take();
    let write = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        match stdin.write_all(input.as_bytes()).await {
            // The program exited before it read everything; its exit code says more than a broken pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            answer => answer,
        }
    };
    // Concurrently, because a full pipe in one direction must not block the other.
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
