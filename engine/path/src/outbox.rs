//! Datagrams waiting to be sent, gathered per peer and source port.
//!
//! One `UDP_SEGMENT` send carries datagrams of equal size, of which only the last may be shorter. They need
//! not belong to one flow: segments of several super-packets and small packets of other flows with the same
//! peer and port share one call. Messages are sent in the order in which they were opened, and a flow always
//! has the same peer and port, so no flow is reordered.

use std::net::SocketAddr;
use std::ops::Range;

use batch::{PeerId, Transmit};

use crate::space::Space;

/// UDP_MAX_SEGMENTS before Linux 6.9 (include/linux/udp.h); later kernels take more.
pub const SEGMENTS_MAX: u16 = 64;
/// Payload of the largest UDP datagram over IPv4 (65,535 - 20 - 8), which limits each send as a whole.
pub const BYTES_MAX: u32 = 65_507;
/// Maximum messages in one batch.
pub const MESSAGES: usize = 128;
/// Maximum spans of one message: a header and a payload for each datagram.
const SPANS: usize = 2 * SEGMENTS_MAX as usize;
const SLOTS: usize = 256;
const FREE: u16 = u16::MAX;
const REPLIES_MAX: usize = 16;

/// The destination of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// The peer's number, which is faster to compare than its address.
    pub peer: PeerId,
    /// The peer's address.
    pub to: SocketAddr,
    /// Index of the source port in the fan.
    pub lane: u16,
    /// Outer ECN codepoint.
    pub ecn: u8,
}

/// The messages of one worker and tunnel.
///
/// A message is a [`Transmit`] from the moment it is opened. Its spans are in a separate block, to which
/// datagrams are added until the message is full.
#[derive(Debug)]
pub struct Outbox {
    messages: Vec<Transmit>,
    /// The block of message *i* begins at *i* × [`SPANS`].
    spans: Vec<Range<u32>>,
    fills: Vec<Fill>,
    sent: usize,
    live: usize,
    slots: Vec<u16>,
    /// Bytes by which each datagram grows before it is sent.
    overhead: u32,
    /// Space for headers and ICMP errors.
    pub space: Space,
    replies: Vec<Range<u32>>,
}

/// The fill level of a message.
#[derive(Clone, Copy, Debug, Default)]
struct Fill {
    bytes: u32,
    /// Whether the message accepts no more datagrams.
    full: bool,
}

impl Fill {
    /// Whether a datagram of `size` bytes for `destination` fits the message.
    #[inline]
    fn accepts(self, message: &Transmit, destination: &Destination, size: u32, overhead: u32) -> bool {
        !self.full
            && message.peer == destination.peer
            && message.lane == destination.lane
            && message.ecn == destination.ecn
            && size <= u32::from(message.segment_size)
            && self.bytes + size + (u32::from(message.segments) + 1) * overhead <= BYTES_MAX
    }
}

impl Outbox {
    /// Creates an outbox that writes headers to `space` in the worker's arena.
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

    /// Creates an outbox for datagrams that grow by up to `overhead` bytes before they are sent.
    pub fn with_overhead(space: Range<u32>, overhead: u32) -> Outbox {
        Outbox { overhead, ..Outbox::new(space) }
    }

    /// Whether `datagrams` more datagrams, with `header` bytes of headers each, can be queued before the next
    /// [`Outbox::clear`].
    #[inline]
    pub fn has_room(&self, datagrams: usize, header: usize) -> bool {
        let messages = datagrams.div_ceil(usize::from(SEGMENTS_MAX)).max(1) + datagrams / 44;
        self.space.left() >= datagrams * header && self.live + messages < MESSAGES
    }

    /// Whether `packets` packets, each in `each` fragments and all with `headers` bytes of headers, can be
    /// queued; see [`Outbox::has_room`]. The last fragment of a packet ends a message.
    pub fn has_room_for_fragments(&self, packets: usize, each: usize, headers: usize) -> bool {
        let messages = packets * (1 + each / 44);
        self.space.left() >= headers && self.live + messages <= MESSAGES
    }

    /// Queues a datagram that consists of a header span and a payload span, either of which may be empty.
    #[inline]
    pub fn push(&mut self, destination: &Destination, header: Range<u32>, payload: Range<u32>) {
        let size = (header.end - header.start) + (payload.end - payload.start);
        let Destination { peer, to, lane, ecn } = *destination;
        let slot = (peer.0 as usize).wrapping_mul(31).wrapping_add(usize::from(lane)) % SLOTS;
        let open = usize::from(self.slots[slot]);
        let index = match self.messages[..self.live].get(open) {
            Some(message) if self.fills[open].accepts(message, destination, size, self.overhead) => open,
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

    /// Returns how many of the oldest pending messages are full in a row. Sending them now finds their bytes
    /// still in the cache.
    #[inline]
    pub fn full(&self) -> usize {
        self.fills[self.sent..self.live].iter().take_while(|fill| fill.full).count()
    }

    /// Returns all messages that are not yet sent.
    #[inline]
    pub fn pending(&self) -> &[Transmit] {
        &self.messages[self.sent..self.live]
    }

    /// Returns the spans of all messages.
    #[inline]
    pub fn spans(&self) -> &[Range<u32>] {
        &self.spans
    }

    /// Returns the spans of one message, datagram by datagram. Each datagram begins with a new span.
    #[inline]
    pub fn spans_of(&self, message: &Transmit) -> &[Range<u32>] {
        let first = message.first_span as usize;
        self.spans.get(first..first + message.span_count as usize).unwrap_or_default()
    }

    /// Groups the `n` oldest pending messages by source port. All of them must be sent before anything more
    /// is queued. Sends from one port share a call, and a flow has one port, so its order is preserved.
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

    /// Queues a reply for the overlay. Returns false if the batch has no room for it.
    pub fn push_reply(&mut self, span: Range<u32>) -> bool {
        let room = self.replies.len() < REPLIES_MAX;
        if room {
            self.replies.push(span);
        }
        room
    }

    /// Whether another reply fits. The number per batch is limited: a pod that causes many errors gets no
    /// more replies.
    pub fn has_room_for_reply(&self) -> bool {
        self.replies.len() < REPLIES_MAX
    }

    /// Returns the ICMP errors for pods, virtio header first.
    pub fn replies(&self) -> &[Range<u32>] {
        &self.replies
    }

    /// Removes everything and releases the headers.
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

    fn to(peer: u32, lane: u16) -> Destination {
        Destination {
            peer: PeerId(peer),
            to: SocketAddr::from(([192, 0, 2, peer as u8], 8472)),
            lane,
            ecn: 0,
        }
    }

    fn sizes(outbox: &Outbox) -> Vec<(u16, u16)> {
        outbox.pending().iter().map(|m| (m.segment_size, m.segments)).collect()
    }

    #[test]
    fn datagrams_of_equal_size_share_a_send_and_a_shorter_one_ends_it() {
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
    fn overhead_is_reserved_for_each_datagram() {
        let mut outbox = Outbox::with_overhead(0..1 << 20, 32);
        for _ in 0..50 {
            outbox.push(&to(1, 3), 0..20, 100..1500);
        }
        // 45 datagrams have 63,900 bytes, and 65,340 with overhead; 46 would exceed the limit.
        assert_eq!(sizes(&outbox), [(1420, 45), (1420, 5)]);
    }

    #[test]
    fn messages_are_separated_by_peer_lane_and_ecn_and_stay_in_order() {
        let mut outbox = outbox();
        outbox.push(&to(1, 0), 0..22, 100..200);
        outbox.push(&to(2, 0), 0..22, 100..200);
        outbox.push(&to(1, 0), 0..22, 100..200);
        outbox.push(&Destination { ecn: 1, ..to(1, 0) }, 0..22, 100..200);
        outbox.push(&to(1, 0), 0..22, 100..200);
        let order: Vec<_> = outbox.pending().iter().map(|m| (m.peer.0, m.ecn, m.segments)).collect();
        assert_eq!(order, [(1, 0, 2), (2, 0, 1), (1, 1, 1), (1, 0, 1)]);
    }

    #[test]
    fn the_number_of_replies_is_limited() {
        let mut outbox = outbox();
        assert!((0..REPLIES_MAX).all(|_| outbox.push_reply(0..10)));
        assert!(!outbox.push_reply(0..10));
    }
}
