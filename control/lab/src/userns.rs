//! Privileges for a user who is not root: a new user namespace, with the mount and network namespaces that
//! the lab needs.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::Error;

/// Bits of the effective capability set (`linux/capability.h`).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What the user can do if the kernel rejects the namespace.
const NEXT: &str = "run as root (sudo), or let users create namespaces: \
                    sysctl user.max_user_namespaces=10000 and, where they exist, \
                    kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0";

/// Returns true if this process may create network namespaces and devices.
pub fn privileged() -> bool {
    let needed = CAP_NET_ADMIN | CAP_SYS_ADMIN;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok());
    effective.is_some_and(|effective| effective & needed == needed)
}

/// Moves this process into a new user namespace, in which it is root, with a private `/run` and a network
/// namespace. Afterwards everything in this crate works as for root, and vanishes with the last process
/// inside. The machine's own network is not visible.
///
/// Must be called before any thread starts, because the kernel rejects it in a process with threads (EINVAL).
pub fn enter() -> Result<(), Error> {
    let (user, group) = (geteuid(), getegid());
    let rejected = |errno: nix::errno::Errno| Error::system("create a user namespace", errno).next(NEXT);
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(rejected)?;
    // setgroups has to be denied before a group map is written (user_namespaces(7)).
    for (file, line) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        fs::write(file, line).map_err(|error| Error::system(format!("write {file}"), error).next(NEXT))?;
    }
    let nothing: Option<&str> = None;
    let tried = |what: &str, errno| Error::system(what, errno).next(NEXT);
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(|errno| tried("make the mounts private", errno))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .map_err(|errno| tried("mount a private /run", errno))
}
