//! The handshake messages of this node that a reply may answer, for workers to look up.

use std::sync::atomic::{AtomicU32, Ordering};

use path::wireguard::SessionIndex;

/// One place for each value of an index's low half.
const PLACES: usize = 1 << 16;

/// The indices of handshake messages that this node has sent and that a response or cookie reply may answer.
/// Only the keeper changes them. A place with an index contains the index's high half plus one.
#[derive(Debug)]
pub(crate) struct Awaited(Box<[AtomicU32]>);

impl Awaited {
    pub(crate) fn new() -> Awaited {
        Awaited((0..PLACES).map(|_| AtomicU32::new(0)).collect())
    }

    /// Whether the index's place is free.
    pub(crate) fn has_place(&self, index: SessionIndex) -> bool {
        self.place(index).0.load(Ordering::Relaxed) == 0
    }

    /// Adds an index, in place of another one with the same low half.
    pub(crate) fn insert(&self, index: SessionIndex) {
        let (place, content) = self.place(index);
        place.store(content, Ordering::Release);
    }

    pub(crate) fn remove(&self, index: SessionIndex) {
        let (place, content) = self.place(index);
        if place.load(Ordering::Relaxed) == content {
            place.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn contains(&self, index: SessionIndex) -> bool {
        let (place, content) = self.place(index);
        place.load(Ordering::Acquire) == content
    }

    fn place(&self, index: SessionIndex) -> (&AtomicU32, u32) {
        (&self.0[index.0 as usize % PLACES], (index.0 >> 16) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_told_apart_and_the_newest_of_a_place_counts() {
        let awaited = Awaited::new();
        let [one, other] = [0xffff_0001, 0x0000_0001].map(SessionIndex);
        assert!(awaited.has_place(one) && !awaited.contains(one));
        awaited.insert(one);
        assert!(awaited.contains(one) && !awaited.contains(other) && !awaited.has_place(other));
        awaited.remove(other);
        assert!(awaited.contains(one));
        awaited.insert(other);
        assert!(awaited.contains(other) && !awaited.contains(one));
        awaited.remove(other);
        assert!(awaited.has_place(one));
    }
}
