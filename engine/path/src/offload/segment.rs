//! Cuts a TCP or UDP super-packet into segments: new headers in front of slices of the payload.
//!
//! The payload is read once, for the checksum, and never moved. The headers of the segments differ as in the
//! kernel's `tcp_gso_segment` and `__udp_gso_segment` (net/ipv4/tcp_offload.c, udp_offload.c): the IPv4 id
//! counts up, only the last segment keeps FIN and PSH, and only the first keeps CWR.

use std::ops::Range;

use wire::checksum::Sum;
use wire::{ipv4, ipv6, tcp, udp};

use crate::inner::{Inner, TCP, UDP};
use crate::space::{bytes, bytes_mut};
use crate::verdict::DropReason;

/// Maximum length of the inner headers that are repeated in front of each segment.
pub const HEADERS_MAX: usize = 192;
/// Minimum size that TCP segments are made smaller to, as on a Linux socket: TCP_MIN_GSO_SIZE, which is
/// TCP_MIN_SND_MSS minus the options (include/net/tcp.h). Segments that arrive can be shorter, and GRO joins
/// those too.
pub const TCP_SEGMENT_MIN: u16 = 8;

/// A super-packet that has been checked and can be cut.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket {
    /// The parsed packet.
    pub inner: Inner,
    /// Offset of the IP header in the arena.
    pub at: u32,
    /// Length of the IP and transport headers in bytes.
    pub header_len: usize,
    /// Payload bytes of each segment except the last.
    pub segment_size: u16,
    /// The pseudo-header's sum, if its addresses are not those of the IP header, as on a source route.
    pub pseudo: Option<u16>,
}

impl SuperPacket {
    /// Checks that a packet can be cut into segments of `segment_size`. `bytes` begins with the IP header.
    #[inline]
    pub fn check(inner: Inner, bytes: &[u8], at: u32, segment_size: u16) -> Result<SuperPacket, DropReason> {
        if inner.fragment || segment_size == 0 {
            return Err(DropReason::BadOffload);
        }
        let transport = bytes.get(inner.transport..inner.len).ok_or(DropReason::BadOffload)?;
        let transport_len = match inner.protocol {
            TCP => tcp::Header::parse(transport).map_err(|_| DropReason::BadTransportHeader)?.header_len,
            UDP if transport.len() >= udp::HEADER_LEN => udp::HEADER_LEN,
            UDP => return Err(DropReason::BadTransportHeader),
            _ => return Err(DropReason::BadOffload),
        };
        let header_len = inner.transport + transport_len;
        if header_len > HEADERS_MAX || header_len >= inner.len {
            return Err(DropReason::BadOffload);
        }
        Ok(SuperPacket { inner, at, header_len, segment_size, pseudo: None })
    }

    /// Returns the span of the payload.
    #[inline]
    pub fn payload(&self) -> Range<u32> {
        self.at + self.header_len as u32..self.at + self.inner.len as u32
    }

    /// Returns the number of segments.
    #[inline]
    pub fn segments(&self) -> usize {
        (self.inner.len - self.header_len).div_ceil(usize::from(self.segment_size))
    }

    /// Cuts `payload` into segments and returns the number of bytes summed. Each span of `payload` holds a
    /// whole number of segments; only the last segment may be short.
    ///
    /// Asks `room` for `prefix` bytes and the headers of each segment, and calls `emit` with that span and
    /// the segment's payload. Ends early if `room` has none; the caller has checked that it suffices for
    /// [`SuperPacket::segments`] × (`prefix` + [`SuperPacket::header_len`]).
    #[inline]
    pub fn cut(
        &self,
        arena: &mut [u8],
        payload: &[Range<u32>],
        prefix: usize,
        mut room: impl FnMut(usize) -> Option<Range<u32>>,
        mut emit: impl FnMut(&mut [u8], Range<u32>, Range<u32>),
    ) -> usize {
        let mut stamp = Stamp::new(self, bytes(arena, &(self.at..self.at + self.header_len as u32)));
        let total: u32 = payload.iter().map(|span| span.end - span.start).sum();
        let mut done = 0;
        for span in payload {
            let mut at = span.start;
            while at < span.end {
                let piece = at..span.end.min(at + u32::from(self.segment_size));
                at = piece.end;
                done += piece.end - piece.start;
                let Some(header) = room(prefix + self.header_len) else { return done as usize };
                let sum = Sum::of(bytes(arena, &piece));
                let inner = header.start + prefix as u32..header.end;
                stamp.write(bytes_mut(arena, &inner), sum, piece.end - piece.start, done == total);
                emit(arena, header, piece);
            }
        }
        done as usize
    }
}

/// The repeated headers and the sums of their constant parts.
struct Stamp {
    headers: [u8; HEADERS_MAX],
    len: usize,
    transport: usize,
    v6: bool,
    tcp: bool,
    /// Sum of the IPv4 header without length, id and checksum.
    ip_sum: Sum,
    /// Sum of the pseudo-header without its length and of the transport header without its variable fields.
    transport_sum: Sum,
    id: u16,
    seq: u32,
    flags: u8,
    first: bool,
}

impl Stamp {
    fn new(packet: &SuperPacket, from: &[u8]) -> Stamp {
        let mut headers = [0; HEADERS_MAX];
        let len = from.len().min(HEADERS_MAX);
        headers[..len].copy_from_slice(&from[..len]);
        let (ip, transport) = headers[..len].split_at_mut(packet.inner.transport.min(len));
        let mut ip_sum = Sum::default();
        if !packet.inner.v6 {
            ipv4::set_total_len(ip, 0);
            ipv4::set_id(ip, 0);
            zero16(ip, 10);
            ip_sum = Sum::of(ip);
        }
        let (mut seq, mut flags) = (0, 0);
        if packet.inner.protocol == TCP {
            if let Ok(header) = tcp::Header::parse(transport) {
                (seq, flags) = (header.seq, header.flags);
            }
            tcp::set_seq(transport, 0);
            tcp::set_flags(transport, 0);
            zero16(transport, tcp::CHECKSUM_OFFSET);
        } else {
            zero16(transport, 4);
            zero16(transport, 6);
        }
        let pseudo = match packet.pseudo {
            Some(sum) => {
                // Ones' complement: subtracts the length.
                let transport_len = packet.inner.len - packet.inner.transport;
                Sum::default().add_u16(sum).add_u16(!(transport_len as u16))
            }
            None => packet.inner.pseudo_header(0),
        };
        let transport_sum = pseudo.add(transport);
        Stamp {
            headers,
            len,
            transport: packet.inner.transport,
            v6: packet.inner.v6,
            tcp: packet.inner.protocol == TCP,
            ip_sum,
            transport_sum,
            id: packet.inner.id,
            seq,
            flags,
            first: true,
        }
    }

    #[inline]
    fn write(&mut self, out: &mut [u8], payload_sum: Sum, payload_len: u32, last: bool) {
        if out.len() != self.len {
            return;
        }
        out.copy_from_slice(&self.headers[..self.len]);
        let total = self.len as u32 + payload_len;
        let (ip, transport) = out.split_at_mut(self.transport);
        if self.v6 {
            ipv6::set_payload_len(ip, (total as usize - ipv6::HEADER_LEN) as u16);
        } else {
            ipv4::set_total_len(ip, total as u16);
            ipv4::set_id(ip, self.id);
            let check = self.ip_sum.add_u16(total as u16).add_u16(self.id).finish();
            put16(ip, 10, check);
            self.id = self.id.wrapping_add(1);
        }
        let transport_len = transport.len() as u32 + payload_len;
        let sum = self.transport_sum.join(payload_sum).add_u32(transport_len);
        if self.tcp {
            let mut flags = self.flags;
            if !last {
                flags &= !(tcp::FIN | tcp::PSH);
            }
            if !self.first {
                flags &= !tcp::CWR;
            }
            tcp::set_seq(transport, self.seq);
            tcp::set_flags(transport, flags);
            let check = sum.add_u32(self.seq).add_u16(u16::from(flags)).finish();
            put16(transport, tcp::CHECKSUM_OFFSET, check);
            self.seq = self.seq.wrapping_add(payload_len);
        } else {
            put16(transport, 4, transport_len as u16);
            let check = sum.add_u16(transport_len as u16).finish();
            // RFC 768: a computed zero is sent as all ones.
            put16(transport, 6, if check == 0 { 0xffff } else { check });
        }
        self.first = false;
    }
}

#[inline]
fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[inline]
fn zero16(bytes: &mut [u8], at: usize) {
    put16(bytes, at, 0);
}
