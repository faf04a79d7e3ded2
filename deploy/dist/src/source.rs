//! The tree that is built: its version, commit and time.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Characters of a commit's hash that versions show.
const SHOWN: usize = 12;

/// The tree that is built.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The checkout.
    pub root: PathBuf,
    /// The version in Cargo.toml.
    pub version: &'static str,
    /// The commit, with `-dirty` if the tree has changes.
    pub commit: String,
    /// Seconds since 1970 that every file of the release carries.
    pub epoch: u64,
}

impl Source {
    /// Reads the checkout that this program was built from.
    pub(crate) fn read() -> Result<Source> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        Source::of(
            root.context("this crate does not lie in deploy/")?,
            std::env::var("SOURCE_DATE_EPOCH").ok(),
        )
    }

    /// Returns the time of the release as RFC 3339 writes it.
    pub(crate) fn time(&self) -> String {
        rfc3339(self.epoch)
    }

    fn of(root: &Path, epoch: Option<String>) -> Result<Source> {
        let git = |arguments: &[&str]| command::read(Command::new("git").current_dir(root).args(arguments));
        let epoch = match epoch {
            Some(text) => text.parse().with_context(|| {
                format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds since 1970")
            })?,
            None => git(&["log", "-1", "--format=%ct"])
                .context("the commit's time is unknown; set SOURCE_DATE_EPOCH")?
                .trim()
                .parse()?,
        };
        let commit = match git(&["rev-parse", "HEAD"]) {
            Ok(hash) if git(&["status", "--porcelain"])?.is_empty() => shown(&hash)?,
            Ok(hash) => shown(&hash)? + "-dirty",
            // An unpacked archive of the sources, with SOURCE_DATE_EPOCH.
            Err(_) => "unknown".to_owned(),
        };
        Ok(Source { root: root.to_owned(), version: env!("CARGO_PKG_VERSION"), commit, epoch })
    }
}

fn shown(hash: &str) -> Result<String> {
    match hash.get(..SHOWN) {
        Some(start) => Ok(start.to_owned()),
        None => bail!("git printed {hash:?} as a commit"),
    }
}

/// Writes seconds since 1970 as RFC 3339 does.
fn rfc3339(epoch: u64) -> String {
    let (mut days, seconds) = (epoch / 86_400, epoch % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{:02}T{hours:02}:{minutes:02}:{seconds:02}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows_in_the_commit_and_the_time_can_be_set() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path();
        let error = Source::of(root, None).expect_err("no commit");
        assert!(error.to_string().ends_with("set SOURCE_DATE_EPOCH"), "{error}");
        assert_eq!(Source::of(root, Some("7".into())).expect("a source").commit, "unknown");
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.current_dir(root).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]);
            command::read(git.args(arguments)).expect("git")
        };
        git(&["init", "-q"]);
        git(&["commit", "-q", "--allow-empty", "-m", "one", "--date", "@1000000000 +0000"]);
        let clean = Source::of(root, None).expect("a source");
        assert_eq!(clean.commit.len(), SHOWN);
        assert!(clean.epoch > 1_000_000_000);
        std::fs::write(root.join("new"), "").expect("a file");
        let dirty = Source::of(root, Some("7".into())).expect("a source");
        assert_eq!((dirty.commit, dirty.epoch), (clean.commit + "-dirty", 7));
        let error = Source::of(root, Some("soon".into())).expect_err("no number");
        assert!(error.to_string().contains("is not a number of seconds"), "{error}");
    }

    #[test]
    fn times_are_written_by_the_calendar() {
        for (epoch, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(epoch), expected);
        }
    }
}
