//! Limits the memory of packets that wait in a device's queues.
//!
//! The driver limits each queue in packets, whatever their size, and does not charge them to their senders. A
//! small program (`TUNSETFILTEREBPF`, Linux 4.16) therefore counts the bytes that enter each queue and drops
//! packets beyond the limit. It shares its counts with the readers through a mapped array (`BPF_F_MMAPABLE`,
//! Linux 5.5), so that reading a packet costs one store.
//!
//! A sender, by its inner source address, may have at most four times as much waiting in a queue as is left
//! of the limit, however many flows it has: one sender fills four fifths of a queue, two fill eight ninths,
//! and whoever comes next finds room. Large packets may fill only three quarters together. The rest is left
//! to small ones, so that a sender's own small packets are not silenced either.

use std::hash::{BuildHasher, RandomState};
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

/// Binary logarithm of how many times what is left of a queue's limit one sender may have waiting.
const SHARE_SHIFT: i32 = 2;

/// Counts of senders per queue. Senders with the same one share it.
const SLOTS: usize = 64;
const SLOT_SHIFT: i32 = 58;

/// Lengths of the shortest packets whose sender is looked for: an IPv4 header, and an IPv6 header up to the
/// end of the source address.
const LEAST_V4: usize = 20;
const LEAST_V6: usize = 24;

/// Bytes of one queue's counts: those that entered, and on another cache line those that were read; then the
/// same for each sender.
const READ_AT: usize = 64;
const SLOTS_AT: usize = 128;
const SLOTS_READ_AT: usize = SLOTS_AT + SLOTS * 8;
const STRIDE: usize = SLOTS_READ_AT + SLOTS * 8;

// linux/bpf_common.h, linux/bpf.h
const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const STORE_WORD: u8 = 0x63;
const ATOMIC_ADD_DOUBLE: u8 = 0xdb;
const LOAD_IMMEDIATE: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const LOAD_PACKET_WORD: u8 = 0x20;
const LOAD_PACKET_BYTE: u8 = 0x30;
const ADD: u8 = 0x0f;
const MULTIPLY: u8 = 0x2f;
const XOR: u8 = 0xaf;
const SHIFT_LEFT_IMMEDIATE: u8 = 0x67;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_LESS: u8 = 0xa5;
const JUMP_SIGNED_LESS: u8 = 0xc5;
const JUMP_SIGNED_GREATER_THAN: u8 = 0x6d;
const ADD_IMMEDIATE: u8 = 0x07;
const SUBTRACT: u8 = 0x1f;
const JUMP: u8 = 0x05;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_GREATER: u8 = 0x25;
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
    /// Keeps pods from choosing addresses that share a count with another's.
    key: u64,
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
    // Odd, so that no part of an address is lost.
    let key = RandomState::new().hash_one(0) | 1;
    let filter = sys::bpf_socket_filter(&program(&map, bytes, key))?;
    sys::tun_set_filter(fd, Some(filter.as_fd()))?;
    Ok((0..queues).map(|queue| Gauge { counts: Arc::clone(&counts), at: queue * STRIDE, key }).collect())
}

/// Removes the limit that an earlier run may have left behind.
pub(super) fn remove(fd: BorrowedFd<'_>) {
    // Kernels without the request have no limit to remove.
    let _ = sys::tun_set_filter(fd, None);
}

impl Gauge {
    /// Deducts a packet that was read.
    #[inline]
    pub(super) fn took(&self, packet: &[u8]) {
        let Some(slot) = slot(packet, self.key) else { return };
        for at in [READ_AT, SLOTS_READ_AT + slot * 8] {
            let read = self.counts.at(self.at + at);
            // Only the reader of this queue writes the count.
            let sum = read.load(Ordering::Relaxed).wrapping_add((packet.len() + OVERHEAD) as u64);
            read.store(sum, Ordering::Relaxed);
        }
    }

    /// Corrects the counts once the queue is empty: the driver may have dropped packets after they were
    /// counted. A packet that enters at this moment may be deducted twice, until the queue is empty again. A
    /// sender's count is only wrong if the queue's was, and then all are corrected.
    #[inline]
    pub(super) fn emptied(&self) {
        if self.correct(0, READ_AT) {
            for slot in 0..SLOTS {
                self.correct(SLOTS_AT + slot * 8, SLOTS_READ_AT + slot * 8);
            }
        }
    }

    /// Makes a count of read bytes equal to that of bytes that entered. Returns whether they differed.
    #[inline]
    fn correct(&self, entered: usize, read: usize) -> bool {
        let entered = self.counts.at(self.at + entered).load(Ordering::Relaxed);
        let read = self.counts.at(self.at + read);
        let differ = read.load(Ordering::Relaxed) != entered;
        if differ {
            read.store(entered, Ordering::Relaxed);
        }
        differ
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

/// Selects the slot of the sender of an IP packet, as the program does: by a polynomial over the words of its
/// source address. Returns `None` for what is no IP packet, which is not counted: no pod can send it, and the
/// queue's length limits it.
#[inline]
fn slot(packet: &[u8], key: u64) -> Option<usize> {
    let source = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= LEAST_V4 => 12..16,
        Some(6) if packet.len() >= LEAST_V6 => 8..LEAST_V6,
        _ => return None,
    };
    let (words, _) = packet.get(source)?.as_chunks::<4>();
    let hash = words
        .iter()
        .fold(0u64, |hash, word| hash.wrapping_add(u64::from(u32::from_be_bytes(*word))).wrapping_mul(key));
    // Neighbouring addresses differ little so far.
    let hash = (hash ^ hash >> 32).wrapping_mul(key);
    Some((hash >> SLOT_SHIFT) as usize)
}

/// Returns the program. It returns how many bytes of a packet to keep: all or none.
///
/// R6 is the packet, R7 its length, R8 the sender's hash and then its slot, R9 the queue's counts.
fn program(map: &OwnedFd, bytes: usize, key: u64) -> Vec<BpfInstruction> {
    let limit = i32::try_from(bytes).unwrap_or(i32::MAX);
    let large = limit / 4 * 3;
    let one = BpfInstruction::new;
    // Loads change R1 to R5, so the key is loaded again for each word.
    let hash = |word: i32| {
        [
            one(LOAD_PACKET_WORD, 0, 0, 0, word),
            one(ADD, 8, 0, 0, 0),
            one(LOAD_IMMEDIATE, 1, 0, 0, key as u32 as i32),
            one(0, 0, 0, 0, (key >> 32) as u32 as i32),
            one(MULTIPLY, 8, 1, 0, 0),
        ]
    };
    let v4 = hash(12);
    let v6: Vec<_> = [8, 12, 16, 20].into_iter().flat_map(hash).collect();
    let hash_v6 = v6.len() as i16;
    let past_v4 = [one(JUMP, 0, 0, v4.len() as i16, 0)];
    let to_v4 = hash_v6 + past_v4.len() as i16;
    // To the place in `rest` that keeps the packet. A load beyond its end would drop it.
    let to_keep = to_v4 + v4.len() as i16 + 37;
    let begin = [
        one(MOVE, 6, 1, 0, 0),
        one(LOAD_WORD, 7, 6, SKB_LEN, 0),
        one(MOVE_IMMEDIATE, 8, 0, 0, 0),
        one(JUMP_LESS, 7, 0, 5 + to_keep, LEAST_V4 as i32),
        one(LOAD_PACKET_BYTE, 0, 0, 0, 0),
        one(SHIFT_RIGHT_IMMEDIATE, 0, 0, 0, 4),
        one(JUMP_EQUAL, 0, 0, 2 + to_v4, 4),
        one(JUMP_NOT_EQUAL, 0, 0, 1 + to_keep, 6),
        one(JUMP_LESS, 7, 0, to_keep, LEAST_V6 as i32),
    ];
    let rest = [
        one(MOVE, 1, 8, 0, 0),
        one(SHIFT_RIGHT_IMMEDIATE, 1, 0, 0, 32),
        one(XOR, 8, 1, 0, 0),
        one(LOAD_IMMEDIATE, 1, 0, 0, key as u32 as i32),
        one(0, 0, 0, 0, (key >> 32) as u32 as i32),
        one(MULTIPLY, 8, 1, 0, 0),
        one(SHIFT_RIGHT_IMMEDIATE, 8, 0, 0, SLOT_SHIFT),
        one(SHIFT_LEFT_IMMEDIATE, 8, 0, 0, 3),
        one(LOAD_WORD, 1, 6, SKB_QUEUE, 0),
        one(STORE_WORD, 10, 1, -4, 0),
        one(LOAD_IMMEDIATE, 1, PSEUDO_MAP_FD, 0, map.as_raw_fd()),
        one(0, 0, 0, 0, 0),
        one(MOVE, 2, 10, 0, 0),
        one(ADD_IMMEDIATE, 2, 0, 0, -4),
        one(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        // A queue without counts: keep.
        one(JUMP_EQUAL, 0, 0, 21, 0),
        one(MOVE, 9, 0, 0, 0),
        // R1: waiting bytes of the queue, perhaps negative: see `Gauge::emptied`.
        one(LOAD_DOUBLE, 1, 9, 0, 0),
        one(LOAD_DOUBLE, 2, 9, READ_AT as i16, 0),
        one(SUBTRACT, 1, 2, 0, 0),
        // R3: what is left of the limit, times four.
        one(MOVE_IMMEDIATE, 3, 0, 0, limit),
        one(JUMP_GREATER, 7, 0, 1, SMALL),
        one(JUMP, 0, 0, 1, 0),
        one(MOVE_IMMEDIATE, 3, 0, 0, large),
        one(SUBTRACT, 3, 1, 0, 0),
        one(SHIFT_LEFT_IMMEDIATE, 3, 0, 0, SHARE_SHIFT),
        // R4: waiting bytes of the sender.
        one(MOVE, 0, 9, 0, 0),
        one(ADD, 0, 8, 0, 0),
        one(LOAD_DOUBLE, 4, 0, SLOTS_AT as i16, 0),
        one(LOAD_DOUBLE, 5, 0, SLOTS_READ_AT as i16, 0),
        one(SUBTRACT, 4, 5, 0, 0),
        // Nothing is left, or the sender has more: to the drop.
        one(JUMP_SIGNED_LESS, 3, 0, 7, 0),
        one(JUMP_SIGNED_GREATER_THAN, 4, 3, 6, 0),
        one(MOVE, 2, 7, 0, 0),
        one(ADD_IMMEDIATE, 2, 0, 0, OVERHEAD as i32),
        // The sender first: see `Gauge::emptied`.
        one(ATOMIC_ADD_DOUBLE, 0, 2, SLOTS_AT as i16, 0),
        one(ATOMIC_ADD_DOUBLE, 9, 2, 0, 0),
        one(MOVE, 0, 7, 0, 0),
        one(EXIT, 0, 0, 0, 0),
        one(MOVE_IMMEDIATE, 0, 0, 0, 0),
        one(EXIT, 0, 0, 0, 0),
    ];
    [&begin[..], &v6, &past_v4, &v4, &rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_depends_on_the_source_address_and_the_key_alone() {
        let mut packet = [0; 60];
        for (version, source) in [(0x45, 12..16), (0x60, 8..24)] {
            let mut seen = std::collections::HashSet::new();
            for number in 0..=255 {
                packet = [number; 60];
                packet[0] = version;
                packet[source.clone()].fill(7);
                let expected = slot(&packet, 0x9e37_79b9_7f4a_7c15);
                packet[24..].fill(!number);
                assert_eq!(slot(&packet, 0x9e37_79b9_7f4a_7c15), expected);
                packet[source.end - 1] = number;
                seen.insert(slot(&packet, 0x9e37_79b9_7f4a_7c15));
                assert!(
                    [1, u64::MAX].map(|key| slot(&packet, key)).iter().flatten().all(|slot| *slot < SLOTS)
                );
            }
            assert!(seen.len() > SLOTS / 2, "{}", seen.len());
        }
        for short in 0..LEAST_V4 {
            assert_eq!(slot(&packet[..short], 3), None);
        }
    }
}
