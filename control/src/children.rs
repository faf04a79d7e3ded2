//! The processes that this daemon starts, and those that it inherits.
//!
//! As the first process of a container it becomes the parent of whatever outlives its own. The ones that it
//! has started are waited for by whoever has started them; all others are reaped here, or they would stay
//! zombies until no process can be made.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::process::{Child, Command};

/// The processes that somebody here waits for.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Zombies to reap in one go.
const MOST: usize = 1000;

/// A process that is waited for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Ours(Option<i32>);

/// Starts a process that the caller waits for.
pub(crate) fn spawn(command: &mut Command) -> io::Result<(Child, Ours)> {
    // Held meanwhile, so that it is known before it can be found as a zombie.
    let mut ours = ours();
    let child = command.spawn()?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    ours.extend(id);
    Ok((child, Ours(id)))
}

/// Reaps inherited zombies, if this is the first process of its namespace. To be called now and then.
pub(crate) fn reap_inherited() {
    if getpid() != Pid::from_raw(1) {
        return;
    }
    let ours = ours();
    for _ in 0..MOST {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let zombie = match waitid(Id::All, look) {
            Ok(WaitStatus::Exited(id, _) | WaitStatus::Signaled(id, ..)) => id,
            _ => return,
        };
        // The kernel shows one at a time; whoever waits for this one will reap it in a moment.
        if ours.contains(&zombie.as_raw()) {
            return;
        }
        if waitpid(zombie, Some(WaitPidFlag::WNOHANG)).is_err() {
            return;
        }
    }
}

fn ours() -> MutexGuard<'static, BTreeSet<i32>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            ours().remove(&id);
        }
    }
}
