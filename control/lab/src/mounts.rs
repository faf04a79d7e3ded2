//! Mounts that only one thread and its children see.

use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::Error;

const NOTHING: Option<&str> = None;

/// Runs `work` on a thread with a mount namespace of its own: nobody else sees what it mounts, and its mounts
/// end with it. A panic of `work` is passed on.
pub fn private<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    let inside = || -> Result<R, Error> {
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| Error::system("make a mount namespace", errno).next("run as root"))?;
        // Slaves: what the machine mounts meanwhile is seen here too.
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING)
            .map_err(|errno| Error::system("make the mounts private", errno))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Mounts an empty memory filesystem over a directory. `size` is as in tmpfs(5): `64k`, `1m`.
pub fn tmpfs(place: &Path, size: &str) -> Result<(), Error> {
    let options = format!("size={size},mode=0777");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|errno| Error::system(format!("mount a tmpfs over {}", place.display()), errno))
}

/// Makes a mounted filesystem read-only, or writable again.
pub fn set_read_only(place: &Path, read_only: bool) -> Result<(), Error> {
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(NOTHING, place, NOTHING, MsFlags::MS_REMOUNT | flags, NOTHING)
        .map_err(|errno| Error::system(format!("remount {}", place.display()), errno))
}
