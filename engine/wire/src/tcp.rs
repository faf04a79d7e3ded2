//! The TCP header (RFC 9293 section 3.1). Options are left to the caller.

use crate::Malformed;
use crate::bytes::put;

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const MAX_HEADER_LEN: usize = 60;
/// IANA protocol number.
pub const PROTOCOL: u8 = 6;
/// Byte offset of the checksum in the header.
pub const CHECKSUM_OFFSET: usize = 16;

/// Flag: the sender has no more data.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset the connection.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgement number is valid.
pub const ACK: u8 = 0x10;
/// Flag: the urgent pointer is valid.
pub const URG: u8 = 0x20;
/// Flag: ECN echo (RFC 3168 section 6.1).
pub const ECE: u8 = 0x40;
/// Flag: congestion window reduced (RFC 3168 section 6.1).
pub const CWR: u8 = 0x80;

const SEQ: usize = 4;
const FLAGS: usize = 13;

/// The fixed part of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bytes of the header with its options, 20..=60.
    pub header_len: usize,
    /// The flags [`FIN`] to [`CWR`]. The four bits above them, which are reserved or belong to AccECN, are
    /// discarded.
    pub flags: u8,
    /// Receive window, unscaled.
    pub window: u16,
    /// The checksum field.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Header {
    /// Parses a header and checks its length, so that `20 <= header_len <= segment.len()`.
    #[inline]
    pub fn parse(segment: &[u8]) -> Result<Header, Malformed> {
        let &[s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1, c0, c1, u0, u1] =
            segment.first_chunk::<MIN_HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let header_len = usize::from(offset >> 4) * 4;
        if header_len < MIN_HEADER_LEN {
            return Err(Malformed::BadHeaderLength);
        }
        if header_len > segment.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Header {
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            seq: u32::from_be_bytes([q0, q1, q2, q3]),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            header_len,
            flags,
            window: u16::from_be_bytes([w0, w1]),
            checksum: u16::from_be_bytes([c0, c1]),
            urgent: u16::from_be_bytes([u0, u1]),
        })
    }

    /// Writes the fixed 20 bytes, with the checksum as given, and leaves the options unchanged.
    ///
    /// Fails with [`Malformed::Truncated`] if the buffer is shorter than `header_len`, and with
    /// [`Malformed::BadHeaderLength`] if `header_len` is not a multiple of four within 20..=60.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        if !(MIN_HEADER_LEN..=MAX_HEADER_LEN).contains(&self.header_len) || !self.header_len.is_multiple_of(4)
        {
            return Err(Malformed::BadHeaderLength);
        }
        if out.len() < self.header_len {
            return Err(Malformed::Truncated);
        }
        let out = out.first_chunk_mut::<MIN_HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let [s0, s1] = self.src_port.to_be_bytes();
        let [d0, d1] = self.dst_port.to_be_bytes();
        let [q0, q1, q2, q3] = self.seq.to_be_bytes();
        let [a0, a1, a2, a3] = self.ack.to_be_bytes();
        let offset = (self.header_len as u8 / 4) << 4;
        let [w0, w1] = self.window.to_be_bytes();
        let [c0, c1] = self.checksum.to_be_bytes();
        let [u0, u1] = self.urgent.to_be_bytes();
        *out = [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, self.flags, w0, w1, c0, c1, u0, u1];
        Ok(())
    }
}

/// Sets the sequence number in raw header bytes. Does nothing if the slice is too short.
#[inline]
pub fn set_seq(header: &mut [u8], seq: u32) {
    put(header, SEQ, seq.to_be_bytes());
}

/// Sets the eight flags in raw header bytes. Does nothing if the slice is too short.
#[inline]
pub fn set_flags(header: &mut [u8], flags: u8) {
    put(header, FLAGS, [flags]);
}

/// Sets the checksum in raw header bytes, as given. Does nothing if the slice is too short.
#[inline]
pub fn set_checksum(header: &mut [u8], checksum: u16) {
    put(header, CHECKSUM_OFFSET, checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn each_invalid_header_has_its_own_error() {
        let mut bytes = [0; 24];
        assert_eq!(Header::parse(&bytes[..19]), Err(Malformed::Truncated));
        bytes[12] = 0x40;
        assert_eq!(Header::parse(&bytes), Err(Malformed::BadHeaderLength));
        bytes[12] = 0x70;
        assert_eq!(Header::parse(&bytes), Err(Malformed::Truncated));
        bytes[12] = 0x60;
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.header_len, 24);
        assert_eq!(header.emit(&mut [0; 23]), Err(Malformed::Truncated));
        for header_len in [0, 16, 22, 64, 256 + 20] {
            let odd = Header { header_len, ..header };
            assert_eq!(odd.emit(&mut [0; 300]), Err(Malformed::BadHeaderLength), "{header_len}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            (src_port, dst_port, seq, ack) in any::<(u16, u16, u32, u32)>(),
            words in 5_usize..=15,
            (flags, window, checksum, urgent) in any::<(u8, u16, u16, u16)>(),
            patch: (u32, u8, u16),
        ) {
            let header_len = words * 4;
            let header = Header { src_port, dst_port, seq, ack, header_len, flags, window, checksum, urgent };
            let mut bytes = [0xee; MAX_HEADER_LEN];
            header.emit(&mut bytes).unwrap();
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
            prop_assert!(bytes[MIN_HEADER_LEN..].iter().all(|b| *b == 0xee), "options are unchanged");

            set_seq(&mut bytes, patch.0);
            set_flags(&mut bytes, patch.1);
            set_checksum(&mut bytes, patch.2);
            let expected = Header { seq: patch.0, flags: patch.1, checksum: patch.2, ..header };
            prop_assert_eq!(Header::parse(&bytes), Ok(expected));
        }

        #[test]
        fn random_bytes_never_panic(mut bytes: Vec<u8>) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!((MIN_HEADER_LEN..=bytes.len()).contains(&header.header_len));
            }
            set_seq(&mut bytes, 1);
            set_flags(&mut bytes, 1);
            set_checksum(&mut bytes, 1);
        }
    }
}
