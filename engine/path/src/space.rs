//! Space for headers in a worker's arena, allocated front to back and released all at once.

use std::ops::Range;

/// A part of the arena that is allocated in order.
#[derive(Clone, Debug)]
pub struct Space {
    start: u32,
    next: u32,
    end: u32,
}

impl Space {
    /// Creates a space over `range`.
    pub fn new(range: Range<u32>) -> Space {
        Space { start: range.start, next: range.start, end: range.end }
    }

    /// Returns the number of bytes left.
    #[inline]
    pub fn left(&self) -> usize {
        (self.end - self.next) as usize
    }

    /// Allocates the next `len` bytes, or returns `None` if fewer are left.
    #[inline]
    pub fn take(&mut self, len: usize) -> Option<Range<u32>> {
        if len > self.left() {
            return None;
        }
        let at = self.next;
        self.next += len as u32;
        Some(at..self.next)
    }

    /// Releases everything.
    #[inline]
    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

/// Returns the bytes of a span, or an empty slice if the span lies outside the arena.
#[inline]
pub fn bytes<'a>(arena: &'a [u8], span: &Range<u32>) -> &'a [u8] {
    arena.get(span.start as usize..span.end as usize).unwrap_or_default()
}

/// Returns the bytes of a span for writing; see [`bytes()`].
#[inline]
pub fn bytes_mut<'a>(arena: &'a mut [u8], span: &Range<u32>) -> &'a mut [u8] {
    arena.get_mut(span.start as usize..span.end as usize).unwrap_or_default()
}
