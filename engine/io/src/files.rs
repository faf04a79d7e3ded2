//! The process's limit of open files.

use std::fs;
use std::io;

use crate::sys;

/// What to do about too many open files; `--workers` is an option of the daemon.
pub const ADVICE: &str =
    "raise the hard limit of open files (LimitNOFILE= of a systemd unit, ulimit -Hn), or use fewer --workers";

/// The error for too many open files.
pub const EXHAUSTED: i32 = libc::EMFILE;

/// Limit up to which we raise ours: 256 workers with two tunnels need a sixth of it. Commands that the daemon
/// runs inherit the limit, and some close every descriptor below it.
const ENOUGH: u64 = 1 << 16;

/// Raises the soft limit of open files to the hard limit, or as far as anybody needs. Returns the limit in
/// force.
pub fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = sys::file_limits()?;
    let wanted = hard.min(ENOUGH);
    if soft >= wanted {
        return Ok(soft);
    }
    sys::set_file_limits(wanted, hard).map(|()| wanted)
}

/// Returns how many more files this process can open; `None` if that is unknown.
pub fn left() -> Option<u64> {
    let (soft, _) = sys::file_limits().ok()?;
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(soft.saturating_sub(open as u64))
}

/// Returns whether an error says that too many files are open.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_and_opened_files_count() {
        let limit = raise_limit().unwrap();
        let (soft, hard) = sys::file_limits().unwrap();
        assert_eq!(soft, limit);
        assert!(soft >= hard.min(ENOUGH), "{soft} of {hard}");
        let before = left().unwrap();
        assert!(before < limit);
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process open and close files too.
        assert!(left().unwrap().abs_diff(before - 100) < 60);
        drop(files);
    }
}
