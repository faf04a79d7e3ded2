//! CPU affinity of threads and their children.

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, for the affinity calls.
const SELF: Pid = Pid::from_raw(0);

/// Returns the first and the last CPU that the calling thread may use; `None` if there is only one.
pub fn two_cpus() -> Result<Option<[usize; 2]>> {
    let set = sched_getaffinity(SELF).context("cannot read the CPU affinity")?;
    let mut allowed = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    let first = allowed.next();
    Ok(first.zip(allowed.next_back()).map(|(first, last)| [first, last]))
}

/// Binds the calling thread, and the children and threads that it starts later, to one CPU.
pub fn bind(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    let bound = set.set(cpu).and_then(|()| sched_setaffinity(SELF, &set));
    bound.with_context(|| format!("cannot bind to CPU {cpu}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_has_one_cpu_and_its_parent_keeps_all() {
        let before = two_cpus().unwrap();
        let cpu = before.map_or(0, |[_, last]| last);
        let inside = std::thread::spawn(move || bind(cpu).and_then(|()| two_cpus())).join().unwrap();
        assert_eq!(inside.unwrap(), None);
        assert_eq!(two_cpus().unwrap(), before);
    }

    #[test]
    fn a_cpu_that_cannot_exist_is_an_error() {
        assert!(bind(CpuSet::count()).is_err());
    }
}
