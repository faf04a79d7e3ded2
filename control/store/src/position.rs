//! How far a watch has read. A store that is behind this was wiped, or restored from an older state.

use std::sync::{Arc, Mutex, PoisonError};

/// A point in the history of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Identifies the cluster; 0 in a store that has no such identity.
    pub cluster: u64,
    /// The revision up to which all changes are known.
    pub revision: u64,
}

/// The position of a watch. Clones share one state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<Option<Position>>>);

impl Position {
    /// Returns this position as a run leaves it that keeps peers which the store has lost: whatever the next
    /// one reads first is a rewind.
    pub fn ahead(self) -> Position {
        Position { revision: u64::MAX, ..self }
    }

    /// Returns true if a store that is at `now` has lost something that was there at this position.
    pub(crate) fn is_rewound(self, now: Position) -> bool {
        self.cluster != now.cluster || now.revision < self.revision
    }
}

impl Progress {
    pub(crate) fn get(&self) -> Option<Position> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, position: Position) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_with_less_or_another_history_is_rewound() {
        let at = |cluster, revision| Position { cluster, revision };
        for (now, rewound) in
            [(at(7, 9), false), (at(7, 10), false), (at(7, 8), true), (at(8, 9), true), (at(8, 99), true)]
        {
            assert_eq!(at(7, 9).is_rewound(now), rewound, "{now:?}");
            assert!(at(7, 9).ahead().is_rewound(now));
        }
    }
}
