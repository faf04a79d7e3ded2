//! The segment size of TCP super-packets that arrive uncut: never more than the connection has negotiated.

use path::DropReason;
use proptest::prelude::*;

use crate::support::node::{Arrival, BOTH, MTU, Node, in_vxlan, plain, single, vxlan};
use crate::support::packet::{Checksum, FIN, PSH, Packet, SYN, TCP};
use crate::support::reference::{as_kernel, cut};

const ACK: u8 = 0x10;

fn node() -> Node {
    Node::new(1, vxlan(1), MTU, BOTH)
}

/// Headers that an MSS leaves room for.
fn headers(v6: bool) -> usize {
    if v6 { 60 } else { 40 }
}

/// Turns a packet to the pod into one from it: swapping the ends changes no checksum.
fn from_pod(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let (addresses, half) = if packet.v6 { (8, 16) } else { (12, 4) };
    let (ports, width) = (packet.ip_len(), if packet.protocol == TCP { 2 } else { 0 });
    for (at, len) in [(addresses, half), (ports, width)] {
        let (first, second) = bytes[at..at + 2 * len].split_at_mut(len);
        first.swap_with_slice(second);
    }
    bytes
}

/// A SYN, with an MSS option among others unless `mss` is `None`.
fn syn(like: &Packet, mss: Option<u16>, flags: u8) -> Packet {
    let tcp_options = match mss {
        Some(mss) => [&[1, 1, 2, 4][..], &mss.to_be_bytes(), &[4, 2]].concat(),
        None => vec![1, 3, 3, 7],
    };
    Packet {
        flags: SYN | flags,
        tcp_options,
        payload: vec![],
        checksum: Checksum::Valid,
        seq: like.seq.wrapping_sub(1),
        ..like.clone()
    }
}

fn super_packet(v6: bool, payload: usize) -> Packet {
    let tcp_options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2].to_vec();
    Packet { checksum: Checksum::Open, flags: ACK | PSH | FIN, tcp_options, ..Packet::tcp(v6, 9, payload) }
}

/// A peer's connection to a pod: what each side announces.
fn connect(node: &mut Node, like: &Packet, by_peer: Option<u16>, by_pod: Option<u16>) {
    assert_eq!(arrive(node, &syn(like, by_peer, 0)).len(), 1);
    send(node, &syn(like, by_pod, ACK));
}

fn send(node: &mut Node, packet: &Packet) {
    assert_eq!(node.egress(&[plain(&from_pod(packet))]).sent.len(), 1);
}

fn arrive(node: &mut Node, packet: &Packet) -> Vec<Vec<u8>> {
    let writes = node.ingress(&[single(in_vxlan(0, &packet.bytes()))]);
    writes.iter().flat_map(|w| as_kernel(w)).collect()
}

/// Sends a super-packet to the pod in one write, checks its segments, and returns the first one's payload.
fn segment(node: &mut Node, packet: &Packet) -> usize {
    let writes = node.ingress(&[single(in_vxlan(0, &packet.bytes()))]);
    assert_eq!(writes.len(), 1);
    let size = match u16::from_ne_bytes([writes[0][4], writes[0][5]]) {
        0 => packet.payload.len(),
        size => size.into(),
    };
    assert_eq!(as_kernel(&writes[0]), cut(&packet.bytes(), size));
    size
}

/// "ICMP fragmentation needed" or "packet too big" from a router on the pod's side, about `offender`.
fn too_big(offender: &Packet, mtu: u32) -> Packet {
    let v6 = offender.v6;
    let mut packet = Packet::icmp(v6, 0);
    let mtu = mtu.to_be_bytes();
    packet.payload = if v6 { vec![2, 0, 0, 0] } else { vec![3, 4, 0, 0] };
    packet.payload.extend(mtu);
    packet.payload.extend(&offender.bytes()[..offender.ip_len() + 8]);
    packet
}

#[test]
fn segments_have_the_size_that_was_negotiated() {
    for v6 in [false, true] {
        let packet = super_packet(v6, 20_000);
        let unstated = if v6 { 1220 } else { 536 };
        for (by_peer, by_pod, mss) in [
            (Some(1410), Some(1260), 1260),
            (Some(1260), Some(1410), 1260),
            (Some(1300), Some(1300), 1300),
            (None, Some(1410), unstated),
            (Some(1410), None, unstated),
            (Some(200), Some(1410), 200),
            // Nothing fits that is larger than the overlay.
            (Some(9000), Some(65_535), MTU - headers(v6) as u16),
            // As in the kernel: 0 says nothing, and there is a least.
            (Some(1410), Some(0), unstated),
            (Some(1410), Some(1), 48),
        ] {
            let mut node = node();
            connect(&mut node, &packet, by_peer, by_pod);
            assert_eq!(segment(&mut node, &packet), usize::from(mss) - 12, "{by_peer:?} {by_pod:?}");
        }
    }
}

#[test]
fn a_connection_from_the_pod_counts_as_well() {
    for v6 in [false, true] {
        let packet = super_packet(v6, 20_000);
        let mut node = node();
        send(&mut node, &syn(&packet, Some(1260), 0));
        assert_eq!(segment(&mut node, &packet), 1260 - 12, "before the answer");
        arrive(&mut node, &syn(&packet, Some(1000), ACK));
        assert_eq!(segment(&mut node, &packet), 1000 - 12);
        // The next connection with these ports.
        connect(&mut node, &packet, Some(1400), Some(1350));
        assert_eq!(segment(&mut node, &packet), 1350 - 12);
    }
}

/// The smallest that a Linux host announces on its own; over IPv6 what every path carries.
#[test]
fn without_a_syn_segments_have_the_size_that_every_host_accepts() {
    for (v6, mss) in [(false, 256), (true, 1220)] {
        let packet = super_packet(v6, 65_535 - 52 - 42);
        assert_eq!(segment(&mut node(), &packet), mss - 12);
        let bare = Packet { tcp_options: vec![], ..super_packet(v6, 20_000) };
        assert_eq!(segment(&mut node(), &bare), mss);
        // The peer alone does not bind itself.
        let mut node = node();
        arrive(&mut node, &syn(&packet, Some(1400), 0));
        assert_eq!(segment(&mut node, &packet), mss - 12);
    }
}

/// A super-packet of two short segments is not longer than one packet of the overlay.
#[test]
fn a_super_packet_may_be_shorter_than_the_overlays_mtu() {
    for v6 in [false, true] {
        let mut node = node();
        let packet = super_packet(v6, 1000);
        connect(&mut node, &packet, Some(1400), Some(512));
        assert_eq!(segment(&mut node, &packet), 500);
        let single = super_packet(v6, 500);
        assert_eq!(segment(&mut node, &single), 500);
    }
}

/// Datagrams of a train are single packets: the kernel joins no super-packets.
#[test]
fn datagrams_of_a_train_are_joined_as_before() {
    let packet =
        |i: u16| Packet { id: i, checksum: Checksum::Open, ..Packet::tcp(false, u32::from(i) * 1000, 1000) };
    let packets: Vec<_> = (0..10).map(packet).collect();
    let bytes: Vec<u8> = packets.iter().flat_map(|p| in_vxlan(0, &p.bytes())).collect();
    let writes = node().ingress(&[Arrival { bytes, segment_size: 1062, ecn: 0 }]);
    assert_eq!(writes.len(), 1);
    assert_eq!(u16::from_ne_bytes([writes[0][4], writes[0][5]]), 1000);
}

/// Only a super-packet has an open checksum here.
#[test]
fn packets_with_complete_checksums_are_not_cut() {
    let packet = Packet { checksum: Checksum::Valid, ..super_packet(false, 1300) };
    let mut node = node();
    connect(&mut node, &packet, Some(1400), Some(512));
    assert_eq!(arrive(&mut node, &packet), [packet.bytes()]);
}

#[test]
fn connections_to_one_pod_keep_their_own_sizes() {
    let mut node = node();
    let packets: Vec<_> =
        (0..40).map(|i| Packet { ports: (40_000 + i, 5201), ..super_packet(i % 2 == 1, 20_000) }).collect();
    for (i, packet) in packets.iter().enumerate() {
        connect(&mut node, packet, Some(1410), Some(600 + i as u16 * 10));
    }
    let sizes: Vec<_> = packets.iter().map(|packet| segment(&mut node, packet)).collect();
    assert_eq!(sizes, (0..40).map(|i| 600 + i * 10 - 12).collect::<Vec<_>>());
}

/// The pod's link, or one behind it, has got a smaller MTU while the connection lives.
#[test]
fn a_router_on_the_pods_side_lowers_the_size() {
    for (v6, least) in [(false, 552), (true, 1280)] {
        let packet = super_packet(v6, 20_000);
        let mut node = node();
        connect(&mut node, &packet, Some(1410), Some(1390));
        send(&mut node, &too_big(&packet, 1400));
        let other = Packet { ports: (1, 2), ..packet.clone() };
        connect(&mut node, &other, Some(1410), Some(1390));
        let now = 1390.min(1400 - headers(v6)) - 12;
        assert_eq!(segment(&mut node, &packet), now);
        send(&mut node, &too_big(&packet, 1300));
        assert_eq!(segment(&mut node, &packet), 1300 - headers(v6) - 12);
        // It is never raised, and never lower than a kernel would go.
        send(&mut node, &too_big(&packet, 1350));
        assert_eq!(segment(&mut node, &packet), 1300 - headers(v6) - 12);
        send(&mut node, &too_big(&packet, 100));
        assert_eq!(segment(&mut node, &packet), least - headers(v6) - 12);
        assert_eq!(segment(&mut node, &other), 1390 - 12, "another connection");
        // An unknown connection has no more than before.
        let old = Packet { ports: (3, 4), ..packet };
        let before = segment(&mut node, &old);
        send(&mut node, &too_big(&old, 1400));
        assert_eq!(segment(&mut node, &old), before);
    }
}

#[test]
fn other_messages_and_later_fragments_lower_nothing() {
    let packet = super_packet(false, 20_000);
    let mut node = node();
    connect(&mut node, &packet, Some(1410), Some(1390));
    let message = too_big(&packet, 600);
    let udp = too_big(&Packet { payload: vec![0; 40], ..Packet::udp(false, 1, 0) }, 600);
    let mut others = vec![udp, Packet { fragment: 0x2000, ..message.clone() }];
    for (at, value) in [(0, 11), (1, 1), (7, 0), (6, 0), (8, 0x65), (8 + 6, 1), (8 + 9, 17)] {
        let mut other = message.clone();
        other.payload[at] = value;
        if at == 6 {
            other.payload[7] = 0;
        }
        if at != 7 {
            others.push(other);
        }
    }
    for other in others {
        send(&mut node, &other);
        assert_eq!(segment(&mut node, &packet), 1390 - 12, "{other:?}");
    }
    send(&mut node, &message);
    assert_eq!(segment(&mut node, &packet), 600 - 40 - 12);
}

/// More connections than are remembered: the forgotten ones are safe, and no one gets another's size.
#[test]
fn a_forgotten_connection_gets_no_more_than_it_negotiated() {
    let mut node = node();
    let packet = |i: u16| Packet { ports: (10_000 + i, 80), ..super_packet(false, 5000) };
    for i in 0..6000 {
        send(&mut node, &syn(&packet(i), Some(if i % 2 == 0 { 500 } else { 1400 }), 0));
    }
    let (mut kept, mut forgotten) = (0, 0);
    for i in 0..6000 {
        match (segment(&mut node, &packet(i)), i % 2) {
            (244, _) => forgotten += 1,
            (488, 0) | (1388, 1) => kept += 1,
            (other, _) => panic!("connection {i} has {other}"),
        }
    }
    assert!(kept > 2000 && forgotten > 1000, "{kept} {forgotten}");
}

#[test]
fn no_option_is_trusted() {
    let packet = super_packet(false, 20_000);
    for options in
        [vec![2, 4, 0, 0], vec![2, 3, 5, 1], vec![2, 0, 1, 1], vec![3, 1, 2, 4], vec![0, 2, 4, 9], vec![]]
    {
        let mut options = options;
        options.resize(options.len().next_multiple_of(4), 0);
        let mut node = node();
        send(&mut node, &Packet { tcp_options: options, ..syn(&packet, None, 0) });
        assert_eq!(segment(&mut node, &packet), 536 - 12);
    }
    // A header that is cut off in the middle.
    let mut cut_off = syn(&packet, Some(1400), 0);
    cut_off.tcp_options.truncate(4);
    let mut bytes = from_pod(&cut_off);
    bytes[32] = 0xf0;
    let mut node = node();
    let out = node.egress(&[plain(&bytes)]);
    assert!(matches!(out.verdicts[0], path::Verdict::Drop(DropReason::BadTransportChecksum)));
    assert_eq!(segment(&mut node, &packet), 48 - 12);
}

proptest! {
    #[test]
    fn no_segment_exceeds_what_was_announced(
        v6: bool,
        by_peer in prop::option::of(any::<u16>()),
        by_pod in prop::option::of(any::<u16>()),
        mtu in prop::option::of(any::<u16>()),
        payload in 1usize..30_000,
        options in 0usize..=10,
    ) {
        let packet = Packet { tcp_options: vec![1; options * 4], ..super_packet(v6, payload) };
        let mut node = node();
        connect(&mut node, &packet, by_peer, by_pod);
        let unstated = if v6 { 1220 } else { 536 };
        let announced = |mss: Option<u16>| match mss {
            None | Some(0) => unstated,
            Some(mss) => mss.max(48),
        };
        let mut most = announced(by_peer).min(announced(by_pod)).min(MTU - headers(v6) as u16);
        if let Some(mtu) = mtu {
            send(&mut node, &too_big(&packet, mtu.into()));
            if mtu > 0 || v6 {
                most = most.min(mtu.max(if v6 { 1280 } else { 552 }) - headers(v6) as u16);
            }
        }
        let most = usize::from(most).saturating_sub(options * 4).max(8);
        prop_assert_eq!(segment(&mut node, &packet), most.min(payload));
    }
}
