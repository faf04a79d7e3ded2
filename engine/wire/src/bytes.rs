//! Writes into raw header bytes that cannot panic.

/// Writes `value` at `at`; a slice too short to hold it is left as it was.
#[inline(always)]
pub(crate) fn put<const N: usize>(header: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = header.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *field = value;
    }
}

/// The `N` bytes at `at`, if the slice holds them.
#[inline(always)]
pub(crate) fn take<const N: usize>(header: &[u8], at: usize) -> Option<[u8; N]> {
    header.get(at..)?.first_chunk::<N>().copied()
}
