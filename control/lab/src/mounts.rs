//! Mounts that are visible only to one thread and its children.

use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::Error;

const NOTHING: Option<&str> = None;

/// Runs `work` on a thread with its own mount namespace: its mounts are invisible outside, and end with the
/// thread. A panic in `work` is propagated.
pub fn private<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    let inside = || -> Result<R, Error> {
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| Error::system("create a mount namespace", errno).next("run as root"))?;
        // Slaves, so that the machine's later mounts are visible here as well.
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING)
            .map_err(|errno| Error::system("make the mounts private", errno))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Mounts an empty tmpfs over a directory, with a `size` such as `64k` or `1m` (tmpfs(5)).
pub fn tmpfs(place: &Path, size: &str) -> Result<(), Error> {
    let options = format!("size={size},mode=0777");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|errno| Error::system(format!("mount a tmpfs over {}", place.display()), errno))
}

/// Remounts a filesystem read-only or writable.
pub fn set_read_only(place: &Path, read_only: bool) -> Result<(), Error> {
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(NOTHING, place, NOTHING, MsFlags::MS_REMOUNT | flags, NOTHING)
        .map_err(|errno| Error::system(format!("remount {}", place.display()), errno))
}
