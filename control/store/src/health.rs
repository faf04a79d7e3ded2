//! Whether a watch sees the store: what it says of the peers is as old as that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::unix_now;

/// Since when a watch is blind. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Unix seconds; 0 while it sees.
    lost: Arc<AtomicU64>,
}

impl Sight {
    /// Unix seconds since when the store cannot be read; `None` while it can.
    pub fn lost_since(&self) -> Option<u64> {
        Some(self.lost.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    /// The store cannot be read. The first time counts.
    pub(super) fn lose(&self) {
        let _ = self.lost.compare_exchange(0, unix_now().max(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The store was read.
    pub(super) fn regain(&self) {
        self.lost.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blindness_counts_from_its_first_moment() {
        let sight = Sight::default();
        assert_eq!(sight.lost_since(), None);
        sight.lose();
        let since = sight.lost_since().expect("blind");
        assert!(since > 0 && since <= unix_now());
        sight.lost.store(7, Ordering::Relaxed);
        sight.clone().lose();
        assert_eq!(sight.lost_since(), Some(7));
        sight.regain();
        assert_eq!(sight.lost_since(), None);
    }
}
