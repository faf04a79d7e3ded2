//! Transport checksums: completing those that the sender left open, and verifying those that arrive.

use std::cmp::Ordering;

use wire::checksum::Sum;
use wire::{ipv4, ipv6};

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

/// Returns the checksum field of an unfragmented TCP or UDP packet on a source route. If the checksum is
/// open, this is the sum of a pseudo-header whose addresses are not those of the IP header.
#[cold]
pub fn route_field(inner: &Inner, packet: &[u8]) -> Option<u16> {
    if !is_on_source_route(inner, packet) {
        return None;
    }
    let field = packet.get(inner.checksum_at()?..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*field))
}

/// The state of a packet's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The checksum is valid, or the packet is a fragment or neither TCP nor UDP.
    Valid,
    /// The sender left the checksum open: the field holds the pseudo-header sum. A kernel vxlan peer on a
    /// veth does this, because the veth claims to complete checksums.
    Open,
    /// The packet has no checksum that can be verified here: UDP without one (RFC 768, RFC 6936) or with
    /// bytes that it does not cover, or a packet on a source route. It passes unchanged.
    Unknown,
}

/// Who may leave a checksum open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A kernel that relies on the device to complete checksums.
    MayLeaveOpen,
    /// A sender whose checksums are complete.
    Completes,
}

/// Verifies the transport checksum of `packet`. Adds the number of bytes summed to `summed`.
#[inline]
pub fn verify(inner: &Inner, packet: &[u8], sender: Sender, summed: &mut u64) -> Result<State, DropReason> {
    let Some(at) = inner.checksum_at() else { return Ok(State::Valid) };
    let Some(transport) = packet.get(inner.transport..inner.len) else { return Err(DropReason::Truncated) };
    let field = u16::from_be_bytes([packet[at], packet[at + 1]]);
    if inner.protocol == UDP {
        let stated = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
        match stated.cmp(&transport.len()) {
            Ordering::Greater => return Err(DropReason::BadTransportHeader),
            // Trailing bytes that the checksum does not cover are legal but rare; the receiver decides.
            Ordering::Less => return Ok(State::Unknown),
            Ordering::Equal => {}
        }
    }
    if inner.protocol == UDP && field == 0 {
        // Over IPv6 the endpoint decides whether to accept the datagram (RFC 6936); a forwarder passes it on.
        return Ok(State::Unknown);
    }
    let pseudo = inner.pseudo_header(transport.len() as u32);
    if sender == Sender::MayLeaveOpen && pseudo.fold() == field {
        return Ok(State::Open);
    }
    if inner.has_more_headers() && is_on_source_route(inner, packet) {
        return Ok(State::Unknown);
    }
    *summed += transport.len() as u64;
    match pseudo.add(transport).fold() {
        0xffff => Ok(State::Valid),
        _ => Err(DropReason::BadTransportChecksum),
    }
}

/// Whether the checksum covers other addresses than those of the IP header: the last address of a route that
/// is not yet at its end (RFC 791 section 3.1, RFC 8200 section 8.1), or a mobile node's home address
/// (RFC 6275 section 6.3).
#[cold]
fn is_on_source_route(inner: &Inner, packet: &[u8]) -> bool {
    if inner.v6 {
        has_v6_route(packet.get(..inner.transport))
    } else {
        has_v4_route(packet.get(..inner.transport))
    }
}

fn has_v4_route(header: Option<&[u8]>) -> bool {
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut options = header.and_then(|header| header.get(ipv4::MIN_HEADER_LEN..)).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => return false,
            (1, _) => rest,
            (&LOOSE | &STRICT, [len, pointer, ..]) if pointer <= len => return true,
            (_, [len, ..]) if *len >= 2 => options.get(usize::from(*len)..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}

fn has_v6_route(headers: Option<&[u8]>) -> bool {
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    const HOME_ADDRESS: u8 = 201;
    let headers = headers.unwrap_or_default();
    let (Some(mut kind), Some(mut rest)) = (headers.get(6).copied(), headers.get(ipv6::HEADER_LEN..)) else {
        return false;
    };
    while let [next, len, ..] = rest {
        let (header, after) = rest.split_at(rest.len().min(8 + 8 * usize::from(*len)));
        match kind {
            ROUTING if header.get(3).is_some_and(|left| *left > 0) => return true,
            DESTINATION => {
                let mut options = header.get(2..).unwrap_or_default();
                while let [option, more @ ..] = options {
                    options = match (option, more) {
                        (0, _) => more,
                        (&HOME_ADDRESS, _) => return true,
                        (_, [len, ..]) => more.get(1 + usize::from(*len)..).unwrap_or_default(),
                        _ => break,
                    };
                }
            }
            _ => {}
        }
        (kind, rest) = (*next, after);
    }
    false
}
