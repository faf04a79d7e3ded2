//! Checksums at the tunnel's two ends: finish what a sender left open, judge what arrived.

use std::cmp::Ordering;

use wire::checksum::Sum;

use crate::inner::{Inner, UDP};
use crate::verdict::DropReason;

/// Finishes a checksum that the sender left to the device (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): the field holds
/// the pseudo-header's sum, the rest from `start` on is added. Returns the bytes summed.
#[inline]
pub fn finish(packet: &mut [u8], start: u16, offset: u16) -> Result<usize, DropReason> {
    let start = usize::from(start);
    let field = start + usize::from(offset);
    let covered =
        packet.get(start..).filter(|c| c.len() >= usize::from(offset) + 2).ok_or(DropReason::BadOffload)?;
    let (check, summed) = (Sum::of(covered).finish(), covered.len());
    // A zero would mean "no checksum" to UDP, and is the same number as all ones to every other protocol.
    let check = if check == 0 { 0xffff } else { check };
    packet[field..field + 2].copy_from_slice(&check.to_be_bytes());
    Ok(summed)
}

/// What the transport checksum of a received packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Right, or vouched for, or a protocol or fragment that is none of our business.
    Right,
    /// The sender left it open: the field holds the pseudo-header's sum. A kernel vxlan peer on a veth does
    /// this, because the veth promised to finish it.
    Open,
    /// UDP without a checksum (RFC 768, RFC 6936).
    Absent,
}

/// Judges the transport checksum of `packet`. `vouched` says that the outer checksum covered these bytes and
/// the kernel has verified it, so there is nothing left to find out by another pass. Adds the bytes it had to
/// sum to `summed`.
#[inline]
pub fn judge(inner: &Inner, packet: &[u8], vouched: bool, summed: &mut u64) -> Result<State, DropReason> {
    let Some(at) = inner.checksum_at() else { return Ok(State::Right) };
    let Some(transport) = packet.get(inner.transport..inner.len) else { return Err(DropReason::Truncated) };
    let field = u16::from_be_bytes([packet[at], packet[at + 1]]);
    if inner.protocol == UDP {
        let said = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
        match said.cmp(&transport.len()) {
            Ordering::Greater => return Err(DropReason::BadTransportHeader),
            // Trailing bytes that the checksum does not cover: legal, rare, and the receiver's to judge.
            Ordering::Less => return Ok(State::Absent),
            Ordering::Equal => {}
        }
    }
    if inner.protocol == UDP && field == 0 {
        // Over IPv6 the endpoint decides whether it takes them (RFC 6936); who forwards passes them on.
        return Ok(State::Absent);
    }
    let pseudo = inner.pseudo_header(transport.len() as u32);
    if pseudo.fold() == field {
        return Ok(State::Open);
    }
    if vouched {
        return Ok(State::Right);
    }
    *summed += transport.len() as u64;
    match pseudo.add(transport).fold() {
        0xffff => Ok(State::Right),
        _ => Err(DropReason::BadTransportChecksum),
    }
}
