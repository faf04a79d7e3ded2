//! Transport checksums: completing those that the sender left open, and verifying those that arrive.

use std::cmp::Ordering;

use wire::checksum::Sum;

use crate::inner::{Inner, UDP};
use crate::verdict::DropReason;

/// Completes a checksum that the sender left to the device (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): adds the bytes
/// from `start` on to the pseudo-header sum in the field. Returns the number of bytes summed.
#[inline]
pub fn finish(packet: &mut [u8], start: u16, offset: u16) -> Result<usize, DropReason> {
    let start = usize::from(start);
    let field = start + usize::from(offset);
    let covered =
        packet.get(start..).filter(|c| c.len() >= usize::from(offset) + 2).ok_or(DropReason::BadOffload)?;
    let (check, summed) = (Sum::of(covered).finish(), covered.len());
    // In UDP zero means "no checksum"; for every other protocol it is equivalent to all ones.
    let check = if check == 0 { 0xffff } else { check };
    packet[field..field + 2].copy_from_slice(&check.to_be_bytes());
    Ok(summed)
}

/// The state of a received packet's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The checksum is valid or already verified, or the packet is a fragment or neither TCP nor UDP.
    Valid,
    /// The sender left the checksum open: the field holds the pseudo-header sum. A kernel vxlan peer on a
    /// veth does this, because the veth claims to complete checksums.
    Open,
    /// UDP without a checksum (RFC 768, RFC 6936).
    Absent,
}

/// Verifies the transport checksum of `packet`. If `verified` is set, the kernel has verified an outer
/// checksum over the same bytes and they are not summed again. Adds the number of bytes summed to `summed`.
#[inline]
pub fn verify(inner: &Inner, packet: &[u8], verified: bool, summed: &mut u64) -> Result<State, DropReason> {
    let Some(at) = inner.checksum_at() else { return Ok(State::Valid) };
    let Some(transport) = packet.get(inner.transport..inner.len) else { return Err(DropReason::Truncated) };
    let field = u16::from_be_bytes([packet[at], packet[at + 1]]);
    if inner.protocol == UDP {
        let stated = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
        match stated.cmp(&transport.len()) {
            Ordering::Greater => return Err(DropReason::BadTransportHeader),
            // Trailing bytes that the checksum does not cover are legal but rare; the receiver decides.
            Ordering::Less => return Ok(State::Absent),
            Ordering::Equal => {}
        }
    }
    if inner.protocol == UDP && field == 0 {
        // Over IPv6 the endpoint decides whether to accept the datagram (RFC 6936); a forwarder passes it on.
        return Ok(State::Absent);
    }
    let pseudo = inner.pseudo_header(transport.len() as u32);
    if pseudo.fold() == field {
        return Ok(State::Open);
    }
    if verified {
        return Ok(State::Valid);
    }
    *summed += transport.len() as u64;
    match pseudo.add(transport).fold() {
        0xffff => Ok(State::Valid),
        _ => Err(DropReason::BadTransportChecksum),
    }
}
