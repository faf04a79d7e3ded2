//! Datagrams waiting to be sent, gathered per peer and source port.
//!
//! One `UDP_SEGMENT` send takes datagrams of equal size, only the last may be shorter; they need not be of
//! one flow. So segments of one super-packet, of the next one, and small packets of other flows that share
//! peer and port all ride in one call. Messages leave in the order they were opened, and a flow always uses
//! one peer and port, so no flow is reordered.

use std::net::SocketAddr;
use std::ops::Range;

use batch::{PeerId, Transmit};

use crate::space::Space;

/// UDP_MAX_SEGMENTS before Linux 6.9 (include/linux/udp.h); later kernels take more.
pub const SEGMENTS_MAX: u16 = 64;
/// Payload of the largest UDP datagram over IPv4 (65,535 - 20 - 8), which bounds a send as a whole.
pub const BYTES_MAX: u32 = 65_507;
/// Messages that one batch may make.
pub const MESSAGES: usize = 128;
/// Spans of one message: each datagram has a header and a payload.
const SPANS: usize = 2 * SEGMENTS_MAX as usize;
const SLOTS: usize = 256;
const FREE: u16 = u16::MAX;
const REPLIES_MAX: usize = 16;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// The peer's number in the table, which tells peers apart quickly.
    pub peer: PeerId,
    /// The peer's address.
    pub to: SocketAddr,
    /// Source port of the fan.
    pub lane: u16,
    /// Outer ECN codepoint.
    pub ecn: u8,
}

/// The messages of one worker and tunnel.
///
/// A message is a [`Transmit`] from the moment it is opened: its spans lie in a block of their own, to which datagrams
/// are added until it is full.
#[derive(Debug)]
pub struct Outbox {
    messages: Vec<Transmit>,
    /// Message *i* has the block from *i* × [`SPANS`] on.
    spans: Vec<Range<u32>>,
    fills: Vec<Fill>,
    sent: usize,
    live: usize,
    slots: Vec<u16>,
    /// Bytes that each datagram grows by before it is sent.
    overhead: u32,
    /// Headers and ICMP replies are written here.
    pub space: Space,
    replies: Vec<Range<u32>>,
}

/// How much is in a message.
#[derive(Clone, Copy, Debug, Default)]
struct Fill {
    bytes: u32,
    /// It takes nothing more.
    full: bool,
}

impl Fill {
    #[inline]
    fn takes(self, message: &Transmit, datagram: &Datagram, size: u32, overhead: u32) -> bool {
        !self.full
            && message.peer == datagram.peer
            && message.lane == datagram.lane
            && message.ecn == datagram.ecn
            && size <= u32::from(message.segment_size)
            && self.bytes + size + (u32::from(message.segments) + 1) * overhead <= BYTES_MAX
    }
}

impl Outbox {
    /// An outbox that writes its headers to `space` of the worker's arena.
    pub fn new(space: Range<u32>) -> Outbox {
        let to = SocketAddr::from(([0, 0, 0, 0], 0));
        let message = |index: usize| Transmit {
            to,
            peer: PeerId(0),
            lane: 0,
            first_span: (index * SPANS) as u32,
            span_count: 0,
            segment_size: 0,
            segments: 0,
            ecn: 0,
        };
        Outbox {
            messages: (0..MESSAGES).map(message).collect(),
            spans: vec![0..0; MESSAGES * SPANS],
            fills: vec![Fill::default(); MESSAGES],
            sent: 0,
            live: 0,
            slots: vec![FREE; SLOTS],
            overhead: 0,
            space: Space::new(space),
            replies: Vec::with_capacity(REPLIES_MAX),
        }
    }

    /// The same, for datagrams that grow by up to so many bytes before they are sent.
    pub fn with_overhead(space: Range<u32>, overhead: u32) -> Outbox {
        Outbox { overhead, ..Outbox::new(space) }
    }

    /// Whether `datagrams` more of them, with `header` bytes of headers each, can be queued before the next
    /// [`Outbox::clear`].
    #[inline]
    pub fn has_room(&self, datagrams: usize, header: usize) -> bool {
        let messages = datagrams.div_ceil(usize::from(SEGMENTS_MAX)).max(1) + datagrams / 44;
        self.space.left() >= datagrams * header && self.live + messages < MESSAGES
    }

    /// Queues one datagram made of a header span and a payload span (either may be empty).
    #[inline]
    pub fn push(&mut self, datagram: &Datagram, header: Range<u32>, payload: Range<u32>) {
        let size = (header.end - header.start) + (payload.end - payload.start);
        let Datagram { peer, to, lane, ecn } = *datagram;
        let slot = (peer.0 as usize).wrapping_mul(31).wrapping_add(usize::from(lane)) % SLOTS;
        let open = usize::from(self.slots[slot]);
        let index = match self.messages[..self.live].get(open) {
            Some(message) if self.fills[open].takes(message, datagram, size, self.overhead) => open,
            _ => {
                let index = self.live;
                let Some(message) = self.messages.get_mut(index) else { return };
                *message = Transmit {
                    to,
                    peer,
                    lane,
                    first_span: (index * SPANS) as u32,
                    span_count: 0,
                    segment_size: size.min(u32::from(u16::MAX)) as u16,
                    segments: 0,
                    ecn,
                };
                self.fills[index] = Fill::default();
                self.slots[slot] = index as u16;
                self.live += 1;
                index
            }
        };
        let message = &mut self.messages[index];
        for span in [header, payload] {
            if span.start != span.end {
                self.spans[index * SPANS + message.span_count as usize] = span;
                message.span_count += 1;
            }
        }
        message.segments += 1;
        let fill = &mut self.fills[index];
        fill.bytes += size;
        fill.full = size < u32::from(message.segment_size)
            || message.segments == SEGMENTS_MAX
            || fill.bytes
                + u32::from(message.segment_size)
                + (u32::from(message.segments) + 1) * self.overhead
                > BYTES_MAX;
    }

    /// How many messages, from the oldest pending one on, can take nothing more; sending them now keeps their bytes
    /// warm.
    #[inline]
    pub fn full(&self) -> usize {
        self.fills[self.sent..self.live].iter().take_while(|fill| fill.full).count()
    }

    /// All messages not yet sent.
    #[inline]
    pub fn pending(&self) -> &[Transmit] {
        &self.messages[self.sent..self.live]
    }

    /// The spans of all messages.
    #[inline]
    pub fn spans(&self) -> &[Range<u32>] {
        &self.spans
    }

    /// The bytes of one message, datagram after datagram. Each datagram starts with a span of its own.
    #[inline]
    pub fn spans_of(&self, message: &Transmit) -> &[Range<u32>] {
        let first = message.first_span as usize;
        self.spans.get(first..first + message.span_count as usize).unwrap_or_default()
    }

    /// Puts those of one source port together among the `n` oldest pending messages, which must all be sent before
    /// anything more is queued. Sends of one port share a call, and a flow has one port, so its order stands.
    #[inline]
    pub fn group_by_lane(&mut self, n: usize) {
        let end = self.live.min(self.sent + n);
        self.messages[self.sent..end].sort_unstable_by_key(|message| (message.lane, message.first_span));
    }

    /// Marks the `n` oldest pending messages as sent.
    #[inline]
    pub fn mark_sent(&mut self, n: usize) {
        self.sent = self.live.min(self.sent + n);
    }

    /// Queues a reply for the overlay, if this batch has room for one more.
    pub fn push_reply(&mut self, span: Range<u32>) -> bool {
        let room = self.replies.len() < REPLIES_MAX;
        if room {
            self.replies.push(span);
        }
        room
    }

    /// Whether one more reply may be made. A batch makes few: a pod that asks for many gets silence.
    pub fn has_room_for_reply(&self) -> bool {
        self.replies.len() < REPLIES_MAX
    }

    /// ICMP errors for pods, virtio header first.
    pub fn replies(&self) -> &[Range<u32>] {
        &self.replies
    }

    /// Forgets everything and gives the headers back.
    pub fn clear(&mut self) {
        self.sent = 0;
        self.live = 0;
        self.slots.fill(FREE);
        self.space.reset();
        self.replies.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(0..1 << 20)
    }

    fn to(peer: u32, lane: u16) -> Datagram {
        Datagram { peer: PeerId(peer), to: SocketAddr::from(([192, 0, 2, peer as u8], 8472)), lane, ecn: 0 }
    }

    fn sizes(outbox: &Outbox) -> Vec<(u16, u16)> {
        outbox.pending().iter().map(|m| (m.segment_size, m.segments)).collect()
    }

    #[test]
    fn equal_sizes_share_a_send_and_a_short_one_ends_it() {
        let mut outbox = outbox();
        for len in [1450, 1450, 700, 1450] {
            outbox.push(&to(1, 3), 0..22, 100..100 + len);
        }
        assert_eq!(sizes(&outbox), [(1472, 3), (1472, 1)]);
        assert_eq!(outbox.full(), 1);
    }

    #[test]
    fn a_send_ends_at_the_limits() {
        let mut outbox = outbox();
        for _ in 0..50 {
            outbox.push(&to(1, 3), 0..22, 100..1550);
        }
        assert_eq!(sizes(&outbox), [(1472, 44), (1472, 6)]);
        outbox.clear();
        for _ in 0..70 {
            outbox.push(&to(1, 3), 0..22, 100..170);
        }
        assert_eq!(sizes(&outbox), [(92, 64), (92, 6)]);
    }

    #[test]
    fn what_grows_later_takes_its_room_now() {
        let mut outbox = Outbox::with_overhead(0..1 << 20, 32);
        for _ in 0..50 {
            outbox.push(&to(1, 3), 0..20, 100..1500);
        }
        // 45 would be 63,900 bytes and, grown, 65,340; 46 would be too much.
        assert_eq!(sizes(&outbox), [(1420, 45), (1420, 5)]);
    }

    #[test]
    fn peers_lanes_and_ecn_are_kept_apart_in_order() {
        let mut outbox = outbox();
        outbox.push(&to(1, 0), 0..22, 100..200);
        outbox.push(&to(2, 0), 0..22, 100..200);
        outbox.push(&to(1, 0), 0..22, 100..200);
        outbox.push(&Datagram { ecn: 1, ..to(1, 0) }, 0..22, 100..200);
        outbox.push(&to(1, 0), 0..22, 100..200);
        let order: Vec<_> = outbox.pending().iter().map(|m| (m.peer.0, m.ecn, m.segments)).collect();
        assert_eq!(order, [(1, 0, 2), (2, 0, 1), (1, 1, 1), (1, 0, 1)]);
    }

    #[test]
    fn replies_are_few() {
        let mut outbox = outbox();
        assert!((0..REPLIES_MAX).all(|_| outbox.push_reply(0..10)));
        assert!(!outbox.push_reply(0..10));
    }
}
