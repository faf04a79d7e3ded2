//! The errors of the sqlite store: each one line, with the file's path and what to do next.

use std::path::PathBuf;

use crate::kind::Kind;

/// Why a step on the file failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqliteError {
    /// Another process held the file's lock for longer than we wait.
    #[error(
        "store {}: cannot {tried}: another process held its lock for {waited} s; \
         find it with fuser {0} and end it, or try again", .path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        tried: &'static str,
        /// Seconds waited.
        waited: u64,
    },
    /// A damaged database.
    #[error(
        "store {}: cannot {tried}: the file is damaged ({answer}); stop all daemons that use it, \
         move it away together with its -wal and -shm files, and restart them: \
         set the network configuration again, and each daemon takes its subnet back", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        tried: &'static str,
        /// The database's answer.
        answer: String,
    },
    /// A file of another kind.
    #[error(
        "store {}: cannot {tried}: not a sqlite database ({answer}); \
         name another path, or move this file away", .path.display()
    )]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        tried: &'static str,
        /// The database's answer.
        answer: String,
    },
    /// A database of another program.
    #[error(
        "store {}: a sqlite database, but not a lease store (application id {found:#x}); name another path",
        .path.display()
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
        /// The file's schema number.
        found: i64,
        /// The newest schema number known here.
        known: i64,
    },
    /// The filesystem has no room for a page.
    #[error(
        "store {}: cannot {tried}: no space left on its filesystem ({answer}); free some and try again",
        .path.display()
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        tried: &'static str,
        /// The system's answer.
        answer: String,
    },
    /// The file, its directory or the filesystem is not writable.
    #[error(
        "store {}: cannot {tried}: {answer}; every daemon needs to read and write the file \
         and to create files beside it: run as its owner, or name another path", .path.display()
    )]
    NoPermission {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        tried: &'static str,
        /// The system's answer.
        answer: String,
    },
    /// The file's directory does not exist.
    #[error(
        "store {}: directory {} does not exist; create it, or name another path",
        .path.display(), .directory.display()
    )]
    NoDirectory {
        /// The file.
        path: PathBuf,
        /// The missing directory.
        directory: PathBuf,
    },
    /// The open file no longer has its name.
    #[error(
        "store {}: removed while in use; put it back, or it is created again in a few seconds",
        .path.display()
    )]
    Removed {
        /// The file.
        path: PathBuf,
    },
    /// Any other answer of the system.
    #[error(
        "store {}: cannot {tried}: {answer}; try again, and check the filesystem if it happens again",
        .path.display()
    )]
    System {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        tried: &'static str,
        /// The system's answer.
        answer: String,
    },
}

impl SqliteError {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            SqliteError::Locked { .. } => Kind::new("sqlite locked"),
            SqliteError::Corrupt { .. } => Kind::new("sqlite corrupt"),
            SqliteError::NotADatabase { .. } => Kind::new("sqlite: no database"),
            SqliteError::Foreign { .. } => Kind::new("sqlite foreign"),
            SqliteError::Newer { .. } => Kind::new("sqlite newer"),
            SqliteError::DiskFull { .. } => Kind::new("sqlite: disk full"),
            SqliteError::NoPermission { answer, .. } => Kind::new("sqlite: no permission").of_text(answer),
            SqliteError::NoDirectory { .. } => Kind::new("sqlite: no directory"),
            SqliteError::Removed { .. } => Kind::new("sqlite removed"),
            SqliteError::System { answer, .. } => Kind::new("sqlite: system").of_text(answer),
        }
    }

    /// Returns true if the next attempt may succeed although nobody has changed anything: only where the file
    /// is created again. It is on this machine, and each of the other errors needs a person.
    pub fn is_passing(&self) -> bool {
        matches!(self, SqliteError::Removed { .. })
    }
}
