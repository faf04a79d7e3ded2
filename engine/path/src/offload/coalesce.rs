//! Joins packets of one flow into a super-packet before they are written to the overlay.
//!
//! Only packets that the kernel's GRO would also join are joined (`tcp_gro_receive`, `udp_gro_receive`,
//! `inet_gro_receive`). Runs are written in the order in which they were opened, so no flow is reordered.
//! Payload is not moved: a run is a list of spans.

use std::ops::Range;

use wire::{ipv4, ipv6, tcp, udp, virtio};

use crate::flow::Spread;
use crate::inner::{Inner, TCP, UDP};
use crate::offload::checksum::State;
use crate::offload::segment::SuperPacket;
use crate::space::{Space, bytes, bytes_mut};

/// Maximum segments in a run: UDP_MAX_SEGMENTS of kernels before 6.9 (include/linux/udp.h).
pub const SEGMENTS_MAX: usize = 64;
/// Maximum length of an IP packet (RFC 791 section 3.1).
const IP_MAX: usize = 65_535;
const RUNS: usize = 256;
const SLOTS: usize = 64;
const FREE: u16 = u16::MAX;
/// Space for one virtio header, rounded up for alignment.
const VIRTIO_ROOM: usize = 16;

/// The super-packets that the overlay accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joins {
    /// TCP super-packets.
    pub tcp: bool,
    /// UDP super-packets.
    pub udp: bool,
}

/// Collects the packets of a batch into runs.
#[derive(Debug)]
pub struct Coalescer {
    runs: Vec<Run>,
    live: usize,
    slots: [u16; SLOTS],
    space: Space,
    joins: Joins,
}

/// One write to the overlay: a packet, or several that were joined.
#[derive(Debug)]
pub struct Run {
    inner: Inner,
    at: u32,
    header_len: usize,
    /// Payload bytes of each segment except the last; 0 if nothing can be joined to this packet.
    segment_size: u16,
    segments: usize,
    len: usize,
    next_seq: u32,
    tail_flags: u8,
    id_step: Option<u16>,
    open: bool,
    checksum: State,
    spans: Vec<Range<u32>>,
}

impl Coalescer {
    /// Creates a coalescer that allocates headers from `space` in the worker's arena.
    pub fn new(space: Range<u32>, joins: Joins) -> Coalescer {
        let runs = (0..RUNS).map(|_| Run::blank()).collect();
        Coalescer { runs, live: 0, slots: [FREE; SLOTS], space: Space::new(space), joins }
    }

    /// Sets which packets may be joined, starting with the next one.
    pub fn set_joins(&mut self, joins: Joins) {
        self.joins = joins;
    }

    /// Whether the packets of one more receive slot fit, at most [`SEGMENTS_MAX`] × 2.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.live + 2 * SEGMENTS_MAX <= RUNS && self.space.left() >= RUNS * VIRTIO_ROOM
    }

    /// Adds a checked packet whose IP header is at offset `at`. For an uncut super-packet, `split_size` is
    /// the payload size of each segment.
    #[inline]
    pub fn push(&mut self, arena: &[u8], at: u32, inner: Inner, checksum: State, split_size: Option<u16>) {
        let packet = bytes(arena, &(at..at + inner.len as u32));
        let Some(shape) = Shape::of(&inner, packet, checksum, split_size, self.joins) else {
            self.close(&inner);
            return self.open(at, inner, checksum, Shape::alone(inner.len), FREE as usize);
        };
        let slot = inner.flow_hash() as usize % SLOTS;
        // A super-packet already holds several segments, so it never becomes a segment of another run.
        if split_size.is_none()
            && let Some(run) = self.runs[..self.live].get_mut(usize::from(self.slots[slot]))
            && run.same_flow(&inner)
            && run.open
            && run.follows(arena, &inner, packet, &shape)
        {
            return run.append(at, &inner, &shape);
        }
        self.open(at, inner, checksum, shape, slot);
    }

    /// Completes the headers of all runs, after which [`Coalescer::runs`] can be written.
    pub fn seal(&mut self, arena: &mut [u8]) {
        for run in &mut self.runs[..self.live] {
            if let Some(header) = self.space.take(VIRTIO_ROOM) {
                run.seal(arena, header.start..header.start + virtio::HEADER_LEN as u32);
            }
        }
    }

    /// Returns the sealed runs, oldest first.
    pub fn runs(&self) -> &[Run] {
        &self.runs[..self.live]
    }

    /// Whether there are no runs.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Cuts run `index` into single packets with complete checksums, for an overlay that does not accept
    /// super-packets. Calls `write` with the spans of each packet. Returns the number of payload bytes
    /// summed, or `None` if the run is a single packet.
    pub fn split(
        &mut self,
        index: usize,
        arena: &mut [u8],
        mut write: impl FnMut(&[u8], &[Range<u32>]),
    ) -> Option<usize> {
        let run = self.runs[..self.live].get_mut(index).filter(|run| run.is_super())?;
        let packet = SuperPacket {
            inner: Inner { len: run.len, ..run.inner },
            at: run.at,
            header_len: run.header_len,
            segment_size: run.segment_size,
            pseudo: None,
        };
        // Replace the virtio header and the first packet by the first packet's payload.
        let first = run.spans.get(1)?.clone();
        let mut payload = std::mem::take(&mut run.spans);
        // `write` no longer needs the headers when it returns, so every packet can use the same space. A
        // forwarded super-packet may have tens of thousands.
        let room = self.space.clone();
        payload[1] = first.start + run.header_len as u32..first.end;
        let summed = packet.cut(
            arena,
            &payload[1..],
            virtio::HEADER_LEN,
            |len| room.clone().take(len),
            |arena, header, piece| {
                let plain = header.start..header.start + virtio::HEADER_LEN as u32;
                bytes_mut(arena, &plain).fill(0);
                write(arena, &[header, piece]);
            },
        );
        run.spans = payload;
        Some(summed)
    }

    /// Removes all runs and releases their headers.
    pub fn clear(&mut self) {
        self.live = 0;
        self.slots = [FREE; SLOTS];
        self.space.reset();
    }

    fn open(&mut self, at: u32, inner: Inner, checksum: State, shape: Shape, slot: usize) {
        let Some(run) = self.runs.get_mut(self.live) else { return };
        run.begin(at, inner, checksum, shape);
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = self.live as u16;
        }
        self.live += 1;
    }

    /// Closes the runs whose later packets could overtake a packet that cannot be joined. A fragment may
    /// belong to any flow between its two addresses; any other packet belongs to a flow with at most one open
    /// run.
    fn close(&mut self, inner: &Inner) {
        if inner.fragment {
            let pair = |run: &&mut Run| run.inner.src == inner.src && run.inner.dst == inner.dst;
            self.runs[..self.live].iter_mut().filter(pair).for_each(|run| run.open = false);
            return;
        }
        let slot = inner.flow_hash() as usize % SLOTS;
        if let Some(run) = self.runs[..self.live].get_mut(usize::from(self.slots[slot])) {
            run.open &= !run.same_flow(inner);
        }
    }
}

/// The properties of a packet that decide whether it can be joined.
#[derive(Clone, Copy, Debug)]
struct Shape {
    header_len: usize,
    payload: usize,
    segment_size: u16,
    seq: u32,
    flags: u8,
    open: bool,
}

impl Shape {
    fn alone(len: usize) -> Shape {
        Shape { header_len: 0, payload: len, segment_size: 0, seq: 0, flags: 0, open: false }
    }

    /// Returns the shape of a packet, or `None` if it can never be part of a super-packet.
    #[inline]
    fn of(
        inner: &Inner,
        packet: &[u8],
        checksum: State,
        split_size: Option<u16>,
        joins: Joins,
    ) -> Option<Shape> {
        // No options, no extension headers, and the reserved bit of RFC 791 section 3.1 clear.
        let plain_header =
            !inner.has_more_headers() && (inner.v6 || packet.get(6).is_some_and(|byte| byte & 0x80 == 0));
        if inner.fragment || checksum == State::Unknown || (!plain_header && split_size.is_none()) {
            return None;
        }
        let transport = packet.get(inner.transport..)?;
        let (header_len, seq, flags, allowed) = match inner.protocol {
            TCP => {
                let header = tcp::Header::parse(transport).ok()?;
                (inner.transport + header.header_len, header.seq, header.flags, joins.tcp)
            }
            UDP => {
                let header = udp::Header::parse(transport).ok()?;
                if usize::from(header.len) != transport.len() {
                    return None;
                }
                (inner.transport + udp::HEADER_LEN, 0, 0, joins.udp)
            }
            _ => return None,
        };
        let payload = inner.len.checked_sub(header_len).filter(|payload| *payload > 0)?;
        if let Some(size) = split_size {
            return Some(Shape { header_len, payload, segment_size: size, seq, flags, open: false });
        }
        // Most flags that end a run in tcp_gro_receive also prevent a packet from starting one.
        let ends = flags & (tcp::URG | tcp::PSH | tcp::RST | tcp::SYN | tcp::FIN | tcp::CWR) != 0;
        let starts = flags & (tcp::URG | tcp::RST | tcp::SYN | tcp::CWR) == 0;
        (allowed && starts).then_some(Shape {
            header_len,
            payload,
            segment_size: payload as u16,
            seq,
            flags,
            open: !ends,
        })
    }
}

impl Run {
    /// Returns the spans for one `writev`: the virtio header, then the packet.
    #[inline]
    pub fn spans(&self) -> &[Range<u32>] {
        &self.spans
    }

    /// Selects one of `places` for the run's flow.
    #[inline]
    pub fn place(&self, spread: &Spread, places: usize) -> usize {
        spread.place(&self.inner, places)
    }

    /// Whether the run is TCP.
    #[inline]
    pub fn is_tcp(&self) -> bool {
        self.inner.protocol == TCP
    }

    /// Returns the number of packets in the run.
    #[inline]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Whether the run is a super-packet.
    #[inline]
    pub fn is_super(&self) -> bool {
        self.segment_size > 0 && self.len - self.header_len > usize::from(self.segment_size)
    }

    fn blank() -> Run {
        Run {
            inner: Inner {
                v6: false,
                len: 0,
                transport: 0,
                protocol: 0,
                fragment: false,
                tos: 0,
                ttl: 0,
                id: 0,
                dont_fragment: false,
                src: 0,
                dst: 0,
                ports: 0,
            },
            at: 0,
            header_len: 0,
            segment_size: 0,
            segments: 0,
            len: 0,
            next_seq: 0,
            tail_flags: 0,
            id_step: None,
            open: false,
            checksum: State::Valid,
            spans: Vec::with_capacity(SEGMENTS_MAX + 2),
        }
    }

    #[inline]
    fn begin(&mut self, at: u32, inner: Inner, checksum: State, shape: Shape) {
        self.spans.clear();
        self.spans.push(0..0);
        self.spans.push(at..at + inner.len as u32);
        self.at = at;
        self.len = inner.len;
        self.header_len = shape.header_len;
        self.segment_size = shape.segment_size;
        self.segments = 1;
        self.next_seq = shape.seq.wrapping_add(shape.payload as u32);
        self.tail_flags = shape.flags;
        self.id_step = None;
        self.open = shape.open;
        self.checksum = checksum;
        self.inner = inner;
    }

    #[inline]
    fn same_flow(&self, inner: &Inner) -> bool {
        self.inner.src == inner.src
            && self.inner.dst == inner.dst
            && self.inner.ports == inner.ports
            && self.inner.protocol == inner.protocol
            && self.inner.v6 == inner.v6
    }

    /// Whether the packet continues this run so that joining loses no information.
    #[inline]
    fn follows(&self, arena: &[u8], inner: &Inner, packet: &[u8], shape: &Shape) -> bool {
        let same_ip = self.inner.tos == inner.tos
            && self.inner.ttl == inner.ttl
            && self.inner.dont_fragment == inner.dont_fragment
            && self.header_len == shape.header_len
            && (inner.v6 || self.id_continues(inner));
        let fits = shape.payload <= usize::from(self.segment_size)
            && self.segments < SEGMENTS_MAX
            && self.len + shape.payload <= IP_MAX;
        if !(same_ip && fits) {
            return false;
        }
        let first = bytes(arena, &(self.at..self.at + self.header_len as u32));
        if inner.v6 && first.get(1..4) != packet.get(1..4) {
            return false;
        }
        // Compare the TCP header between the sequence number and the checksum, except the flags, and the
        // options.
        let t = inner.transport;
        inner.protocol == UDP
            || (self.next_seq == shape.seq
                && (self.tail_flags ^ shape.flags) & !(tcp::FIN | tcp::PSH) == 0
                && first.get(t + 8..t + 13) == packet.get(t + 8..t + 13)
                && first.get(t + 14..t + 16) == packet.get(t + 14..t + 16)
                && first.get(t + 18..) == packet.get(t + 18..self.header_len))
    }

    /// Whether the identification continues the run: it counts up, or is constant where DF makes it
    /// meaningless (RFC 6864).
    #[inline]
    fn id_continues(&self, inner: &Inner) -> bool {
        let step = |by: u16| inner.id == self.inner.id.wrapping_add(by.wrapping_mul(self.segments as u16));
        match self.id_step {
            Some(by) => step(by),
            None => step(1) || (inner.dont_fragment && step(0)),
        }
    }

    #[inline]
    fn append(&mut self, at: u32, inner: &Inner, shape: &Shape) {
        if self.id_step.is_none() {
            self.id_step = Some(u16::from(inner.id != self.inner.id));
        }
        self.spans.push(at + shape.header_len as u32..at + inner.len as u32);
        self.len += shape.payload;
        self.segments += 1;
        self.next_seq = shape.seq.wrapping_add(shape.payload as u32);
        self.tail_flags |= shape.flags;
        self.open = shape.open && shape.payload == usize::from(self.segment_size);
    }

    /// Writes the virtio header and, for a super-packet, the lengths and checksums of the whole run.
    fn seal(&mut self, arena: &mut [u8], virtio_at: Range<u32>) {
        let inner = &self.inner;
        let mut header = virtio::Header {
            flags: 0,
            gso: virtio::Gso::None,
            ecn: false,
            hdr_len: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
        };
        let joined = self.is_super();
        if joined || self.checksum == State::Open {
            let offset = if inner.protocol == TCP { tcp::CHECKSUM_OFFSET } else { 6 };
            header.flags = virtio::NEEDS_CSUM;
            header.csum_start = inner.transport as u16;
            header.csum_offset = offset as u16;
        }
        if joined {
            header.ecn = inner.protocol == TCP && self.tail_flags & tcp::CWR != 0;
            header.gso = match (inner.protocol, inner.v6) {
                (TCP, false) => virtio::Gso::Tcp4,
                (TCP, true) => virtio::Gso::Tcp6,
                _ => virtio::Gso::UdpL4,
            };
            header.hdr_len = self.header_len as u16;
            header.gso_size = self.segment_size;
            let packet = bytes_mut(arena, &(self.at..self.at + self.header_len as u32));
            update_headers(packet, inner, self.len, self.tail_flags);
        }
        // The span has the header's length, so this cannot fail.
        let _ = header.emit(bytes_mut(arena, &virtio_at));
        self.spans[0] = virtio_at;
    }
}

/// Updates the first packet's headers for a packet of `len` bytes with an open transport checksum.
fn update_headers(headers: &mut [u8], inner: &Inner, len: usize, flags: u8) {
    if headers.len() < inner.transport {
        return;
    }
    let (ip, transport) = headers.split_at_mut(inner.transport);
    if inner.v6 {
        ipv6::set_payload_len(ip, (len - ipv6::HEADER_LEN) as u16);
    } else {
        ipv4::set_total_len(ip, len as u16);
        ipv4::fill_checksum(ip);
    }
    let transport_len = len - inner.transport;
    let check = inner.pseudo_header(transport_len as u32).fold().to_be_bytes();
    let field = if inner.protocol == TCP { tcp::CHECKSUM_OFFSET } else { 6 };
    if inner.protocol == TCP {
        tcp::set_flags(transport, flags);
    } else if let Some(field) = transport.get_mut(4..6) {
        field.copy_from_slice(&(transport_len as u16).to_be_bytes());
    }
    if let Some(field) = transport.get_mut(field..field + 2) {
        field.copy_from_slice(&check);
    }
}
