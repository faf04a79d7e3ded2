//! Memory for what waits: packets for a session, and records for another worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What keeping bytes costs besides them: the allocation, and its place in a queue.
const EACH: usize = 64;

/// What must have come back before the allocator is asked to return it to the kernel.
const WORTH_RETURNING: usize = 1 << 20;

/// The bytes that the threads of a tunnel may keep at one time.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    size: usize,
    left: Arc<Left>,
}

#[derive(Debug)]
struct Left {
    now: AtomicUsize,
    /// The least that was left since the last return of memory.
    least: AtomicUsize,
}

/// A copy of some bytes, which counts against its budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: Box<[u8]>,
    budget: Budget,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Budget {
        let left = Left { now: AtomicUsize::new(bytes), least: AtomicUsize::new(bytes) };
        Budget { size: bytes, left: Arc::new(left) }
    }

    /// Copies the pieces into one. Returns `None` if the budget is used up.
    pub(crate) fn keep<'a>(&self, pieces: impl Iterator<Item = &'a [u8]> + Clone) -> Option<Kept> {
        let len: usize = pieces.clone().map(<[u8]>::len).sum();
        let take = |left: usize| left.checked_sub(len + EACH);
        let before = self.left.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        self.left.least.fetch_min(before - len - EACH, Ordering::Relaxed);
        let mut bytes = Vec::with_capacity(len);
        pieces.for_each(|piece| bytes.extend_from_slice(piece));
        Some(Kept { bytes: bytes.into_boxed_slice(), budget: self.clone() })
    }

    /// Returns memory to the kernel that has been kept and freed since the last call, if it is much: the
    /// allocator by itself keeps what is not at the end of its heap. This can take milliseconds. Returns
    /// whether nothing is kept any more.
    pub(crate) fn return_memory(&self) -> bool {
        let left = self.left();
        if left.saturating_sub(self.left.least.load(Ordering::Relaxed)) >= WORTH_RETURNING {
            self.left.least.store(left, Ordering::Relaxed);
            io::heap::trim();
        }
        left == self.size
    }

    /// Returns how many bytes may still be kept.
    pub(crate) fn left(&self) -> usize {
        self.left.now.load(Ordering::Relaxed)
    }
}

impl std::ops::Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.left.now.fetch_add(self.bytes.len() + EACH, Ordering::Relaxed);
    }
}
