//! Tables from control to the workers, published whole and picked up between batches.
//!
//! Each worker has its own mailbox. Publishing stores the new table and increments the version; the worker
//! compares one integer per turn and takes the lock only if it has changed. The old table goes back through
//! the mailbox, so that the publisher frees its memory, never the packet path. A worker uses one table for a
//! whole batch, so no packet sees two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

struct Mailbox<T> {
    version: AtomicU64,
    slot: Mutex<Slot<T>>,
}

struct Slot<T> {
    next: Option<Arc<T>>,
    retired: Option<Arc<T>>,
}

/// Control's end.
pub struct Publisher<T> {
    mailboxes: Vec<Arc<Mailbox<T>>>,
}

/// A worker's end.
pub struct Reader<T> {
    mailbox: Arc<Mailbox<T>>,
    seen: u64,
    current: Arc<T>,
}

/// Creates a publisher and `readers` readers, which all start with `first`.
pub fn channel<T>(first: Arc<T>, readers: usize) -> (Publisher<T>, Vec<Reader<T>>) {
    let mailboxes: Vec<_> = (0..readers)
        .map(|_| {
            Arc::new(Mailbox {
                version: AtomicU64::new(0),
                slot: Mutex::new(Slot { next: None, retired: None }),
            })
        })
        .collect();
    let readers = mailboxes
        .iter()
        .map(|mailbox| Reader { mailbox: Arc::clone(mailbox), seen: 0, current: Arc::clone(&first) })
        .collect();
    (Publisher { mailboxes }, readers)
}

impl<T> Publisher<T> {
    /// Makes every reader use `table` from its next turn on. Frees the tables that readers have returned.
    pub fn publish(&self, table: &Arc<T>) {
        for mailbox in &self.mailboxes {
            let (replaced, retired);
            {
                let mut slot = mailbox.slot.lock().unwrap_or_else(PoisonError::into_inner);
                replaced = slot.next.replace(Arc::clone(table));
                retired = slot.retired.take();
            }
            mailbox.version.fetch_add(1, Ordering::Release);
            drop((replaced, retired));
        }
    }
}

impl<T> Reader<T> {
    /// Picks up the newest table, if there is one. Returns whether it changed.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let version = self.mailbox.version.load(Ordering::Acquire);
        if version == self.seen {
            return false;
        }
        self.seen = version;
        let mut slot = self.mailbox.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = slot.next.take() else { return false };
        // The publisher emptied `retired` when it put `next` in, so nothing is dropped here.
        slot.retired = Some(std::mem::replace(&mut self.current, next));
        true
    }

    /// Returns the table in use.
    #[inline]
    pub fn current(&self) -> &T {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_the_newest_and_old_tables_are_freed_by_the_publisher() {
        let first = Arc::new(1);
        let (publisher, mut readers) = channel(Arc::clone(&first), 2);
        assert!(!readers[0].refresh());
        let (second, third) = (Arc::new(2), Arc::new(3));
        publisher.publish(&second);
        assert!(readers[0].refresh());
        assert_eq!((*readers[0].current(), *readers[1].current()), (2, 1));
        publisher.publish(&third);
        assert!(readers[0].refresh() && readers[1].refresh() && !readers[1].refresh());
        assert_eq!((*readers[0].current(), *readers[1].current()), (3, 3));
        // `second` is in the first mailbox, `first` in the second one.
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 2));
        publisher.publish(&third);
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 1));
    }

    #[test]
    fn a_reader_on_another_thread_ends_with_the_last_table() {
        let (publisher, mut readers) = channel(Arc::new(0u64), 1);
        let mut reader = readers.remove(0);
        let thread = std::thread::spawn(move || {
            let mut last = 0;
            while last < 1000 {
                reader.refresh();
                assert!(*reader.current() >= last);
                last = *reader.current();
            }
        });
        for n in 1..=1000 {
            publisher.publish(&Arc::new(n));
        }
        thread.join().unwrap();
    }
}
