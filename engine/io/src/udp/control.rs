//! Control messages: `struct cmsghdr` (linux/socket.h) as bytes, written and read with checked lengths.
//!
//! A message consists of its total length as a machine word, the level and type as ints, and the value. The
//! next message begins at the next machine word.

use std::ffi::c_int;
use std::mem;

const WORD: usize = mem::size_of::<usize>();
const HEADER: usize = WORD + 2 * mem::size_of::<c_int>();

/// Buffer size for the messages sent and for those the kernel is asked to report: two of up to 24 bytes each.
const ROOM: usize = 64;

/// One message's control buffer, aligned as the kernel requires.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control([u8; ROOM]);

/// What the kernel reported about a received datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Size of each joined datagram; 0 when the kernel reported none.
    pub(super) segment_size: u16,
    /// ECN bits of the outer header.
    pub(super) ecn: u8,
}

impl Control {
    pub(super) fn empty() -> Control {
        Control([0; ROOM])
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    pub(super) const fn room() -> usize {
        ROOM
    }

    /// Returns the first `len` bytes, or the whole buffer if `len` is larger.
    pub(super) fn filled(&self, len: usize) -> &[u8] {
        &self.0[..len.min(ROOM)]
    }

    /// Writes the segment size and the ECN bits for a send, omitting those that are 0. Returns the length for
    /// `msg_controllen`.
    #[inline]
    pub(super) fn set(&mut self, segment_size: u16, ecn: u8, ipv6: bool) -> usize {
        let mut len = 0;
        if segment_size != 0 {
            len = self.put(len, libc::SOL_UDP, libc::UDP_SEGMENT, &segment_size.to_ne_bytes());
        }
        if ecn != 0 {
            let (level, kind) = match ipv6 {
                false => (libc::IPPROTO_IP, libc::IP_TOS),
                true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            len = self.put(len, level, kind, &c_int::from(ecn & 3).to_ne_bytes());
        }
        len
    }

    fn put(&mut self, at: usize, level: c_int, kind: c_int, value: &[u8]) -> usize {
        let end = at + (HEADER + value.len()).next_multiple_of(WORD);
        if let Some(message) = self.0.get_mut(at..end) {
            message[..WORD].copy_from_slice(&(HEADER + value.len()).to_ne_bytes());
            message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
            message[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
            message[HEADER..HEADER + value.len()].copy_from_slice(value);
            return end;
        }
        at
    }
}

/// Parses a received control buffer. Ignores messages that are unknown, too short, or of the wrong length.
#[inline]
pub(super) fn parse(mut buffer: &[u8]) -> Facts {
    let mut facts = Facts::default();
    while let Some((len, level, kind)) = header(buffer) {
        let Some(value) = buffer.get(HEADER..len) else { break };
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                facts.segment_size = int(value).and_then(|size| u16::try_from(size).ok()).unwrap_or(0);
            }
            // One byte for IPv4, an int for IPv6 (net/ipv4/ip_sockglue.c, net/ipv6/datagram.c).
            (libc::IPPROTO_IP, libc::IP_TOS) => facts.ecn = value.first().map_or(0, |tos| tos & 3),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                facts.ecn = int(value).map_or(0, |class| class as u8 & 3)
            }
            _ => {}
        }
        let Some(rest) = buffer.get(len.next_multiple_of(WORD)..) else { break };
        buffer = rest;
    }
    facts
}

fn header(buffer: &[u8]) -> Option<(usize, c_int, c_int)> {
    let (len, rest) = buffer.split_first_chunk::<WORD>()?;
    let (level, kind) = (int(rest)?, int(rest.get(4..)?)?);
    let len = usize::from_ne_bytes(*len);
    (HEADER..=buffer.len()).contains(&len).then_some((len, level, kind))
}

fn int(bytes: &[u8]) -> Option<c_int> {
    bytes.first_chunk::<4>().map(|bytes| c_int::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Builds a message as the kernel does.
    fn message(level: c_int, kind: c_int, value: &[u8]) -> Vec<u8> {
        let mut control = Control::empty();
        let len = control.put(0, level, kind, value);
        control.filled(len).to_vec()
    }

    #[test]
    fn messages_have_the_layout_of_libcs_macros() {
        // SAFETY: both only compute sizes.
        let (space, length) = unsafe { (libc::CMSG_SPACE(2) as usize, libc::CMSG_LEN(2) as usize) };
        let mut control = Control::empty();
        assert_eq!(control.set(0, 0, false), 0);
        assert_eq!(control.set(1450, 0, false), space);
        assert_eq!(control.0[..WORD], length.to_ne_bytes());
        assert_eq!(control.0[HEADER..HEADER + 2], 1450u16.to_ne_bytes());
        // SAFETY: CMSG_SPACE only computes a size.
        let both = space + unsafe { libc::CMSG_SPACE(4) } as usize;
        assert_eq!(control.set(1450, 2, false), both);
        assert_eq!(control.set(1450, 2, true), both);
        assert!(both <= ROOM);
    }

    #[test]
    fn each_kind_of_message_is_parsed() {
        let gro = message(libc::SOL_UDP, libc::UDP_GRO, &1400i32.to_ne_bytes());
        let tos = message(libc::IPPROTO_IP, libc::IP_TOS, &[0b1011_1110]);
        let class = message(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &3i32.to_ne_bytes());
        assert_eq!(parse(&[gro.clone(), tos.clone()].concat()), Facts { segment_size: 1400, ecn: 2 });
        assert_eq!(parse(&[tos, gro].concat()), Facts { segment_size: 1400, ecn: 2 });
        assert_eq!(parse(&class), Facts { segment_size: 0, ecn: 3 });
    }

    #[test]
    fn wrong_lengths_and_sizes_are_ignored() {
        let whole = message(libc::SOL_UDP, libc::UDP_GRO, &1400i32.to_ne_bytes());
        for cut in 0..HEADER + 4 {
            assert_eq!(parse(&whole[..cut]), Facts::default(), "cut at {cut}");
        }
        for len in [0, 1, HEADER - 1, whole.len() + 1, usize::MAX, usize::MAX - 7] {
            let mut wrong = whole.clone();
            wrong[..WORD].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(parse(&wrong), Facts::default(), "length {len}");
        }
        for size in [-1, 65_536, i32::MIN] {
            let wide = message(libc::SOL_UDP, libc::UDP_GRO, &i32::to_ne_bytes(size));
            assert_eq!(parse(&wide).segment_size, 0);
        }
        let short = message(libc::SOL_UDP, libc::UDP_GRO, &[1, 2]);
        assert_eq!(parse(&short), Facts::default());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
