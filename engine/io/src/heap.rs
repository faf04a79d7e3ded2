//! Returning freed memory to the kernel.

/// Returns the free pages of this process's heap to the kernel. This can take milliseconds, in which other
/// threads cannot allocate. An allocator other than glibc's returns memory by itself.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    crate::sys::trim_heap();
}
