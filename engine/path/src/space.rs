//! Room for headers in a worker's arena: taken front to back, given back all at once.

use std::ops::Range;

/// A part of the arena that hands out pieces in order.
#[derive(Clone, Debug)]
pub struct Space {
    start: u32,
    next: u32,
    end: u32,
}

impl Space {
    /// All of `range`.
    pub fn new(range: Range<u32>) -> Space {
        Space { start: range.start, next: range.start, end: range.end }
    }

    /// Bytes left.
    #[inline]
    pub fn left(&self) -> usize {
        (self.end - self.next) as usize
    }

    /// The next `len` bytes, if there are so many.
    #[inline]
    pub fn take(&mut self, len: usize) -> Option<Range<u32>> {
        if len > self.left() {
            return None;
        }
        let at = self.next;
        self.next += len as u32;
        Some(at..self.next)
    }

    /// Gives everything back.
    #[inline]
    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

/// The bytes of a span; empty when the span does not lie inside the arena.
#[inline]
pub fn bytes<'a>(arena: &'a [u8], span: &Range<u32>) -> &'a [u8] {
    arena.get(span.start as usize..span.end as usize).unwrap_or_default()
}

/// As [`bytes()`], to write.
#[inline]
pub fn bytes_mut<'a>(arena: &'a mut [u8], span: &Range<u32>) -> &'a mut [u8] {
    arena.get_mut(span.start as usize..span.end as usize).unwrap_or_default()
}
