//! Builds packets byte by byte.

use proptest::prelude::*;

use super::reference::{complement, fold, pseudo};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// The value of the transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Valid,
    Open,
    Zero,
    Invalid,
}

/// An inner packet from a pod of node A (10.1.0.x, fd00:1::x) to a pod of node B (10.2.0.x, fd00:2::x).
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) v6: bool,
    pub(crate) protocol: u8,
    pub(crate) src: u8,
    pub(crate) dst: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) df: bool,
    /// IPv4: the more-fragments flag, fragment offset and reserved bit, as in the header.
    pub(crate) fragment: u16,
    /// IPv4 options or IPv6 extension headers.
    pub(crate) ip_options: Vec<u8>,
    /// Type of the first IPv6 extension header.
    pub(crate) extension: u8,
    pub(crate) flow_label: u32,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) tcp_options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) checksum: Checksum,
}

impl Packet {
    pub(crate) fn tcp(v6: bool, seq: u32, payload: usize) -> Packet {
        Packet {
            v6,
            protocol: TCP,
            src: 5,
            dst: 7,
            ports: (40_000, 5201),
            tos: 0,
            ttl: 64,
            id: 1,
            df: false,
            fragment: 0,
            ip_options: vec![],
            extension: 60,
            flow_label: 0x12345,
            seq,
            ack: 77,
            flags: ACK,
            window: 500,
            urgent: 0,
            tcp_options: vec![],
            payload: pattern(seq, payload),
            checksum: Checksum::Valid,
        }
    }

    pub(crate) fn udp(v6: bool, id: u16, payload: usize) -> Packet {
        Packet { protocol: UDP, id, payload: pattern(u32::from(id), payload), ..Packet::tcp(v6, 0, 0) }
    }

    pub(crate) fn icmp(v6: bool, payload: usize) -> Packet {
        let mut packet = Packet { protocol: if v6 { 58 } else { ICMP }, ..Packet::tcp(v6, 0, 8 + payload) };
        packet.payload[..2].copy_from_slice(&[if v6 { 128 } else { 8 }, 0]);
        packet
    }

    pub(crate) fn ip_len(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + self.ip_options.len()
    }

    pub(crate) fn header_len(&self) -> usize {
        let transport = match self.protocol {
            TCP => 20 + self.tcp_options.len(),
            UDP => 8,
            _ => 0,
        };
        self.ip_len() + transport
    }

    /// Returns the bytes on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let len = transport.len();
        let mut out = vec![];
        if self.v6 {
            let next = if self.ip_options.is_empty() { self.protocol } else { self.extension };
            let word = 6u32 << 28 | u32::from(self.tos) << 20 | self.flow_label;
            out.extend(word.to_be_bytes());
            out.extend(((self.ip_options.len() + len) as u16).to_be_bytes());
            out.extend([next, self.ttl]);
            for (node, pod) in [(1, self.src), (2, self.dst)] {
                out.extend([0xfd, 0, 0, node, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, pod]);
            }
            out.extend(&self.ip_options);
        } else {
            let header = 20 + self.ip_options.len();
            out.extend([0x40 | (header / 4) as u8, self.tos]);
            out.extend(((header + len) as u16).to_be_bytes());
            out.extend(self.id.to_be_bytes());
            out.extend((u16::from(self.df) << 14 | self.fragment).to_be_bytes());
            out.extend([self.ttl, self.protocol, 0, 0, 10, 1, 0, self.src, 10, 2, 0, self.dst]);
            out.extend(&self.ip_options);
            let check = complement(fold(0, &out));
            out[10..12].copy_from_slice(&check.to_be_bytes());
        }
        let field = match self.protocol {
            TCP => 16,
            UDP => 6,
            _ => {
                out.extend(transport);
                return out;
            }
        };
        let partial = pseudo(&out, self.protocol, len);
        let right = complement(fold(u32::from(partial), &transport));
        let right = if right == 0 && self.protocol == UDP { 0xffff } else { right };
        let check = match self.checksum {
            Checksum::Valid => right,
            Checksum::Open => partial,
            Checksum::Zero => 0,
            // Neither a missing checksum nor an open one, which are valid to some readers.
            Checksum::Invalid => [right ^ 0x0400, right ^ 0x0800, right ^ 0x1000]
                .into_iter()
                .find(|wrong| *wrong != 0 && *wrong != partial)
                .expect("two of the three at most"),
        };
        transport[field..field + 2].copy_from_slice(&check.to_be_bytes());
        out.extend(transport);
        out
    }

    fn transport(&self) -> Vec<u8> {
        let mut t = vec![];
        if matches!(self.protocol, TCP | UDP) {
            t.extend(self.ports.0.to_be_bytes());
            t.extend(self.ports.1.to_be_bytes());
        }
        if self.protocol == TCP {
            t.extend(self.seq.to_be_bytes());
            t.extend(self.ack.to_be_bytes());
            t.extend([(5 + self.tcp_options.len() as u8 / 4) << 4, self.flags]);
            t.extend(self.window.to_be_bytes());
            t.extend([0, 0]);
            t.extend(self.urgent.to_be_bytes());
            t.extend(&self.tcp_options);
        } else if self.protocol == UDP {
            t.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            t.extend([0, 0]);
        }
        t.extend(&self.payload);
        t
    }
}

/// Generates pseudo-random bytes that identify their seed.
pub(crate) fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Generates TCP and UDP packets in which every field that cutting must preserve is set, and a segment size.
pub(crate) fn supers() -> impl Strategy<Value = (Packet, u16)> {
    let flags = prop::sample::subsequence(vec![FIN, PSH, CWR, ECE, URG], 0..=5);
    let header =
        (any::<bool>(), any::<bool>(), any::<(u16, u16)>(), any::<u8>(), 2u8.., any::<u16>(), any::<bool>());
    let tcp = (any::<u32>(), any::<u32>(), flags, any::<(u16, u16)>(), 0usize..=10, 0usize..=3);
    let sizes = (1u16..2000, 1usize..40_000, any::<u32>());
    (header, tcp, sizes).prop_map(|(header, tcp, (size, payload, seed))| {
        let (v6, is_tcp, ports, tos, ttl, id, df) = header;
        let (seq, ack, flags, (window, urgent), options, ip_options) = tcp;
        // At most 90 segments, in the range that kernels send.
        let payload = payload.min(usize::from(size) * 90);
        let packet = Packet {
            protocol: if is_tcp { TCP } else { UDP },
            ports,
            tos,
            ttl,
            id,
            df,
            flow_label: seed & 0xfffff,
            seq,
            ack,
            flags: flags.iter().fold(ACK, |a, b| a | b),
            window,
            urgent,
            tcp_options: pattern(seed, options * 4),
            // IPv4 no-operation options, or an IPv6 destination options header with PadN.
            ip_options: if v6 {
                [&[if is_tcp { TCP } else { UDP }, 0, 1, 4, 0, 0, 0, 0][..], &[]]
                    [usize::from(ip_options != 3)]
                .to_vec()
            } else {
                vec![1; ip_options * 4]
            },
            payload: pattern(seed, payload),
            ..Packet::tcp(v6, seq, 0)
        };
        (packet, size)
    })
}
