//! What a file can answer instead: each one line, with the path in it and what to do next.

use std::path::PathBuf;

/// Why the file did not take a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqliteError {
    /// Another process held the file's lock all the time.
    #[error(
        "store {}: cannot {tried}: another process held its lock for {waited} s; \
         see who has it open (fuser {0}) and end that process, or try again", .path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// How long, in seconds.
        waited: u64,
    },
    /// A database, but a damaged one.
    #[error(
        "store {}: cannot {tried}: the file is damaged ({answer}); stop all daemons that use it, \
         move it away together with its -wal and -shm files, and start again: \
         set the network configuration, and each daemon takes back its subnet", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// What the database said.
        answer: String,
    },
    /// Some other file.
    #[error(
        "store {}: cannot {tried}: not a sqlite database ({answer}); \
         name another path, or move this file away", .path.display()
    )]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// What the database said.
        answer: String,
    },
    /// A database of another program.
    #[error(
        "store {}: a sqlite database, but not a lease store (application id {found:#x}); name another path", .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The application id in it.
        found: i64,
    },
    /// Written by a later release.
    #[error(
        "store {}: written by a newer release (schema {found}, this one knows {known}); \
         upgrade this daemon, or name another path", .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Schema number in the file.
        found: i64,
        /// Newest schema number we know.
        known: i64,
    },
    /// No room for a page.
    #[error("store {}: cannot {tried}: no space left on its filesystem ({answer}); free some and try again", .path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// What the system said.
        answer: String,
    },
    /// The file, its directory or the filesystem may not be written.
    #[error(
        "store {}: cannot {tried}: {answer}; every daemon needs to read and write the file \
         and to create files beside it: run as its owner, or name another path", .path.display()
    )]
    NoPermission {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// What the system said.
        answer: String,
    },
    /// Nowhere to put the file.
    #[error("store {}: directory {} does not exist; create it, or name another path", .path.display(), .directory.display())]
    NoDirectory {
        /// The file.
        path: PathBuf,
        /// What is missing.
        directory: PathBuf,
    },
    /// The file that was opened no longer has its name.
    #[error(
        "store {}: removed or replaced while in use; restart all daemons that use it", .path.display()
    )]
    Removed {
        /// The file.
        path: PathBuf,
    },
    /// Anything else the system may answer.
    #[error("store {}: cannot {tried}: {answer}; try again, and check the filesystem if it stays so", .path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        tried: &'static str,
        /// What the system said.
        answer: String,
    },
}

impl SqliteError {
    /// Whether the next try may succeed although nobody mends anything. The daemon does not wait for a file of its
    /// own machine: a person has to look at each of these.
    pub fn is_passing(&self) -> bool {
        false
    }
}
