//! The health of a watch: what it reported of the peers is no newer than its last successful read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::unix_now;

/// Since when a watch cannot read its store. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Unix seconds; 0 while the store can be read.
    lost: Arc<AtomicU64>,
}

impl Health {
    /// Returns the unix seconds since when the store cannot be read; `None` while it can.
    pub fn lost_since(&self) -> Option<u64> {
        Some(self.lost.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    /// Notes that the store cannot be read. The first time counts.
    pub(crate) fn lose(&self) {
        let _ = self.lost.compare_exchange(0, unix_now().max(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that the store was read.
    pub(crate) fn regain(&self) {
        self.lost.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blindness_counts_from_its_first_moment() {
        let health = Health::default();
        assert_eq!(health.lost_since(), None);
        health.lose();
        let since = health.lost_since().expect("blind");
        assert!(since > 0 && since <= unix_now());
        health.lost.store(7, Ordering::Relaxed);
        health.clone().lose();
        assert_eq!(health.lost_since(), Some(7));
        health.regain();
        assert_eq!(health.lost_since(), None);
    }
}
