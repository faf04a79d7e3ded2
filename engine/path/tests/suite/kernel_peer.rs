//! Packets of a kernel vxlan peer on a veth: uncut super-packets in one datagram, with open checksums.
//!
//! The veth claims to segment and to compute checksums, so the kernel does neither (net/ipv4/udp_offload.c
//! `skb_udp_tunnel_segment` never runs). A TCP super-packet comes without a segment size; for UDP the kernel
//! reports the size of the inner segments (`udp_cmsg_recv`, include/linux/udp.h).

use path::DropReason;
use path::offload::coalesce::Joins;

use crate::support::node::{Arrival, BOTH, MTU, Node, in_vxlan, single, vxlan};
use crate::support::packet::{CWR, Checksum, FIN, PSH, Packet, pattern};
use crate::support::reference::{as_kernel, cut, finish};

fn node() -> Node {
    Node::new(1, vxlan(1), MTU, BOTH)
}

fn tcp_super(v6: bool, payload: usize) -> Packet {
    let tcp_options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2].to_vec();
    Packet { checksum: Checksum::Open, flags: 0x10 | PSH | FIN, tcp_options, ..Packet::tcp(v6, 9, payload) }
}

fn udp_super(v6: bool, payload: usize) -> Packet {
    Packet { checksum: Checksum::Open, ..Packet::udp(v6, 40, payload) }
}

fn uncut(packet: &Packet, segment_size: u16) -> Arrival {
    Arrival { segment_size, ..single(in_vxlan(0, &packet.bytes())) }
}

#[test]
fn an_uncut_tcp_super_packet_is_one_write() {
    for (v6, size) in [(false, 256 - 12), (true, 1220 - 12)] {
        let packet = tcp_super(v6, 20_000);
        let mut node = node();
        let writes = node.ingress(&[uncut(&packet, 0)]);
        assert_eq!(writes.len(), 1);
        assert_eq!(as_kernel(&writes[0]), cut(&packet.bytes(), size));
        assert_eq!(writes[0][0] & 1, 1, "checksum still open");
        assert_eq!(u16::from_ne_bytes([writes[0][4], writes[0][5]]), size as u16);
        assert_eq!(node.counters.ingress.summed_bytes, 0);
        assert_eq!((node.counters.ingress.packets, node.counters.ingress.segments), (1, 1));
    }
}

#[test]
fn an_uncut_tcp_super_packet_can_have_the_maximum_size() {
    let packet = tcp_super(false, 65_535 - 52 - 22);
    let writes = node().ingress(&[uncut(&packet, 0)]);
    assert_eq!(as_kernel(&writes[0]), cut(&packet.bytes(), 244));
}

#[test]
fn an_uncut_udp_super_packet_has_the_segment_size_that_the_kernel_reports() {
    for v6 in [false, true] {
        // From large segments down to segments shorter than their headers.
        for size in [1400, 1200, 500, 64, 20, 7, 1] {
            let packet = udp_super(v6, usize::from(size) * 40 + usize::from(size) / 2);
            let mut node = node();
            let writes = node.ingress(&[uncut(&packet, size)]);
            assert_eq!(node.dropped(), [], "{size}");
            assert_eq!(writes.len(), 1, "{size}");
            assert_eq!(as_kernel(&writes[0]), cut(&packet.bytes(), size.into()), "{size}");
            assert_eq!(node.counters.ingress.summed_bytes, 0);
        }
    }
}

#[test]
fn small_packets_with_an_open_checksum_keep_it_open() {
    for packet in [udp_super(false, 30), udp_super(true, 0), tcp_super(false, 0), tcp_super(true, 100)] {
        let mut node = node();
        let writes = node.ingress(&[uncut(&packet, 0)]);
        assert_eq!(node.counters.ingress.summed_bytes, 0);
        let mut finished = packet.bytes();
        finish(&mut finished);
        assert_eq!(writes[0][..2], [1, 0]);
        assert_eq!(writes.iter().flat_map(|w| as_kernel(w)).collect::<Vec<_>>(), [finished]);
    }
}

#[test]
fn packets_with_open_and_complete_checksums_are_joined() {
    let checksums = [Checksum::Open, Checksum::Valid, Checksum::Open];
    let packets: Vec<_> =
        (0..3).map(|i| Packet { checksum: checksums[i], ..Packet::udp(false, i as u16, 200) }).collect();
    let arrivals: Vec<_> = packets.iter().map(|p| uncut(p, 0)).collect();
    let writes = node().ingress(&arrivals);
    let right: Vec<_> =
        packets.iter().map(|p| Packet { checksum: Checksum::Valid, ..p.clone() }.bytes()).collect();
    assert_eq!(writes.iter().map(|w| as_kernel(w)).collect::<Vec<_>>(), [right]);
}

/// A super-packet of three 300-byte datagrams would fit a run with segments of 1000 bytes, but is not one
/// segment.
#[test]
fn an_uncut_super_packet_never_becomes_a_segment_of_a_run() {
    for v6 in [false, true] {
        let first = Packet::udp(v6, 39, 1000);
        let packet = udp_super(v6, 900);
        let last = Packet::udp(v6, 43, 1000);
        let writes = node().ingress(&[uncut(&first, 0), uncut(&packet, 300), uncut(&last, 0)]);
        let got: Vec<_> = writes.iter().map(|w| as_kernel(w)).collect();
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3, 1]);
        assert_eq!(got, [vec![first.bytes()], cut(&packet.bytes(), 300), vec![last.bytes()]]);
    }
}

/// A pod's payload must never be parsed as underlay datagrams.
#[test]
fn a_super_packet_is_dropped_as_a_whole() {
    let smuggled = in_vxlan(0, &Packet::udp(false, 1, 40).bytes());
    let size = smuggled.len();
    let offset = 22 + 28;
    // The payload repeats a whole datagram wherever a piece would begin.
    let mut payload = vec![0; size * 4];
    for piece in 1..4 {
        let at = piece * size - offset;
        payload[at..at + size].copy_from_slice(&smuggled);
    }
    let packet = Packet { payload, ..udp_super(false, 0) };
    let mut congested = uncut(&packet, size as u16);
    congested.ecn = 3;
    let mut node = node();
    assert_eq!(node.ingress(&[congested]), Vec::<Vec<u8>>::new());
    assert_eq!(node.dropped(), [(DropReason::EcnUnheard, 1)]);

    let mut damaged = uncut(&packet, size as u16);
    damaged.bytes[22 + 8] ^= 1;
    let mut node = Node::new(1, vxlan(1), MTU, BOTH);
    assert_eq!(node.ingress(&[damaged]), Vec::<Vec<u8>>::new());
    assert_eq!(node.dropped(), [(DropReason::BadIpChecksum, 1)]);
}

/// Otherwise a sender could have the datagrams that the kernel joined to its own delivered to a port of its
/// choice.
#[test]
fn an_inner_length_must_not_cover_the_datagrams_that_follow() {
    let size = in_vxlan(0, &Packet::udp(false, 1, 40).bytes()).len();
    let oversized = Packet { payload: vec![0; size * 3 - 22 - 28], ..udp_super(false, 0) };
    let mut bytes = uncut(&oversized, 0).bytes;
    bytes.truncate(size);
    for number in 1..3 {
        bytes.extend(in_vxlan(0, &Packet::udp(false, number, 40).bytes()));
    }
    let mut node = node();
    let train = Arrival { bytes, segment_size: size as u16, ecn: 0 };
    assert_eq!(node.ingress(&[train]), Vec::<Vec<u8>>::new());
    assert_eq!(node.dropped(), [(DropReason::Truncated, 1)]);
}

#[test]
fn joined_datagrams_are_separated() {
    let packets: Vec<_> = (0..5).map(|i| Packet::udp(false, i, if i == 4 { 90 } else { 300 })).collect();
    let bytes = packets.iter().flat_map(|p| in_vxlan(0, &p.bytes())).collect();
    let mut node = node();
    let writes = node.ingress(&[Arrival { bytes, segment_size: 350, ecn: 0 }]);
    let right: Vec<_> = packets.iter().map(Packet::bytes).collect();
    assert_eq!(writes.iter().map(|w| as_kernel(w)).collect::<Vec<_>>(), [right]);
    assert_eq!(node.counters.ingress.summed_bytes, 4 * 308 + 98, "each inner checksum is verified once");
    assert_eq!(node.counters.ingress.packets, 5);
}

#[test]
fn super_packets_are_recognised_without_offloads_on_the_overlay() {
    let off = Joins { tcp: false, udp: false };
    let packet = Packet { payload: pattern(3, 5000), ..tcp_super(false, 0) };
    let writes = Node::new(1, vxlan(1), MTU, off).ingress(&[uncut(&packet, 0)]);
    assert_eq!(writes.iter().map(|w| as_kernel(w)).collect::<Vec<_>>(), [cut(&packet.bytes(), 244)]);
}

/// More segments than there is space for headers: each write is done with its headers when it returns.
#[test]
fn a_super_packet_of_many_segments_is_cut_to_the_end_without_offloads() {
    use path::inner::Inner;
    use path::offload::checksum::State;
    use path::offload::coalesce::Coalescer;
    let packet = udp_super(false, 60_000);
    let mut arena = vec![0; 4096];
    arena.extend(packet.bytes());
    let mut coalescer = Coalescer::new(0..4096, Joins { tcp: true, udp: true });
    let inner = Inner::parse(&packet.bytes()).unwrap();
    coalescer.push(&arena, 4096, inner, State::Open, Some(3));
    coalescer.seal(&mut arena);
    let mut cut_here = vec![];
    coalescer.split(0, &mut arena, |arena, spans| {
        cut_here.push(
            spans.iter().flat_map(|s| arena[s.start as usize..s.end as usize].to_vec()).collect::<Vec<u8>>(),
        );
    });
    let right: Vec<_> = cut(&packet.bytes(), 3).iter().map(|p| [&[0; 10][..], p].concat()).collect();
    assert_eq!(cut_here.len(), 20_000);
    assert!(cut_here == right);
}

/// Only the first segment has CWR, whoever cuts.
#[test]
fn the_kernel_is_told_of_a_congestion_window_that_was_reduced() {
    let mut packet = tcp_super(false, 20_000);
    packet.flags |= CWR;
    let writes = node().ingress(&[uncut(&packet, 0)]);
    assert_eq!(writes[0][1], 1 | 0x80);
    assert_eq!(as_kernel(&writes[0]), cut(&packet.bytes(), 244));
}
