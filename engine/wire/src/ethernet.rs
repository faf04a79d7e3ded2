//! The Ethernet II header (IEEE 802.3 section 3.1.1), untagged.

use crate::Malformed;
use crate::addr::Mac;

/// Bytes of an untagged header.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4 (RFC 894).
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464 section 3).
pub const IPV6: u16 = 0x86dd;

/// An Ethernet II header. A VLAN tag appears as EtherType 0x8100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// Protocol of the payload, for instance [`IPV4`] or [`IPV6`].
    pub ethertype: u16,
}

impl Header {
    /// Parses the first 14 bytes. Fails with [`Malformed::Truncated`] if there are fewer.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Header, Malformed> {
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
            frame.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        Ok(Header {
            dst: Mac::new([d0, d1, d2, d3, d4, d5]),
            src: Mac::new([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([t0, t1]),
        })
    }

    /// Writes the first 14 bytes. Fails with [`Malformed::Truncated`] if the buffer is shorter.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        let out = out.first_chunk_mut::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let [d0, d1, d2, d3, d4, d5] = self.dst.octets();
        let [s0, s1, s2, s3, s4, s5] = self.src.octets();
        let [t0, t1] = self.ethertype.to_be_bytes();
        *out = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1];
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_short_buffer_is_unchanged() {
        let header = Header { dst: Mac::new([1; 6]), src: Mac::new([2; 6]), ethertype: IPV4 };
        let mut out = [0xee; HEADER_LEN - 1];
        assert_eq!(header.emit(&mut out), Err(Malformed::Truncated));
        assert_eq!(out, [0xee; HEADER_LEN - 1]);
    }

    proptest! {
        #[test]
        fn round_trip(dst: [u8; 6], src: [u8; 6], ethertype: u16) {
            let header = Header { dst: Mac::new(dst), src: Mac::new(src), ethertype };
            let mut out = [0xee; HEADER_LEN];
            header.emit(&mut out).unwrap();
            prop_assert_eq!(Header::parse(&out), Ok(header));
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert_eq!(Header::parse(&bytes).is_ok(), bytes.len() >= HEADER_LEN);
        }
    }
}
