//! The UDP header (RFC 768).

use crate::Malformed;
use crate::bytes::put;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// IANA protocol number.
pub const PROTOCOL: u8 = 17;
/// Byte offset of the checksum in the header.
pub const CHECKSUM_OFFSET: usize = 6;

const LEN: usize = 4;

/// A UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes of header and payload.
    pub len: u16,
    /// The checksum field. Zero means that none was computed, which IPv6 forbids (RFC 8200 section 8.1).
    pub checksum: u16,
}

impl Header {
    /// Parses a header and checks its length, so that `8 <= len <= datagram.len()`.
    #[inline]
    pub fn parse(datagram: &[u8]) -> Result<Header, Malformed> {
        let &[s0, s1, d0, d1, l0, l1, c0, c1] =
            datagram.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let len = u16::from_be_bytes([l0, l1]);
        if usize::from(len) < HEADER_LEN {
            return Err(Malformed::BadTotalLength);
        }
        if usize::from(len) > datagram.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Header {
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            len,
            checksum: u16::from_be_bytes([c0, c1]),
        })
    }

    /// Writes the 8 bytes, with the checksum as given. Fails with [`Malformed::Truncated`] if the buffer is
    /// shorter.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        let out = out.first_chunk_mut::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let [s0, s1] = self.src_port.to_be_bytes();
        let [d0, d1] = self.dst_port.to_be_bytes();
        let [l0, l1] = self.len.to_be_bytes();
        let [c0, c1] = self.checksum.to_be_bytes();
        *out = [s0, s1, d0, d1, l0, l1, c0, c1];
        Ok(())
    }
}

/// Returns the field value for a computed checksum. Zero is sent as all ones, because zero in the field means
/// that there is no checksum (RFC 768).
#[inline]
pub fn nonzero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Sets the length in raw header bytes. Does nothing if the slice is too short.
#[inline]
pub fn set_len(header: &mut [u8], len: u16) {
    put(header, LEN, len.to_be_bytes());
}

/// Sets the checksum in raw header bytes, as given; see [`nonzero`]. Does nothing if the slice is too short.
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
        assert_eq!(Header::parse(&[0; 7]), Err(Malformed::Truncated));
        assert_eq!(Header::parse(&[0, 1, 0, 2, 0, 7, 0, 0]), Err(Malformed::BadTotalLength));
        assert_eq!(Header::parse(&[0, 1, 0, 2, 0, 9, 0, 0]), Err(Malformed::Truncated));
        let header = Header { src_port: 1, dst_port: 2, len: 8, checksum: 0 };
        assert_eq!(Header::parse(&[0, 1, 0, 2, 0, 8, 0, 0]), Ok(header));
        assert_eq!(header.emit(&mut [0; 7]), Err(Malformed::Truncated));
    }

    #[test]
    fn zero_is_sent_as_all_ones() {
        assert_eq!(nonzero(0), 0xffff);
        assert_eq!(nonzero(0x1234), 0x1234);
    }

    proptest! {
        #[test]
        fn round_trip(src_port: u16, dst_port: u16, len in 8_u16..=64, checksum: u16) {
            let header = Header { src_port, dst_port, len, checksum };
            let mut bytes = [0xee; 64];
            header.emit(&mut bytes).unwrap();
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
            set_len(&mut bytes, 9);
            set_checksum(&mut bytes, !checksum);
            prop_assert_eq!(Header::parse(&bytes), Ok(Header { len: 9, checksum: !checksum, ..header }));
        }

        #[test]
        fn random_bytes_never_panic(mut bytes: Vec<u8>) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!((HEADER_LEN..=bytes.len()).contains(&usize::from(header.len)));
            }
            set_len(&mut bytes, 9);
            set_checksum(&mut bytes, 9);
        }
    }
}
