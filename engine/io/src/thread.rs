//! Cores and threads.

use std::io;

use crate::sys;

/// Pins the calling thread to `core`, one of [`allowed_cores`]. Fails with `InvalidInput` for others.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    sys::set_affinity(core)
}

/// The cores the calling thread may run on, ascending, as the scheduler and the container's cpuset
/// allow; their count, not the machine's, is what workers should be counted by.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    sys::affinity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_to_each_allowed_core_and_to_no_other() {
        std::thread::spawn(|| {
            let cores = allowed_cores().unwrap();
            assert!(!cores.is_empty());
            for &core in &cores {
                pin_to_core(core).unwrap();
                assert_eq!(allowed_cores().unwrap(), [core]);
            }
            assert!(pin_to_core(usize::MAX).is_err());
            assert!(pin_to_core(libc::CPU_SETSIZE as usize).is_err());
        })
        .join()
        .unwrap();
    }
}
