//! From the pods to the underlay: check once, look up once, cut, prepend, queue.
//!
//! ```text
//! [virtio|IP packet, up to 64 KiB] → check → look up → (reply or drop) → cut and prepend → outbox
//! ```

use std::net::Ipv4Addr;
use std::ops::Range;

use wire::{Malformed, ipv4, ipv6, virtio};

use crate::counters::Direction;
use crate::fib::{Fib, NextHop};
use crate::flow;
use crate::inner::{Inner, TCP, UDP};
use crate::offload::checksum::{self, Sender, State};
use crate::offload::fragment::{self, Whole};
use crate::offload::mss::SegmentSizes;
use crate::offload::segment::{SuperPacket, TCP_SEGMENT_MIN};
use crate::outbox::{Destination, Outbox};
use crate::reply::{self, Complaint, Limiter};
use crate::space::{bytes, bytes_mut};
use crate::template::TEMPLATE_MAX;
use crate::verdict::{DropReason, Verdict};
use crate::wireguard::session::Millis;

/// Free bytes to leave before a packet in the arena, so that a template fits in front of its IP header.
pub const HEADROOM: usize = 16;
/// Maximum segments of a UDP super-packet that are fragmented: UDP_MAX_SEGMENTS since Linux 6.9
/// (include/linux/udp.h). GRO joins 64 (UDP_GRO_CNT_MAX); only a virtual machine's guest can exceed it.
const SEGMENTS_MAX: usize = 128;
const _: () = assert!(HEADROOM + virtio::HEADER_LEN >= TEMPLATE_MAX);

/// A packet that has passed the checks, with its peer.
#[derive(Debug)]
pub struct Bound<'f> {
    peer: &'f NextHop,
    inner: Inner,
    /// Offset of the IP header in the arena.
    at: u32,
    cut: Option<SuperPacket>,
    /// The size of the fragments that the packet, or each of its segments, is sent in.
    fragments: Option<u16>,
    open_checksum: Option<(u16, u16)>,
    /// Whether the kernel has verified the checksum or leaves it to us.
    vouched: bool,
}

impl Bound<'_> {
    /// Returns the number of datagrams that the packet becomes, unless it is fragmented.
    #[inline]
    pub fn datagrams(&self) -> usize {
        self.cut.as_ref().map_or(1, SuperPacket::segments)
    }

    /// Whether the packet can be queued before the next [`Outbox::clear`].
    #[inline]
    pub fn fits(&self, outbox: &Outbox) -> bool {
        let segments = self.datagrams();
        let header_len = self.cut.as_ref().map_or(0, |cut| cut.header_len + TEMPLATE_MAX);
        match self.fragments {
            None => outbox.has_room(segments, header_len),
            Some(size) => self.fits_in_fragments(outbox, segments, header_len, size),
        }
    }

    #[cold]
    fn fits_in_fragments(&self, outbox: &Outbox, segments: usize, header_len: usize, size: u16) -> bool {
        let Bound { inner, cut, .. } = self;
        let len = cut.as_ref().map_or(inner.len, |cut| cut.header_len + usize::from(cut.segment_size));
        let each = fragment::count(inner.header_len(), len - inner.header_len(), size);
        let headers = segments * header_len + segments * each * fragment::HEADER_MAX;
        segments <= SEGMENTS_MAX && outbox.has_room_for_fragments(segments, each, headers)
    }
}

/// Returns why a packet goes nowhere whose destination belongs to no peer. The kernel reports its own groups
/// on every device (RFC 3810), so those are not unknown destinations.
#[cold]
fn unowned(inner: &Inner) -> Refusal {
    let to_many = match inner.v6 {
        true => inner.dst >> 120 == 0xff,
        false => Ipv4Addr::from(inner.dst as u32).is_multicast() || inner.dst as u32 == u32::MAX,
    };
    match to_many {
        true => DropReason::Multicast.into(),
        false => Refusal { reason: DropReason::NoRoute, complaint: Some(Complaint::NoRoute) },
    }
}

/// Checks a packet that was read from the overlay, virtio header first, and finds its peer.
#[inline]
pub fn check<'f>(
    arena: &mut [u8],
    read: Range<u32>,
    fib: &'f Fib,
    sizes: &SegmentSizes,
) -> Result<Bound<'f>, Refusal> {
    let packet = bytes_mut(arena, &read);
    let virtio = virtio::Header::parse(packet).map_err(|malformed| match malformed {
        Malformed::Truncated => DropReason::Truncated,
        _ => DropReason::BadOffload,
    })?;
    let ip = packet.get_mut(virtio::HEADER_LEN..).ok_or(DropReason::Truncated)?;
    let mut inner = Inner::parse(ip)?;
    let at = read.start + virtio::HEADER_LEN as u32;
    let found =
        if inner.v6 { fib.lookup_v6(inner.dst.into()) } else { fib.lookup_v4((inner.dst as u32).into()) };
    let Some((_, peer)) = found else { return Err(unowned(&inner)) };
    if fib.format().is_hop() {
        inner.ttl = decrement_ttl(ip, &inner)?;
    }
    let mut cut = match virtio.gso {
        virtio::Gso::None => None,
        gso => {
            let agrees = match gso {
                virtio::Gso::Tcp4 => !inner.v6 && inner.protocol == TCP,
                virtio::Gso::Tcp6 => inner.v6 && inner.protocol == TCP,
                virtio::Gso::UdpL4 => inner.protocol == UDP,
                _ => false,
            };
            let cut = SuperPacket::check(inner, ip, at, virtio.gso_size)?;
            Some(cut).filter(|_| agrees).ok_or(DropReason::BadOffload).map(Some)?
        }
    };
    let limit = peer.limit(inner.v6);
    let mut fragments = None;
    let largest =
        cut.as_ref().map_or(inner.len, |cut| inner.len.min(cut.header_len + usize::from(cut.segment_size)));
    if largest > usize::from(limit) {
        fragments = shrink(&inner, &mut cut, largest, limit, peer.mtu)?;
    }
    let open = virtio.flags & virtio::NEEDS_CSUM != 0;
    if let Some(cut) = cut.as_mut().filter(|_| open && inner.has_more_headers()) {
        cut.pseudo = checksum::route_field(&inner, ip);
    }
    let open_checksum = open.then_some((virtio.csum_start, virtio.csum_offset));
    sizes.observe_egress(&inner, ip);
    let vouched = virtio.flags & (virtio::NEEDS_CSUM | virtio::DATA_VALID) != 0;
    Ok(Bound { peer, inner, at, cut, fragments, open_checksum, vouched })
}

/// Makes a packet fit the path to its peer: TCP segments are cut smaller, and IPv4 packets that allow it are
/// fragmented. Returns the size of the fragments, or refuses the packet.
#[cold]
fn shrink(
    inner: &Inner,
    cut: &mut Option<SuperPacket>,
    largest: usize,
    limit: u16,
    tunnel: u16,
) -> Result<Option<u16>, Refusal> {
    let complaint = (inner.v6 || inner.dont_fragment).then_some(Complaint::TooBig(limit));
    let refusal = Refusal { reason: DropReason::TooBig, complaint };
    // The tunnel device's own MTU has already stopped the kernel from sending larger packets.
    if largest > usize::from(tunnel) {
        return Err(refusal);
    }
    if let Some(cut) = cut.as_mut().filter(|_| inner.protocol == TCP) {
        let size = limit.saturating_sub(cut.header_len as u16);
        if size < TCP_SEGMENT_MIN {
            return Err(refusal);
        }
        cut.segment_size = size;
        return Ok(None);
    }
    if complaint.is_some() { Err(refusal) } else { Ok(Some(limit)) }
}

/// Cuts a super-packet, prepends the template and queues the datagrams. Drops a packet whose checksum is
/// wrong: the far end would take it for verified. The caller has checked [`Outbox::has_room`].
#[inline]
pub fn queue(
    arena: &mut [u8],
    bound: &Bound<'_>,
    lanes: u16,
    outbox: &mut Outbox,
    counters: &mut Direction,
) -> Verdict {
    let Bound { peer, inner, .. } = bound;
    let destination = Destination {
        peer: peer.id,
        to: peer.remote,
        lane: flow::lane(inner.flow_hash(), lanes),
        // RFC 6040 section 4.1, normal mode: the outer header starts with the inner codepoint.
        ecn: if peer.template.has_outer_header() { 0 } else { inner.ecn() },
    };
    let prefix = peer.template.len();
    if !bound.vouched {
        let packet = bytes(arena, &(bound.at..bound.at + inner.len as u32));
        match checksum::verify(inner, packet, Sender::Completes, &mut counters.summed_bytes) {
            // Segments get checksums that nobody could tell from the sender's.
            Ok(State::Open | State::Unknown) if bound.cut.is_some() => {
                return Verdict::Drop(DropReason::BadTransportChecksum);
            }
            Ok(_) => {}
            Err(reason) => return Verdict::Drop(reason),
        }
    }
    if let Some(size) = bound.fragments {
        return queue_fragments(arena, bound, size, &destination, outbox, counters);
    }
    let Some(cut) = &bound.cut else {
        let mut end = bound.at + inner.len as u32;
        if let Some((start, offset)) = bound.open_checksum {
            match checksum::finish(bytes_mut(arena, &(bound.at..end)), start, offset) {
                Ok(summed) => counters.summed_bytes += summed as u64,
                Err(reason) => return Verdict::Drop(reason),
            }
        }
        let start = bound.at - prefix as u32;
        peer.template.write(bytes_mut(arena, &(start..bound.at)), inner);
        end = end.max(start);
        outbox.push(&destination, start..end, end..end);
        counters.segments += 1;
        return Verdict::ToUnderlay(1);
    };
    // `cut` borrows the header space and `push` borrows the outbox, so take the space out for the loop.
    let mut space = std::mem::replace(&mut outbox.space, crate::space::Space::new(0..0));
    let mut datagrams = 0;
    let summed = cut.cut(
        arena,
        &[cut.payload()],
        prefix,
        |len| space.take(len),
        |arena, header, payload| {
            let template = header.start..header.start + prefix as u32;
            peer.template.write(bytes_mut(arena, &template), inner);
            outbox.push(&destination, header, payload);
            datagrams += 1;
        },
    );
    outbox.space = space;
    counters.summed_bytes += summed as u64;
    counters.segments += u64::from(datagrams);
    Verdict::ToUnderlay(datagrams)
}

/// Queues a packet, or the segments of a UDP super-packet, as IPv4 fragments.
#[cold]
fn queue_fragments(
    arena: &mut [u8],
    bound: &Bound<'_>,
    size: u16,
    destination: &Destination,
    outbox: &mut Outbox,
    counters: &mut Direction,
) -> Verdict {
    let Bound { peer, inner, at, .. } = bound;
    let mut wholes: [Whole; SEGMENTS_MAX] = [Whole::default(); SEGMENTS_MAX];
    let mut space = std::mem::replace(&mut outbox.space, crate::space::Space::new(0..0));
    let mut segments = 0;
    if let Some(cut) = &bound.cut {
        let split = inner.header_len() as u32;
        let summed = cut.cut(
            arena,
            &[cut.payload()],
            0,
            |len| space.take(len),
            |_, header, payload| {
                if let Some(whole) = wholes.get_mut(segments) {
                    *whole = Whole {
                        header: (header.start, header.start + split),
                        lead: (header.start + split, header.end),
                        payload: (payload.start, payload.end),
                    };
                }
                segments += 1;
            },
        );
        counters.summed_bytes += summed as u64;
    } else {
        let end = at + inner.len as u32;
        if let Some((start, offset)) = bound.open_checksum {
            match checksum::finish(bytes_mut(arena, &(*at..end)), start, offset) {
                Ok(summed) => counters.summed_bytes += summed as u64,
                Err(reason) => {
                    outbox.space = space;
                    return Verdict::Drop(reason);
                }
            }
        }
        let split = at + inner.header_len() as u32;
        wholes[0] = Whole { header: (*at, split), lead: (split, split), payload: (split, end) };
        segments = 1;
    }
    let (prefix, mut datagrams) = (peer.template.len(), 0);
    for whole in wholes.iter().take(segments) {
        fragment::fragment(arena, whole, prefix, size, &mut space, |arena, header, payload| {
            let template = header.start..header.start + prefix as u32;
            peer.template.write(bytes_mut(arena, &template), inner);
            outbox.push(destination, header, payload);
            datagrams += 1;
        });
    }
    outbox.space = space;
    counters.segments += u64::from(datagrams);
    Verdict::ToUnderlay(datagrams)
}

/// The reason why a packet is not forwarded, and the ICMP error for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, which selects the counter.
    pub reason: DropReason,
    /// The ICMP error to send, if any.
    pub complaint: Option<Complaint>,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal { reason, complaint: None }
    }
}

/// Queues the ICMP error for a packet that was refused at `now`, if one must be sent, the limiter admits it
/// and the batch has room for it.
#[cold]
pub fn refuse(
    arena: &mut [u8],
    read: Range<u32>,
    refusal: Refusal,
    fib: &Fib,
    outbox: &mut Outbox,
    (limiter, now): (&mut Limiter, Millis),
) -> Verdict {
    let drop = Verdict::Drop(refusal.reason);
    let Some(complaint) = refusal.complaint else { return drop };
    let mut reply = [0; reply::ROOM];
    let offender = bytes(arena, &(read.start + virtio::HEADER_LEN as u32..read.end));
    let Ok(inner) = Inner::parse(offender) else { return drop };
    let len = reply::build(&mut reply[virtio::HEADER_LEN..], complaint, fib, offender);
    if len == 0 {
        return drop;
    }
    let suppressed = Verdict::Suppressed(refusal.reason);
    if !outbox.has_room_for_reply() || !limiter.admits(complaint, &inner, now) {
        return suppressed;
    }
    let len = virtio::HEADER_LEN + len;
    let Some(span) = outbox.space.take(len) else { return suppressed };
    bytes_mut(arena, &span).copy_from_slice(&reply[..len]);
    if outbox.push_reply(span) { Verdict::Reply(refusal.reason) } else { suppressed }
}

/// Decrements the time to live or hop limit in place and returns the new value.
#[inline]
fn decrement_ttl(ip: &mut [u8], inner: &Inner) -> Result<u8, Refusal> {
    if inner.ttl <= 1 {
        return Err(Refusal { reason: DropReason::TtlExpired, complaint: Some(Complaint::TimeExceeded) });
    }
    if inner.v6 {
        ipv6::set_hop_limit(ip, inner.ttl - 1);
    } else {
        ipv4::decrement_ttl(ip);
    }
    Ok(inner.ttl - 1)
}
