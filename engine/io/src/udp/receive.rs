//! Receives batches of datagrams into arena slots.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use super::address::{self, Address};
use super::control::{self, Control};
use crate::{PortCounters, Received, Shape, sys};

/// Maximum messages that one call fills.
pub(super) const MAX_MESSAGES: usize = 64;

/// Errors after which a receive gives up. An ICMP error for an earlier send is reported by a later receive,
/// which loses no datagram by it.
const MAX_ERRORS: usize = 8;

/// Scratch buffers for receiving, allocated once.
pub(crate) struct Receiver {
    messages: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[Address]>,
    controls: Box<[Control]>,
    mmsg: bool,
}

// SAFETY: the pointers in `messages` and `vectors` are followed only during the `receive` call that has just
// set them; they point to memory that the same value owns or that is borrowed for that call.
unsafe impl Send for Receiver {}

impl Receiver {
    pub(crate) fn new(mmsg: bool) -> Receiver {
        // SAFETY: an mmsghdr consists of integers and pointers, for which zero is valid.
        let message: libc::mmsghdr = unsafe { mem::zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Receiver {
            messages: vec![message; MAX_MESSAGES].into(),
            vectors: vec![vector; MAX_MESSAGES].into(),
            addresses: vec![Address::empty(); MAX_MESSAGES].into(),
            controls: vec![Control::empty(); MAX_MESSAGES].into(),
            mmsg,
        }
    }

    pub(crate) fn mmsg(&self) -> bool {
        self.mmsg
    }

    pub(super) fn stop_batching(&mut self) {
        self.mmsg = false;
    }

    /// Implements [`crate::Underlay::receive`], but keeps the records that are already in `out`.
    pub(crate) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        arena: &mut [u8],
        at: usize,
        shape: Shape,
        out: &mut Vec<Received>,
        counters: &mut PortCounters,
    ) -> io::Result<()> {
        let room = arena.get_mut(at..).unwrap_or_default();
        let slots = room.len().checked_div(shape.len).unwrap_or(0);
        let slots = slots.min(shape.slots).min(MAX_MESSAGES).min(out.capacity() - out.len());
        if slots == 0 || at + slots * shape.len > u32::MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.point_at(room, shape.len, slots);
        let filled = self.fill(fd, slots, counters)?;
        for slot in 0..filled {
            if let Some(received) = self.read_back(slot, at, shape.len, counters) {
                out.push(received);
            }
        }
        Ok(())
    }

    /// Points message *i* at slot *i* and at its own address and control buffer.
    fn point_at(&mut self, room: &mut [u8], slot_len: usize, slots: usize) {
        let buffers = self.vectors.iter_mut().zip(&mut self.addresses).zip(&mut self.controls);
        let slots = room.chunks_exact_mut(slot_len).take(slots);
        for (((message, slot), ((vector, address), control)), _) in
            self.messages.iter_mut().zip(slots).zip(buffers).zip(0..MAX_MESSAGES)
        {
            *vector = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut message.msg_hdr;
            header.msg_name = (&raw mut *address).cast();
            header.msg_namelen = address::ROOM;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = Control::room() as _;
            header.msg_flags = 0;
            message.msg_len = 0;
        }
    }

    /// Receives into the first `slots` messages and returns how many were filled, at least one.
    fn fill(&mut self, fd: BorrowedFd<'_>, slots: usize, counters: &mut PortCounters) -> io::Result<usize> {
        let mut filled = 0;
        let mut errors = 0;
        while filled < slots {
            counters.read_calls += 1;
            let answer = if self.mmsg {
                // SAFETY: `point_at` has just pointed these messages at slots of the borrowed arena and at
                // `self`'s buffers, all of the stated lengths and none shared.
                unsafe { sys::receive_many(fd, &mut self.messages[filled..slots]) }
            } else {
                let message = &mut self.messages[filled];
                // SAFETY: as above, for one message.
                unsafe { sys::receive_one(fd, &mut message.msg_hdr) }.map(|len| {
                    message.msg_len = len as libc::c_uint;
                    1
                })
            };
            match answer {
                Ok(count) => {
                    filled += count;
                    if self.mmsg {
                        break;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => {
                        counters.would_block += 1;
                        return if filled > 0 { Ok(filled) } else { Err(error) };
                    }
                    Some(libc::ENOSYS) if self.mmsg => {
                        self.mmsg = false;
                        counters.downgrades += 1;
                    }
                    _ => {
                        counters.errors += 1;
                        errors += 1;
                        if errors == MAX_ERRORS {
                            return if filled > 0 { Ok(filled) } else { Err(error) };
                        }
                    }
                },
            }
        }
        Ok(filled)
    }

    #[inline]
    fn read_back(
        &self,
        slot: usize,
        at: usize,
        slot_len: usize,
        counters: &mut PortCounters,
    ) -> Option<Received> {
        let message = &self.messages[slot];
        let header = &message.msg_hdr;
        let len = message.msg_len;
        if header.msg_flags & libc::MSG_TRUNC != 0 || len as usize > slot_len {
            counters.truncated += 1;
            return None;
        }
        let Some(source) = self.addresses[slot].get(header.msg_namelen) else {
            counters.errors += 1;
            return None;
        };
        let facts = control::parse(self.controls[slot].filled(header.msg_controllen as _));
        // The kernel also reports a size for a datagram that was not joined.
        let joined = facts.segment_size != 0 && len > u32::from(facts.segment_size);
        let segment_size = if joined { facts.segment_size } else { 0 };
        counters.reads += 1;
        counters.read_datagrams += if joined { u64::from(len.div_ceil(u32::from(segment_size))) } else { 1 };
        counters.read_bytes += u64::from(len);
        let at = (at + slot * slot_len) as u32;
        Some(Received { at, len, segment_size, ecn: facts.ecn, source })
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("mmsg", &self.mmsg).finish_non_exhaustive()
    }
}
