//! From the underlay to the pods, the mirror of [`egress`](crate::egress): strip, check, merge ECN, join.
//!
//! ```text
//! [one or several datagrams] → strip → check → ECN, TTL → coalescer → one write per run
//! ```

use batch::{PeerId, Received};
use wire::{ipv4, ipv6};

use crate::counters::Direction;
use crate::encap::Format;
use crate::fib::Fib;
use crate::inner::{Inner, TCP};
use crate::offload::checksum::{self, Sender, State};
use crate::offload::coalesce::{Coalescer, SEGMENTS_MAX};
use crate::offload::mss::SegmentSizes;
use crate::offload::segment::SuperPacket;
use crate::space::{bytes, bytes_mut};
use crate::verdict::{DropReason, Verdict};

/// Passes the datagrams of one slot to the coalescer. The caller has checked [`Coalescer::has_room`] and
/// seals the coalescer at the end of the batch.
#[inline]
pub fn ingress(
    arena: &mut [u8],
    received: Received,
    fib: &Fib,
    sizes: &SegmentSizes,
    coalescer: &mut Coalescer,
    counters: &mut Direction,
) {
    let Received { mut at, len, segment_size: split, ecn, .. } = received;
    let end = at + len;
    let size = if split == 0 { len } else { u32::from(split) };
    let unsplit = size < len && is_unsplit(bytes(arena, &(at..end)), fib, size);
    // Either the inner length is forged, to have the datagrams that follow delivered as payload, or a pod's
    // payload imitates datagrams.
    let dubious = unsplit && fib.format().strip(bytes(arena, &(at + size..end))).is_ok();
    // A super-packet is dropped as a whole: a pod's payload is never parsed as datagrams.
    let size = if unsplit { len } else { size };
    // Kernels do not send the udp format, and its programs read packets whose checksums are complete.
    let sender = if fib.format().is_hop() { Sender::Completes } else { Sender::MayLeaveOpen };
    // An empty datagram still counts as one.
    for _ in 0..2 * SEGMENTS_MAX {
        let piece = Piece { at, len: size.min(end - at), unsplit, dubious, split, sender, ecn };
        counters.packets += 1;
        match strip(arena, piece, fib, sizes, coalescer, counters) {
            Verdict::Drop(reason) => counters.drop(reason, 1),
            _ => counters.segments += 1,
        }
        at += piece.len;
        if at >= end {
            return;
        }
    }
    counters.drop(DropReason::TooManySegments, 1);
}

/// Passes a decrypted packet from peer `from` to the coalescer. Its source address must belong to the peer.
#[inline]
pub fn opened(
    arena: &mut [u8],
    packet: Received,
    from: PeerId,
    fib: &Fib,
    sizes: &SegmentSizes,
    coalescer: &mut Coalescer,
    counters: &mut Direction,
) {
    let Received { at, len, ecn, .. } = packet;
    let piece = Piece { at, len, unsplit: false, dubious: false, split: 0, sender: Sender::Completes, ecn };
    let verdict = match check(arena, &piece, fib, sizes, counters) {
        Ok(found) => {
            let Inner { v6, src, .. } = found.inner;
            let owner = if v6 { fib.lookup_v6(src.into()) } else { fib.lookup_v4((src as u32).into()) };
            if owner.is_some_and(|(_, peer)| peer.id == from) {
                coalescer.push(arena, found.at, found.inner, found.checksum, found.split);
                Verdict::ToOverlay
            } else {
                Verdict::Drop(DropReason::WgSource)
            }
        }
        Err(reason) => Verdict::Drop(reason),
    };
    match verdict {
        Verdict::Drop(reason) => counters.drop(reason, 1),
        _ => counters.segments += 1,
    }
}

#[derive(Clone, Copy)]
struct Piece {
    at: u32,
    len: u32,
    /// The piece is an uncut super-packet, longer than the segment size that the kernel reported.
    unsplit: bool,
    /// The piece is uncut, but another datagram appears to begin after the reported segment size.
    dubious: bool,
    /// The segment size that the kernel reported; 0 if it reported none.
    split: u16,
    sender: Sender,
    ecn: u8,
}

#[inline]
fn strip(
    arena: &mut [u8],
    piece: Piece,
    fib: &Fib,
    sizes: &SegmentSizes,
    coalescer: &mut Coalescer,
    counters: &mut Direction,
) -> Verdict {
    match check(arena, &piece, fib, sizes, counters) {
        Ok(found) => {
            coalescer.push(arena, found.at, found.inner, found.checksum, found.split);
            Verdict::ToOverlay
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

struct Found {
    at: u32,
    inner: Inner,
    checksum: State,
    split: Option<u16>,
}

#[inline]
fn check(
    arena: &mut [u8],
    piece: &Piece,
    fib: &Fib,
    sizes: &SegmentSizes,
    counters: &mut Direction,
) -> Result<Found, DropReason> {
    let datagram = bytes_mut(arena, &(piece.at..piece.at + piece.len));
    let stripped = fib.format().strip(datagram)?;
    let packet = datagram.get_mut(stripped.offset..).ok_or(DropReason::Truncated)?;
    let mut inner = Inner::parse(packet)?;
    if stripped.v6.is_some_and(|v6| v6 != inner.v6) {
        return Err(DropReason::NotIp);
    }
    if !inner.v6
        && !ipv4::checksum_is_valid(packet.get(..usize::from(packet[0] & 15) * 4).unwrap_or_default())
    {
        return Err(DropReason::BadIpChecksum);
    }
    fib.sources().check(inner.v6, inner.src)?;
    merge_ecn(packet, &mut inner, piece.ecn)?;
    if fib.format().is_hop() {
        decrement_ttl(packet, &mut inner)?;
    }
    let checksum = checksum::verify(&inner, packet, piece.sender, &mut counters.summed_bytes)?;
    if piece.dubious {
        return Err(DropReason::Truncated);
    }
    sizes.observe_ingress(&inner, packet);
    counters.bytes += inner.len as u64;
    let at = piece.at + stripped.offset as u32;
    let split = if piece.unsplit {
        SuperPacket::check(inner, packet, at, piece.split).is_ok().then_some(piece.split)
    } else {
        segment_size(&inner, packet, at, piece, (fib, sizes), checksum)
    };
    Ok(Found { at, inner, checksum, split })
}

/// Whether `received` is one uncut super-packet. A kernel vxlan peer on a veth delivers a UDP super-packet
/// uncut, as one datagram, with the segment size of the inner packet. The inner IP length then covers
/// everything received, while joined datagrams repeat their headers after `piece` bytes. Segments may be
/// shorter than the headers.
#[inline]
fn is_unsplit(received: &[u8], fib: &Fib, piece: u32) -> bool {
    // No kernel sends the udp format.
    if fib.format().is_hop() {
        return false;
    }
    let Ok(stripped) = fib.format().strip(received) else { return false };
    let packet = received.get(stripped.offset..).unwrap_or_default();
    let len = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(2..4).map(|len| usize::from(u16::from_be_bytes([len[0], len[1]]))),
        Some(6) => {
            packet.get(4..6).map(|len| ipv6::HEADER_LEN + usize::from(u16::from_be_bytes([len[0], len[1]])))
        }
        _ => None,
    };
    len.is_some_and(|len| stripped.offset + len > piece as usize && stripped.offset + len <= received.len())
}

/// Returns the segment size of a TCP super-packet that arrived uncut, or `None` for any other packet. Such a
/// super-packet may be shorter than the overlay's MTU: all that shows is its open checksum. Datagrams that
/// the kernel has joined are no super-packets.
///
/// Over ipip the kernel joins segments from any card and opens their checksums. One that it did not join is
/// as its sender cut it.
#[inline]
fn segment_size(
    inner: &Inner,
    packet: &[u8],
    at: u32,
    piece: &Piece,
    (fib, sizes): (&Fib, &SegmentSizes),
    checksum: State,
) -> Option<u16> {
    let singles = matches!(fib.format(), Format::Ipip(_));
    let uncut = piece.split == 0 || inner.len > usize::from(sizes.mtu());
    if inner.protocol != TCP || !uncut || checksum != State::Open && !singles {
        return None;
    }
    let probe = SuperPacket::check(*inner, packet, at, u16::MAX).ok()?;
    if checksum != State::Open {
        if checksum == State::Valid && inner.len <= usize::from(sizes.mtu()) {
            sizes.observe_single(inner, probe.header_len);
        }
        return None;
    }
    let size = sizes.payload(inner, probe.header_len, singles);
    (inner.len - probe.header_len > usize::from(size)).then_some(size)
}

/// Merges the outer ECN codepoint into the inner header (RFC 6040 section 4.2, figure 4).
#[inline]
fn merge_ecn(packet: &mut [u8], inner: &mut Inner, outer: u8) -> Result<(), DropReason> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    let merged = match (inner.ecn(), outer & 3) {
        (NOT_ECT, CE) => return Err(DropReason::EcnUnheard),
        (ECT_0, ECT_1) => ECT_1,
        (ECT_0 | ECT_1, CE) => CE,
        (same, _) => same,
    };
    if merged != inner.ecn() {
        if inner.v6 {
            ipv6::set_ecn(packet, merged);
        } else {
            ipv4::set_ecn(packet, merged);
        }
        inner.tos = inner.tos & !3 | merged;
    }
    Ok(())
}

/// Decrements the time to live or hop limit in place.
#[inline]
fn decrement_ttl(packet: &mut [u8], inner: &mut Inner) -> Result<(), DropReason> {
    if inner.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    inner.ttl -= 1;
    if inner.v6 {
        ipv6::set_hop_limit(packet, inner.ttl);
    } else {
        ipv4::decrement_ttl(packet);
    }
    Ok(())
}
