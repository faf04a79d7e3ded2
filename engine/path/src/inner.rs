//! The inner IP packet. [`Inner::parse`] checks it once; no later code repeats the checks.

use wire::{Malformed, ipv4, ipv6, tcp, udp};

use crate::flow;
use crate::verdict::DropReason;

/// IP protocol number of TCP (RFC 9293).
pub const TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const UDP: u8 = 17;

/// The fields of an IPv4 or IPv6 packet that the engine uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Whether the packet is IPv6; otherwise it is IPv4.
    pub v6: bool,
    /// Length of the packet according to its IP header, at most the number of bytes parsed.
    pub len: usize,
    /// Offset of the transport header, after options and extension headers.
    pub transport: usize,
    /// Protocol of the transport header.
    pub protocol: u8,
    /// Whether the packet is a fragment, so that its transport header is absent or incomplete.
    pub fragment: bool,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Identification (IPv4).
    pub id: u16,
    /// "Don't fragment" (IPv4).
    pub dont_fragment: bool,
    /// Source address; IPv4 in the low 32 bits.
    pub src: u128,
    /// Destination address; IPv4 in the low 32 bits.
    pub dst: u128,
    /// Source and destination port of TCP and UDP, as in the header; 0 for other protocols.
    pub ports: u32,
}

impl Inner {
    /// Parses a packet and checks that its headers agree with each other and with the length. Allows bytes
    /// after the packet (Ethernet padding).
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Inner, DropReason> {
        let mut inner = match bytes.first().ok_or(DropReason::Truncated)? >> 4 {
            4 => Inner::parse_v4(bytes)?,
            6 => Inner::parse_v6(bytes)?,
            _ => return Err(DropReason::NotIp),
        };
        if !inner.fragment && matches!(inner.protocol, TCP | UDP) {
            let ports = bytes.get(inner.transport..inner.len).and_then(|t| t.first_chunk::<4>());
            inner.ports = u32::from_be_bytes(*ports.ok_or(DropReason::BadTransportHeader)?);
        }
        Ok(inner)
    }

    #[inline]
    fn parse_v4(bytes: &[u8]) -> Result<Inner, DropReason> {
        let header = ipv4::Header::parse(bytes).map_err(ip_fault)?;
        Ok(Inner {
            v6: false,
            len: usize::from(header.total_len),
            transport: header.header_len,
            protocol: header.protocol,
            fragment: header.is_fragment(),
            tos: header.tos,
            ttl: header.ttl,
            id: header.id,
            dont_fragment: header.dont_fragment,
            src: u128::from(u32::from(header.src)),
            dst: u128::from(u32::from(header.dst)),
            ports: 0,
        })
    }

    #[inline]
    fn parse_v6(bytes: &[u8]) -> Result<Inner, DropReason> {
        let header = ipv6::Header::parse(bytes).map_err(ip_fault)?;
        let len = ipv6::HEADER_LEN + usize::from(header.payload_len);
        let transport = ipv6::transport(bytes.get(..len).ok_or(DropReason::Truncated)?).map_err(ip_fault)?;
        Ok(Inner {
            v6: true,
            len,
            transport: transport.offset,
            protocol: transport.protocol,
            fragment: transport.fragment.is_some(),
            tos: header.traffic_class,
            ttl: header.hop_limit,
            id: 0,
            dont_fragment: true,
            src: u128::from(header.src),
            dst: u128::from(header.dst),
            ports: 0,
        })
    }

    /// Returns the length of the IP header; for IPv6 with its extension headers.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.transport
    }

    /// Whether the packet has IPv4 options or IPv6 extension headers.
    #[inline]
    pub fn has_more_headers(&self) -> bool {
        self.transport != if self.v6 { ipv6::HEADER_LEN } else { ipv4::MIN_HEADER_LEN }
    }

    /// Returns the ECN codepoint (RFC 3168 section 5).
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.tos & 3
    }

    /// Returns the hash of the packet's flow.
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        if self.v6 {
            flow::hash_v6(self.src.into(), self.dst.into(), self.protocol, self.ports)
        } else {
            flow::hash_v4((self.src as u32).into(), (self.dst as u32).into(), self.protocol, self.ports)
        }
    }

    /// Sums the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) for `len` bytes of transport
    /// header and payload.
    #[inline]
    pub fn pseudo_header(&self, len: u32) -> wire::checksum::Sum {
        if self.v6 {
            wire::checksum::pseudo_v6(self.src.into(), self.dst.into(), self.protocol, len)
        } else {
            wire::checksum::pseudo_v4((self.src as u32).into(), (self.dst as u32).into(), self.protocol, len)
        }
    }

    /// Returns the offset of the checksum field of an unfragmented TCP or UDP packet, `None` for any other
    /// packet.
    #[inline]
    pub fn checksum_at(&self) -> Option<usize> {
        let (header, offset) = match (self.protocol, self.fragment) {
            (TCP, false) => (tcp::MIN_HEADER_LEN, tcp::CHECKSUM_OFFSET),
            (UDP, false) => (udp::HEADER_LEN, 6),
            _ => return None,
        };
        (self.transport + header <= self.len).then_some(self.transport + offset)
    }
}

fn ip_fault(malformed: Malformed) -> DropReason {
    match malformed {
        Malformed::Truncated => DropReason::Truncated,
        Malformed::BadVersion => DropReason::NotIp,
        Malformed::BadChecksum => DropReason::BadIpChecksum,
        _ => DropReason::BadIpHeader,
    }
}
