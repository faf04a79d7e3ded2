//! Access to raw header bytes without panics.

/// Writes `value` at offset `at`. Does nothing if the slice is too short.
#[inline(always)]
pub(crate) fn put<const N: usize>(header: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = header.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *field = value;
    }
}

/// Returns the `N` bytes at offset `at`, or `None` if the slice is too short.
#[inline(always)]
pub(crate) fn take<const N: usize>(header: &[u8], at: usize) -> Option<[u8; N]> {
    header.get(at..)?.first_chunk::<N>().copied()
}
