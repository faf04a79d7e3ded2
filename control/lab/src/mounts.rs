//! Mounts that are visible only to one thread and its children.

use std::fs::File;
use std::os::fd::AsRawFd;
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

/// Mounts a filesystem that never answers over a directory, like a network filesystem whose server is gone,
/// until the file is dropped.
pub fn hanging(place: &Path) -> Result<File, Error> {
    let tried = || format!("mount a filesystem that hangs over {}", place.display());
    // A filesystem in userspace (fuse(4)) that no process serves.
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let device = device.map_err(|error| Error::system(tried(), error))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("loden-hangs"), place, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|errno| Error::system(tried(), errno))?;
    Ok(device)
}

/// Remounts a filesystem read-only or writable.
pub fn set_read_only(place: &Path, read_only: bool) -> Result<(), Error> {
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(NOTHING, place, NOTHING, MsFlags::MS_REMOUNT | flags, NOTHING)
        .map_err(|errno| Error::system(format!("remount {}", place.display()), errno))
}
