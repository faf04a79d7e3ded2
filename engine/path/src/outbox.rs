//! Datagrams waiting to be sent, gathered per peer and source port.
//!
//! One `UDP_SEGMENT` send takes datagrams of equal size, only the last may be shorter; they need not be of
//! one flow. So segments of one super-packet, of the next one, and small packets of other flows that share
//! peer and port all ride in one call. Messages leave in the order they were opened, and a flow always uses
//! one peer and port, so no flow is reordered.

use std::net::SocketAddr;
use std::ops::Range;

use crate::space::Space;

/// UDP_MAX_SEGMENTS before Linux 6.9 (include/linux/udp.h); later kernels take more.
pub const SEGMENTS_MAX: u16 = 64;
/// Payload of the largest UDP datagram over IPv4 (65,535 - 20 - 8), which bounds a send as a whole.
pub const BYTES_MAX: u32 = 65_507;
const MESSAGES: usize = 128;
const SLOTS: usize = 256;
const FREE: u16 = u16::MAX;

/// One send.
#[derive(Clone, Debug)]
pub struct Message {
    /// Destination.
    pub to: SocketAddr,
    /// Which source port of the fan.
    pub lane: u16,
    /// Outer ECN codepoint.
    pub ecn: u8,
    /// Bytes of each datagram but the last.
    pub segment_size: u16,
    /// Number of datagrams.
    pub segments: u16,
    peer: u32,
    bytes: u32,
    full: bool,
    spans: Vec<Range<u32>>,
}

impl Message {
    /// The bytes, datagram after datagram. Each datagram starts with a span of its own.
    pub fn spans(&self) -> &[Range<u32>] {
        &self.spans
    }

    /// The peer's number.
    #[inline]
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Bytes of all datagrams.
    #[inline]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    #[inline]
    fn takes(&self, datagram: &Datagram, size: u32, overhead: u32) -> bool {
        !self.full
            && self.peer == datagram.peer
            && self.lane == datagram.lane
            && self.ecn == datagram.ecn
            && size <= u32::from(self.segment_size)
            && self.bytes + size + (u32::from(self.segments) + 1) * overhead <= BYTES_MAX
    }
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// The peer's index in the table, which tells peers apart quickly.
    pub peer: u32,
    /// Its address.
    pub to: SocketAddr,
    /// Source port of the fan.
    pub lane: u16,
    /// Outer ECN codepoint.
    pub ecn: u8,
}

/// The messages of one worker and tunnel.
#[derive(Debug)]
pub struct Outbox {
    messages: Vec<Message>,
    sent: usize,
    live: usize,
    slots: Vec<u16>,
    /// Bytes that each datagram grows by before it is sent.
    overhead: u32,
    /// Headers and ICMP replies are written here.
    pub space: Space,
    replies: Vec<Range<u32>>,
}

impl Outbox {
    /// An outbox that writes its headers to `space` of the worker's arena.
    pub fn new(space: Range<u32>) -> Outbox {
        let blank = Message {
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            lane: 0,
            ecn: 0,
            segment_size: 0,
            segments: 0,
            peer: 0,
            bytes: 0,
            full: false,
            spans: Vec::with_capacity(2 * usize::from(SEGMENTS_MAX)),
        };
        Outbox {
            messages: (0..MESSAGES)
                .map(|_| Message {
                    spans: Vec::with_capacity(2 * usize::from(SEGMENTS_MAX)),
                    ..blank.clone()
                })
                .collect(),
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
        let slot = (datagram.peer as usize).wrapping_mul(31).wrapping_add(usize::from(datagram.lane)) % SLOTS;
        let open = usize::from(self.slots[slot]);
        let index = match self.messages[..self.live].get(open) {
            Some(message) if message.takes(datagram, size, self.overhead) => open,
            _ => {
                let Some(message) = self.messages.get_mut(self.live) else { return };
                message.spans.clear();
                message.to = datagram.to;
                message.lane = datagram.lane;
                message.ecn = datagram.ecn;
                message.peer = datagram.peer;
                message.segment_size = size.min(u32::from(u16::MAX)) as u16;
                message.segments = 0;
                message.bytes = 0;
                message.full = false;
                self.slots[slot] = self.live as u16;
                self.live += 1;
                self.live - 1
            }
        };
        let message = &mut self.messages[index];
        if header.start != header.end {
            message.spans.push(header);
        }
        if payload.start != payload.end {
            message.spans.push(payload);
        }
        message.segments += 1;
        message.bytes += size;
        message.full = size < u32::from(message.segment_size)
            || message.segments == SEGMENTS_MAX
            || message.bytes
                + u32::from(message.segment_size)
                + (u32::from(message.segments) + 1) * self.overhead
                > BYTES_MAX;
    }

    /// The messages that can take nothing more, from the oldest on; sending them now keeps their bytes warm.
    #[inline]
    pub fn full(&self) -> &[Message] {
        let pending = &self.messages[self.sent..self.live];
        let full = pending.iter().take_while(|message| message.full).count();
        &pending[..full]
    }

    /// All messages not yet sent.
    #[inline]
    pub fn pending(&self) -> &[Message] {
        &self.messages[self.sent..self.live]
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

const REPLIES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(0..1 << 20)
    }

    fn to(peer: u32, lane: u16) -> Datagram {
        Datagram { peer, to: SocketAddr::from(([192, 0, 2, peer as u8], 8472)), lane, ecn: 0 }
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
        assert_eq!(outbox.full().len(), 1);
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
        let order: Vec<_> = outbox.pending().iter().map(|m| (m.peer, m.ecn, m.segments)).collect();
        assert_eq!(order, [(1, 0, 2), (2, 0, 1), (1, 1, 1), (1, 0, 1)]);
    }

    #[test]
    fn replies_are_few() {
        let mut outbox = outbox();
        assert!((0..REPLIES_MAX).all(|_| outbox.push_reply(0..10)));
        assert!(!outbox.push_reply(0..10));
    }
}
