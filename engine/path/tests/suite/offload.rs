//! Cutting and joining: each is the inverse of the other, and cutting gives the same segments as the kernel.

use path::offload::coalesce::Joins;
use proptest::prelude::*;

use crate::support::node::{BOTH, Egress, Node, Sent, in_vxlan, joined, single, vxlan, with_virtio};
use crate::support::packet::{CWR, Checksum, ECE, FIN, PSH, Packet, TCP, URG, supers};
use crate::support::reference::{
    as_kernel, complement, cut, fold, ip_checksum_valid, pseudo, transport_checksum_valid,
};

/// Large enough for every generated segment.
const MTU: u16 = 9000;

fn gso(packet: &Packet) -> u8 {
    match (packet.protocol, packet.v6) {
        (TCP, false) => 1,
        (TCP, true) => 4,
        _ => 5,
    }
}

/// Builds a super-packet as a TUN delivers it.
fn read(packet: &Packet, size: u16) -> Vec<u8> {
    let field = if packet.protocol == TCP { 16 } else { 6 };
    let bytes = Packet { checksum: Checksum::Open, ..packet.clone() }.bytes();
    with_virtio(1, gso(packet), size, (packet.ip_len() as u16, field), &bytes)
}

fn sent(packet: &Packet, size: u16) -> Egress {
    let mut node = Node::new(0, vxlan(0), MTU, BOTH);
    let out = node.egress(&[read(packet, size)]);
    assert_eq!(
        node.counters.egress.summed_bytes,
        packet.payload.len() as u64,
        "each payload byte is summed once"
    );
    assert_eq!(node.counters.egress.segments, out.sent.len() as u64);
    out
}

fn stripped(sent: &[Sent]) -> Vec<Vec<u8>> {
    sent.iter().map(|s| s.bytes[22..].to_vec()).collect()
}

/// The kernel joins the segments of a forwarded flow however short they are, and so does this node.
#[test]
fn tcp_segments_may_be_shorter_than_those_of_a_socket() {
    for (v6, size) in [(false, 1), (true, 2), (false, 7)] {
        let packet = Packet::tcp(v6, 1000, 15);
        let out = sent(&packet, size);
        assert_eq!(stripped(&out.sent), cut(&packet.bytes(), size.into()), "{size}");
        assert_eq!(out.sent.len(), 15_usize.div_ceil(size.into()));
    }
}

proptest! {
    #[test]
    fn segments_equal_those_of_the_kernel((packet, size) in supers()) {
        let out = sent(&packet, size);
        let whole = packet.bytes();
        prop_assert_eq!(stripped(&out.sent), cut(&whole, size.into()));
        let mut bytes: Vec<u8> = vec![];
        for (i, segment) in stripped(&out.sent).iter().enumerate() {
            prop_assert!(ip_checksum_valid(segment) && transport_checksum_valid(segment));
            if !packet.v6 {
                let id = u16::from_be_bytes([segment[4], segment[5]]);
                prop_assert_eq!(id, packet.id.wrapping_add(i as u16));
            }
            bytes.extend(&segment[packet.header_len()..]);
        }
        prop_assert_eq!(bytes, packet.payload);
    }

    #[test]
    fn segments_have_the_flags_that_the_kernel_sets((packet, size) in supers()) {
        prop_assume!(packet.protocol == TCP && packet.payload.len() > usize::from(size));
        let segments = stripped(&sent(&packet, size).sent);
        let at = packet.ip_len() + 13;
        for (i, segment) in segments.iter().enumerate() {
            let mut expected = packet.flags & (0x10 | URG | ECE);
            if i == 0 {
                expected |= packet.flags & CWR;
            }
            if i + 1 == segments.len() {
                expected |= packet.flags & (FIN | PSH);
            }
            prop_assert_eq!(segment[at], expected);
        }
    }

    /// A super-packet that one node cuts and the other joins is unchanged where joining is allowed, and
    /// arrives as the same segments elsewhere.
    #[test]
    fn cut_then_joined_is_the_identity((packet, size) in supers()) {
        let out = sent(&packet, size);
        let mut b = Node::new(1, vxlan(1), MTU, BOTH);
        let writes = b.ingress(&joined(&out.sent));
        let packets: Vec<_> = writes.iter().flat_map(|w| as_kernel(w)).collect();
        prop_assert_eq!(&packets, &stripped(&out.sent));
        prop_assert!(b.counters.ingress.summed_bytes <= packets.iter().map(|p| p.len() as u64).sum());
        let plain = packet.flags & (URG | CWR) == 0 || packet.protocol != TCP;
        if plain && packet.ip_options.is_empty() {
            // A run holds 64 segments and one packet of 65,535 bytes.
            let per_run = 64.min((65_535 - packet.header_len()) / usize::from(size));
            prop_assert_eq!(writes.len(), out.sent.len().div_ceil(per_run));
            if writes.len() == 1 && out.sent.len() > 1 {
                let whole = Packet { checksum: Checksum::Open, ..packet.clone() }.bytes();
                prop_assert_eq!(&writes[0][10..], &whole);
            }
        }
    }

    /// Packets that are joined and cut again are unchanged.
    #[test]
    fn joined_then_cut_is_the_identity(
        v6: bool,
        is_tcp: bool,
        len in 1usize..1400,
        count in 1usize..100,
        last in 0usize..1400,
        id: u16,
        seq: u32,
        flags in prop::sample::select(vec![0u8, ECE, PSH, FIN | PSH]),
    ) {
        let full = len;
        let packets: Vec<_> = (0..count).map(|i| {
            let len = if i + 1 == count { last.min(len) } else { len };
            let seq = seq.wrapping_add((i * full) as u32);
            let packet = if is_tcp { Packet::tcp(v6, seq, len) } else { Packet::udp(v6, 0, len) };
            let flags = if i + 1 == count { flags } else { flags & ECE };
            Packet { id: id.wrapping_add(i as u16), flags: packet.flags | flags, ..packet }.bytes()
        }).collect();
        let arrivals: Vec<_> = packets.iter().map(|p| single(in_vxlan(0, p))).collect();
        let writes = Node::new(1, vxlan(1), 1450, BOTH).ingress(&arrivals);
        let again: Vec<_> = writes.iter().flat_map(|w| as_kernel(w)).collect();
        prop_assert_eq!(again, packets);
    }

    /// An overlay without offloads receives the same data as segments with complete checksums.
    #[test]
    fn split_runs_equal_the_segments_of_the_kernel((packet, size) in supers()) {
        let segments = stripped(&sent(&packet, size).sent);
        let (whole, pieces) = split_by_hand(&segments, BOTH);
        prop_assert_eq!(&whole, &segments);
        prop_assert_eq!(&pieces, &segments);
    }
}

/// Coalesces packets. Returns the packets that the writes stand for, and those that `Coalescer::split`
/// writes.
fn split_by_hand(segments: &[Vec<u8>], joins: Joins) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    use path::inner::Inner;
    use path::offload::checksum::State;
    use path::offload::coalesce::Coalescer;
    let mut arena = vec![0xa5; 1 << 18];
    let mut at = arena.len();
    let mut coalescer = Coalescer::new(0..at as u32, joins);
    for segment in segments {
        arena.extend(segment);
        let inner = Inner::parse(segment).unwrap();
        coalescer.push(&arena, at as u32, inner, State::Valid, None);
        at = arena.len();
    }
    coalescer.seal(&mut arena);
    let (mut whole, mut pieces) = (vec![], vec![]);
    for i in 0..coalescer.runs().len() {
        let gather = |arena: &[u8], spans: &[std::ops::Range<u32>]| -> Vec<u8> {
            spans.iter().flat_map(|s| arena[s.start as usize..s.end as usize].to_vec()).collect()
        };
        let write = gather(&arena, coalescer.runs()[i].spans());
        whole.extend(as_kernel(&write));
        let mut cut = vec![];
        let summed = coalescer.split(i, &mut arena, |arena, spans| cut.push(gather(arena, spans)));
        if summed.is_none() {
            pieces.push(write[10..].to_vec());
        }
        for piece in cut {
            assert_eq!(piece[..10], [0; 10]);
            pieces.push(piece[10..].to_vec());
        }
    }
    (whole, pieces)
}

#[test]
fn an_open_checksum_from_a_pod_is_completed_once() {
    for v6 in [false, true] {
        for (packet, field) in [(Packet::tcp(v6, 5, 333), 16), (Packet::udp(v6, 5, 333), 6)] {
            let open = Packet { checksum: Checksum::Open, ..packet.clone() };
            let mut node = Node::new(0, vxlan(0), 1450, BOTH);
            let csum = (packet.ip_len() as u16, field);
            let out = node.egress(&[with_virtio(1, 0, 0, csum, &open.bytes())]);
            assert_eq!(stripped(&out.sent), [packet.bytes()]);
            assert_eq!(node.counters.egress.summed_bytes, (packet.bytes().len() - packet.ip_len()) as u64);
        }
    }
}

/// RFC 768: a UDP checksum computed as zero is sent as all ones, whether the packet is cut or its checksum
/// completed.
#[test]
fn a_computed_udp_checksum_of_zero_is_never_sent() {
    let zero = |payload: usize| {
        let mut packet = Packet::udp(false, 0, payload);
        packet.payload[..2].fill(0);
        let bytes = Packet { checksum: Checksum::Zero, ..packet.clone() }.bytes();
        let sum = fold(pseudo(&bytes, 17, bytes.len() - 20).into(), &bytes[20..]);
        packet.payload[..2].copy_from_slice(&complement(sum).to_be_bytes());
        packet
    };
    let packet = zero(100);
    let open = Packet { checksum: Checksum::Open, ..packet.clone() };
    let out = Node::new(0, vxlan(0), 1450, BOTH).egress(&[with_virtio(1, 0, 0, (20, 6), &open.bytes())]);
    assert_eq!(out.sent[0].bytes[22 + 26..22 + 28], [0xff, 0xff]);
    // When a super-packet is cut, the first segment is the same packet.
    let mut whole = packet.clone();
    whole.payload.extend([7; 50]);
    let out = sent(&whole, 100);
    assert_eq!(out.sent[0].bytes[22..], packet.bytes());
    assert_eq!(out.sent[0].bytes[22 + 26..22 + 28], [0xff, 0xff]);
}

#[test]
fn small_udp_segments_are_cut_like_others() {
    for size in 1..8 {
        let packet = Packet::udp(false, 65_535, 41);
        assert_eq!(stripped(&sent(&packet, size).sent), cut(&packet.bytes(), size.into()), "{size}");
    }
}

#[test]
fn equal_segments_leave_in_one_send() {
    let out = sent(&Packet { checksum: Checksum::Open, ..Packet::tcp(false, 1, 43 * 1410 + 5) }, 1410);
    assert_eq!(out.sends, [(1472, 44)]);
    let out = sent(&Packet::udp(true, 1, 120 * 100), 100);
    assert_eq!(out.sends, [(170, 64), (170, 56)]);
}

/// The pseudo-header of a packet on a source route has the route's end, which is not in the IP header.
#[test]
fn segments_on_a_source_route_keep_the_checksum_of_its_end() {
    let far = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99];
    for (is_tcp, field) in [(true, 16), (false, 6)] {
        let packet = if is_tcp { Packet::tcp(true, 7, 3000) } else { Packet::udp(true, 7, 3000) };
        let routing = [&[packet.protocol, 2, 4, 1, 0, 0, 0, 0][..], &far].concat();
        let packet = Packet { extension: 43, ip_options: routing, ..packet };
        let size = 1000;
        let to = |bytes: &mut Vec<u8>, end: &[u8]| bytes[24..40].copy_from_slice(end);
        let mut bytes = packet.bytes();
        let next = bytes[24..40].to_vec();
        // As its sender sums it: with the end of the route as the destination.
        to(&mut bytes, &far);
        let mut right = cut(&bytes, size);
        let at = packet.ip_len() + field;
        let open = pseudo(&bytes, packet.protocol, bytes.len() - packet.ip_len());
        bytes[at..at + 2].copy_from_slice(&open.to_be_bytes());
        to(&mut bytes, &next);
        right.iter_mut().for_each(|segment| to(segment, &next));
        let read = with_virtio(1, gso(&packet), size as u16, (packet.ip_len() as u16, field as u16), &bytes);
        let out = Node::new(0, vxlan(0), MTU, BOTH).egress(&[read]);
        assert_eq!(stripped(&out.sent), right);
    }
}
