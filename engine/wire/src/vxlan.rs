//! The VXLAN header (RFC 7348 section 5) and its group policy extension
//! (draft-smith-vxlan-group-policy section 2.1).
//!
//! RFC 7348 lets a receiver ignore reserved bits. The kernel drops a header with an unknown bit (`vxlan_rcv`
//! in `drivers/net/vxlan/vxlan_core.c`), and this module rejects it too.

use crate::Malformed;
use crate::addr::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Flag in the first byte: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;
/// Flag in the first byte: the group policy fields are valid (`VXLAN_HF_GBP` in `include/net/vxlan.h`).
pub const FLAG_POLICY: u8 = 0x80;

/// A VXLAN header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The overlay's identifier.
    pub vni: Vni,
    /// The group policy identifier, if the header has one.
    pub policy: Option<u16>,
}

impl Header {
    /// Parses the 8 bytes. `gbp` allows the group policy flag and its 24 bits; the "don't learn" and "policy
    /// applied" bits among them are discarded.
    ///
    /// Fails with [`Malformed::Truncated`] if there are fewer bytes, with [`Malformed::Unsupported`] if the
    /// VNI flag is missing, and with [`Malformed::Reserved`] if any other bit is set.
    #[inline]
    pub fn parse(bytes: &[u8], gbp: bool) -> Result<Header, Malformed> {
        let &[flags, policy_flags, p0, p1, v0, v1, v2, last] =
            bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        if flags & FLAG_VNI == 0 {
            return Err(Malformed::Unsupported);
        }
        let with_policy = gbp && flags & FLAG_POLICY != 0;
        let known = if with_policy { FLAG_VNI | FLAG_POLICY } else { FLAG_VNI };
        // `VXLAN_GBP_USED_BITS` covers all 24 bits after the flags, including those reserved by the draft.
        let stray = if with_policy { 0 } else { policy_flags | p0 | p1 };
        if flags & !known | stray | last != 0 {
            return Err(Malformed::Reserved);
        }
        let policy = with_policy.then_some(u16::from_be_bytes([p0, p1]));
        Ok(Header { vni: Vni::from_octets([v0, v1, v2]), policy })
    }

    /// Writes the 8 bytes. Fails with [`Malformed::Truncated`] if the buffer is shorter.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        let out = out.first_chunk_mut::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let flags = if self.policy.is_some() { FLAG_VNI | FLAG_POLICY } else { FLAG_VNI };
        let [p0, p1] = self.policy.unwrap_or(0).to_be_bytes();
        let [v0, v1, v2] = self.vni.octets();
        *out = [flags, 0, p0, p1, v0, v1, v2, 0];
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    const PLAIN: [u8; HEADER_LEN] = [FLAG_VNI, 0, 0, 0, 0, 0, 1, 0];

    #[test]
    fn every_other_bit_is_rejected() {
        assert!(Header::parse(&PLAIN, false).is_ok());
        for bit in 0..64 {
            let mut bytes = PLAIN;
            bytes[bit / 8] ^= 0x80 >> (bit % 8);
            let expected = match bit {
                4 => Err(Malformed::Unsupported),
                32..=55 => Ok(()),
                _ => Err(Malformed::Reserved),
            };
            assert_eq!(Header::parse(&bytes, false).map(|_| ()), expected, "bit {bit}");
            let expected = if bit == 0 { Ok(()) } else { expected };
            assert_eq!(Header::parse(&bytes, true).map(|_| ()), expected, "bit {bit} with group policy");
        }
    }

    #[test]
    fn policy_bits_require_the_policy_flag() {
        let bytes = [FLAG_VNI | FLAG_POLICY, 0x48, 0x12, 0x34, 0, 0, 1, 0];
        let header = Header { vni: Vni::from_octets([0, 0, 1]), policy: Some(0x1234) };
        assert_eq!(Header::parse(&bytes, true), Ok(header));
        assert_eq!(Header::parse(&bytes, false), Err(Malformed::Reserved));
        let stray = [FLAG_VNI, 0, 0x12, 0x34, 0, 0, 1, 0];
        assert_eq!(Header::parse(&stray, true), Err(Malformed::Reserved));
        let last = [FLAG_VNI | FLAG_POLICY, 0, 0, 0, 0, 0, 1, 1];
        assert_eq!(Header::parse(&last, true), Err(Malformed::Reserved));
    }

    proptest! {
        #[test]
        fn round_trip(octets: [u8; 3], policy: Option<u16>) {
            let header = Header { vni: Vni::from_octets(octets), policy };
            let mut bytes = [0xee; HEADER_LEN];
            header.emit(&mut bytes).unwrap();
            prop_assert_eq!(Header::parse(&bytes, true), Ok(header));
            prop_assert_eq!(Header::parse(&bytes, false).is_ok(), policy.is_none());
            prop_assert_eq!(header.emit(&mut bytes[1..]), Err(Malformed::Truncated));
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, gbp: bool) {
            let _ = Header::parse(&bytes, gbp);
        }
    }
}
