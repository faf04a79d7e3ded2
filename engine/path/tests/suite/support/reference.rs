//! Checksums and segmentation, written simply and without the crates under test.

use super::packet::{CWR, FIN, PSH, TCP, UDP};

/// Adds `bytes` as big-endian words to a ones' complement sum.
pub(crate) fn fold(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn complement(sum: u16) -> u16 {
    !sum
}

/// Sums the pseudo-header of an IP packet for `len` bytes of transport header and payload.
pub(crate) fn pseudo(ip: &[u8], protocol: u8, len: usize) -> u16 {
    let addresses = if ip[0] >> 4 == 6 { &ip[8..40] } else { &ip[12..20] };
    let tail = [&[0, protocol][..], &(len as u32).to_be_bytes()].concat();
    fold(fold(0, addresses).into(), &tail)
}

/// The fields of an IP packet that the tests use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) v6: bool,
    pub(crate) protocol: u8,
    pub(crate) transport: usize,
    pub(crate) len: usize,
    pub(crate) fragment: bool,
}

/// Parses an IP packet, or returns `None` if it is malformed.
pub(crate) fn view(p: &[u8]) -> Option<View> {
    let word = |at: usize| Some(u16::from_be_bytes([*p.get(at)?, *p.get(at + 1)?]));
    if *p.first()? >> 4 == 4 {
        let (transport, len) = (usize::from(p[0] & 15) * 4, usize::from(word(2)?));
        let fragment = word(6)? & 0x3fff != 0;
        return (transport >= 20 && len >= transport && len <= p.len() && p.len() >= 20).then_some(View {
            v6: false,
            protocol: p[9],
            transport,
            len,
            fragment,
        });
    }
    let len = 40 + usize::from(word(4)?);
    if *p.first()? >> 4 != 6 || p.len() < 40 || len > p.len() {
        return None;
    }
    let (mut protocol, mut at, mut fragment) = (p[6], 40, false);
    for headers in 0.. {
        match protocol {
            0 | 43 | 60 | 44 if headers == 8 || (protocol == 44 && fragment) || at + 8 > len => return None,
            44 => {
                fragment = true;
                let offset = word(at + 2)? >> 3;
                (protocol, at) = (p[at], at + 8);
                if offset != 0 {
                    break;
                }
            }
            0 | 43 | 60 => {
                (protocol, at) = (p[at], at + 8 + usize::from(p[at + 1]) * 8);
                if at > len {
                    return None;
                }
            }
            _ => break,
        }
    }
    Some(View { v6: true, protocol, transport: at, len, fragment })
}

/// Returns the offset of the transport checksum.
pub(crate) fn checksum_at(v: &View) -> Option<usize> {
    let (header, field) = match v.protocol {
        TCP => (20, 16),
        UDP => (8, 6),
        _ => return None,
    };
    (!v.fragment && v.transport + header <= v.len).then_some(v.transport + field)
}

pub(crate) fn ip_checksum_valid(p: &[u8]) -> bool {
    p[0] >> 4 == 6 || fold(0, &p[..usize::from(p[0] & 15) * 4]) == 0xffff
}

pub(crate) fn transport_checksum_valid(p: &[u8]) -> bool {
    let Some(v) = view(p) else { return false };
    let Some(at) = checksum_at(&v) else { return true };
    let zero = v.protocol == UDP && p[at] == 0 && p[at + 1] == 0;
    !zero && fold(pseudo(p, v.protocol, v.len - v.transport).into(), &p[v.transport..v.len]) == 0xffff
}

/// Writes valid checksums into a packet.
pub(crate) fn finish(p: &mut [u8]) {
    let Some(v) = view(p) else { return };
    if !v.v6 {
        p[10..12].fill(0);
        let check = complement(fold(0, &p[..v.transport]));
        p[10..12].copy_from_slice(&check.to_be_bytes());
    }
    if let Some(at) = checksum_at(&v) {
        p[at..at + 2].fill(0);
        let sum = fold(pseudo(p, v.protocol, v.len - v.transport).into(), &p[v.transport..v.len]);
        let check = if complement(sum) == 0 && v.protocol == UDP { 0xffff } else { complement(sum) };
        p[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }
}

/// Returns the length of the headers of a TCP or UDP packet.
pub(crate) fn header_len(p: &[u8], v: &View) -> usize {
    v.transport + if v.protocol == TCP { usize::from(p[v.transport + 12] >> 4) * 4 } else { 8 }
}

/// Cuts a TCP or UDP packet as the kernel does (`tcp_gso_segment`, `__udp_gso_segment`), with valid
/// checksums.
pub(crate) fn cut(p: &[u8], size: usize) -> Vec<Vec<u8>> {
    let v = view(p).expect("a whole packet");
    let (headers, payload) = p[..v.len].split_at(header_len(p, &v));
    let pieces: Vec<_> = payload.chunks(size).collect();
    let mut out = vec![];
    for (i, piece) in pieces.iter().enumerate() {
        let mut packet = [headers, piece].concat();
        let len = packet.len();
        if v.v6 {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let id = u16::from_be_bytes([p[4], p[5]]).wrapping_add(i as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
        }
        let t = v.transport;
        if v.protocol == TCP {
            let seq =
                u32::from_be_bytes([p[t + 4], p[t + 5], p[t + 6], p[t + 7]]).wrapping_add((i * size) as u32);
            packet[t + 4..t + 8].copy_from_slice(&seq.to_be_bytes());
            if i + 1 != pieces.len() {
                packet[t + 13] &= !(FIN | PSH);
            }
            if i != 0 {
                packet[t + 13] &= !CWR;
            }
        } else {
            packet[t + 4..t + 6].copy_from_slice(&((len - t) as u16).to_be_bytes());
        }
        finish(&mut packet);
        out.push(packet);
    }
    out
}

/// Returns the packets that one write to a TUN with offloads stands for, with complete checksums. Checks the
/// virtio header as strictly as `virtio_net_hdr_to_skb` (include/linux/virtio_net.h) and the kernel's GSO
/// code.
pub(crate) fn as_kernel(write: &[u8]) -> Vec<Vec<u8>> {
    let (h, packet) = write.split_at(10);
    let half = |at: usize| usize::from(u16::from_ne_bytes([h[at], h[at + 1]]));
    let v = view(packet).expect("a packet written to the overlay is whole");
    assert_eq!(v.len, packet.len(), "no bytes after the packet");
    assert!(ip_checksum_valid(packet), "IP header checksum of {packet:02x?}");
    if h[0] & 1 != 0 {
        let field = checksum_at(&v).expect("an open checksum has a field");
        assert_eq!((half(6), half(6) + half(8)), (v.transport, field), "csum_start, csum_offset");
        let partial = pseudo(packet, v.protocol, v.len - v.transport);
        assert_eq!(packet[field..field + 2], partial.to_be_bytes(), "the field holds the pseudo-header sum");
    } else {
        assert_eq!(h[6..10], [0; 4]);
    }
    if h[1] == 0 {
        assert_eq!((half(2), half(4)), (0, 0));
        let mut packet = packet.to_vec();
        if h[0] & 1 != 0 {
            finish(&mut packet);
        }
        return vec![packet];
    }
    let expected = match (v.protocol, v.v6) {
        (TCP, false) => 1,
        (TCP, true) => 4,
        (UDP, _) => 5,
        other => panic!("no offload for {other:?}"),
    };
    // Only the first segment keeps CWR, and the kernel must be told (VIRTIO_NET_HDR_GSO_ECN).
    let ecn = u8::from(v.protocol == TCP && packet[v.transport + 13] & CWR != 0) << 7;
    assert_eq!(h[1], expected | ecn, "gso type");
    assert_eq!(h[0] & 1, 1, "the checksum of a super-packet is open");
    assert_eq!(half(2), header_len(packet, &v), "hdr_len");
    if v.protocol == UDP {
        let stated = u16::from_be_bytes([packet[v.transport + 4], packet[v.transport + 5]]);
        assert_eq!(usize::from(stated), v.len - v.transport, "UDP length of a super-packet");
    }
    assert!(half(4) > 0 && v.len - half(2) > half(4), "gso size");
    cut(packet, half(4))
}

/// Sorts packets by flow and keeps the order within each flow. Fragments, whose ports are not visible, form a
/// separate flow.
pub(crate) fn flows(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut sorted = packets.to_vec();
    sorted.sort_by_key(|p| {
        let Some(v) = view(p) else { return (vec![], 0, None) };
        let addresses = if v.v6 { p[8..40].to_vec() } else { p[12..20].to_vec() };
        let has_ports = !v.fragment && matches!(v.protocol, TCP | UDP);
        (addresses, v.protocol, has_ports.then(|| p[v.transport..v.transport + 4].to_vec()))
    });
    sorted
}
