//! Pinning threads to cores.

use std::io;

use crate::sys;

/// Pins the calling thread to `core`. Fails with `InvalidInput` unless it is one of [`allowed_cores`].
pub fn pin_to_core(core: usize) -> io::Result<()> {
    sys::set_affinity(core)
}

/// Returns the cores that the scheduler and the container's cpuset allow the calling thread, in ascending
/// order. The number of workers should follow this count, not the machine's.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    sys::affinity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_allowed_cores_only() {
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
