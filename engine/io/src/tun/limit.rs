//! Limits the memory of packets that wait in a device's queues.
//!
//! The driver limits each queue in packets, whatever their size, and does not charge them to their senders. A
//! small program (`TUNSETFILTEREBPF`, Linux 4.16) therefore counts the bytes that enter each queue and drops
//! packets beyond the limit. It shares its counts with the readers through a mapped array (`BPF_F_MMAPABLE`,
//! Linux 5.5), so that reading a packet costs one store.
//!
//! Large packets may fill only a part of a queue. The rest is left to small ones, so that a flow of small
//! packets is not silenced by large packets of another flow with the same queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::{self, BpfInstruction};

/// Bytes charged for a packet in addition to its length: about what the kernel allocates to describe it.
pub const OVERHEAD: usize = 1024;

/// Length of the longest small packet.
const SMALL: i32 = 2048;

/// Bytes of one queue's counts: those that entered, and on another cache line those that were read.
const STRIDE: usize = 128;
const READ_AT: usize = 64;

// linux/bpf_common.h, linux/bpf.h
const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const STORE_WORD: u8 = 0x63;
const ATOMIC_ADD_DOUBLE: u8 = 0xdb;
const LOAD_IMMEDIATE: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const SUBTRACT: u8 = 0x1f;
const JUMP: u8 = 0x05;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_GREATER: u8 = 0x25;
const JUMP_SIGNED_GREATER: u8 = 0x65;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const MAP_LOOKUP_ELEM: i32 = 1;

/// Offsets in `struct __sk_buff` (linux/bpf.h).
const SKB_LEN: i16 = 0;
const SKB_QUEUE: i16 = 12;

/// One queue's counts.
#[derive(Debug)]
pub(super) struct Gauge {
    counts: Arc<Counts>,
    at: usize,
}

/// The mapped array with the counts of all queues of a device.
#[derive(Debug)]
struct Counts {
    memory: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only accessed as atomics, which any thread may do.
unsafe impl Send for Counts {}
// SAFETY: as above.
unsafe impl Sync for Counts {}

/// Limits the `queues` queues of the device behind `fd` to `bytes` each. Returns a gauge for each queue.
pub(super) fn install(fd: BorrowedFd<'_>, queues: usize, bytes: usize) -> io::Result<Vec<Gauge>> {
    let map = sys::bpf_array(STRIDE as u32, queues as u32, sys::BPF_F_MMAPABLE)?;
    let counts = Arc::new(Counts::map(&map, queues)?);
    let filter = sys::bpf_socket_filter(&program(&map, bytes))?;
    sys::tun_set_filter(fd, Some(filter.as_fd()))?;
    Ok((0..queues).map(|queue| Gauge { counts: Arc::clone(&counts), at: queue * STRIDE }).collect())
}

/// Removes the limit that an earlier run may have left behind.
pub(super) fn remove(fd: BorrowedFd<'_>) {
    // Kernels without the request have no limit to remove.
    let _ = sys::tun_set_filter(fd, None);
}

impl Gauge {
    /// Deducts a packet of `len` bytes that was read.
    #[inline]
    pub(super) fn took(&self, len: usize) {
        let read = self.counts.at(self.at + READ_AT);
        // Only the reader of this queue writes the count.
        read.store(read.load(Ordering::Relaxed).wrapping_add((len + OVERHEAD) as u64), Ordering::Relaxed);
    }

    /// Corrects the count once the queue is empty: the driver may have dropped packets after they were
    /// counted. A packet that enters at this moment may be deducted twice, until the queue is empty again.
    #[inline]
    pub(super) fn emptied(&self) {
        let entered = self.counts.at(self.at).load(Ordering::Relaxed);
        let read = self.counts.at(self.at + READ_AT);
        if read.load(Ordering::Relaxed) != entered {
            read.store(entered, Ordering::Relaxed);
        }
    }
}

impl Counts {
    fn map(map: &OwnedFd, queues: usize) -> io::Result<Counts> {
        let len = queues * STRIDE;
        Ok(Counts { memory: sys::map_shared(map.as_fd(), len)?, len })
    }

    #[inline]
    fn at(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= self.len && offset.is_multiple_of(8));
        // SAFETY: the offset lies within the mapping, which begins at a page and lives as long as `self`; the
        // kernel's program also accesses this memory atomically or in whole, aligned words.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        sys::unmap(self.memory, self.len);
    }
}

/// Returns the program. It returns how many bytes of a packet to keep: all or none.
fn program(map: &OwnedFd, bytes: usize) -> [BpfInstruction; 24] {
    let limit = i32::try_from(bytes).unwrap_or(i32::MAX);
    let large = limit / 4 * 3;
    let one = BpfInstruction::new;
    [
        /*  0 */ one(MOVE, 6, 1, 0, 0),
        /*  1 */ one(LOAD_WORD, 7, 6, SKB_LEN, 0),
        /*  2 */ one(LOAD_WORD, 1, 6, SKB_QUEUE, 0),
        /*  3 */ one(STORE_WORD, 10, 1, -4, 0),
        /*  4 */ one(LOAD_IMMEDIATE, 1, PSEUDO_MAP_FD, 0, map.as_raw_fd()),
        /*  5 */ one(0, 0, 0, 0, 0),
        /*  6 */ one(MOVE, 2, 10, 0, 0),
        /*  7 */ one(ADD_IMMEDIATE, 2, 0, 0, -4),
        /*  8 */ one(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        // A queue without counts: go to 20.
        /*  9 */ one(JUMP_EQUAL, 0, 0, 10, 0),
        /* 10 */ one(LOAD_DOUBLE, 1, 0, 0, 0),
        /* 11 */ one(LOAD_DOUBLE, 2, 0, READ_AT as i16, 0),
        // Waiting bytes, perhaps negative: see `Gauge::emptied`.
        /* 12 */
        one(SUBTRACT, 1, 2, 0, 0),
        /* 13 */ one(JUMP_GREATER, 7, 0, 2, SMALL),
        /* 14 */ one(JUMP_SIGNED_GREATER, 1, 0, 7, limit),
        /* 15 */ one(JUMP, 0, 0, 1, 0),
        /* 16 */ one(JUMP_SIGNED_GREATER, 1, 0, 5, large),
        /* 17 */ one(MOVE, 2, 7, 0, 0),
        /* 18 */ one(ADD_IMMEDIATE, 2, 0, 0, OVERHEAD as i32),
        /* 19 */ one(ATOMIC_ADD_DOUBLE, 0, 2, 0, 0),
        /* 20 */ one(MOVE, 0, 7, 0, 0),
        /* 21 */ one(EXIT, 0, 0, 0, 0),
        /* 22 */ one(MOVE_IMMEDIATE, 0, 0, 0, 0),
        /* 23 */ one(EXIT, 0, 0, 0, 0),
    ]
}
