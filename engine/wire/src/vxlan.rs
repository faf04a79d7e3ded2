//! The VXLAN header (RFC 7348 section 5) and its group policy extension
//! (draft-smith-vxlan-group-policy section 2.1).
//!
//! RFC 7348 lets a receiver ignore reserved bits. The kernel does not, and so neither do we: a header with a bit
//! it does not know is dropped (`vxlan_rcv` in `drivers/net/vxlan/vxlan_core.c`).

use crate::Malformed;
use crate::addr::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// First byte: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;
/// First byte: the group policy fields are valid (`VXLAN_HF_GBP` in `include/net/vxlan.h`).
pub const FLAG_POLICY: u8 = 0x80;

/// A VXLAN header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which overlay.
    pub vni: Vni,
    /// The group policy identifier, when the header carries one.
    pub policy: Option<u16>,
}

impl Header {
    /// Reads the 8 bytes. With `gbp` the group policy flag and its 24 bits are accepted, of which the
    /// "don't learn" and "policy applied" bits are not kept.
    ///
    /// [`Malformed::Truncated`] when there are fewer bytes, [`Malformed::Unsupported`] when the VNI flag is
    /// missing, [`Malformed::Reserved`] when any other bit is set.
    #[inline]
    pub fn parse(bytes: &[u8], gbp: bool) -> Result<Header, Malformed> {
        let &[flags, policy_flags, p0, p1, v0, v1, v2, last] =
            bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        if flags & FLAG_VNI == 0 {
            return Err(Malformed::Unsupported);
        }
        let with_policy = gbp && flags & FLAG_POLICY != 0;
        let known = if with_policy { FLAG_VNI | FLAG_POLICY } else { FLAG_VNI };
        // `VXLAN_GBP_USED_BITS` covers all 24 bits behind the flag, the draft's reserved ones too.
        let stray = if with_policy { 0 } else { policy_flags | p0 | p1 };
        if flags & !known | stray | last != 0 {
            return Err(Malformed::Reserved);
        }
        let policy = with_policy.then_some(u16::from_be_bytes([p0, p1]));
        Ok(Header { vni: Vni::from_octets([v0, v1, v2]), policy })
    }

    /// Writes the 8 bytes. [`Malformed::Truncated`] when the buffer is shorter.
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
