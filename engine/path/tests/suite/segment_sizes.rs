//! The segment size of TCP super-packets that arrive uncut: never more than the connection has negotiated.

use path::DropReason;
use path::inner::Inner;
use proptest::prelude::*;

use crate::ipip::{from_kernel, ipip};
use crate::support::node::{Arrival, BOTH, MTU, Node, in_vxlan, plain, single, vxlan};
use crate::support::packet::{Checksum, FIN, PSH, Packet, RST, SYN, TCP};
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

/// A pod's last packet.
fn closing(like: &Packet, flags: u8) -> Packet {
    Packet { flags: ACK | flags, payload: vec![], checksum: Checksum::Valid, ..like.clone() }
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
        arrive(&mut node, &syn(&packet, Some(1000), ACK));
        assert_eq!(segment(&mut node, &packet), 1000 - 12);
        // The next connection with these ports.
        send(&mut node, &closing(&packet, FIN));
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

/// SYNs of connections from and to pods, none of them ever used, counted from `from` up.
fn flood(node: &mut Node, v6: bool, from: u32, count: u32) {
    let like = super_packet(v6, 1);
    let syns: Vec<_> = (from..from + count)
        .map(|i| Packet {
            ports: ((i & 0xffff) as u16, 10_000 + (i >> 16) as u16),
            ..syn(&like, Some(100 + i as u16 % 1300), 0)
        })
        .collect();
    send_all(node, &syns);
    let arrivals: Vec<_> = syns.iter().map(|syn| single(in_vxlan(0, &syn.bytes()))).collect();
    assert_eq!(node.ingress(&arrivals).len(), count as usize);
}

fn send_all(node: &mut Node, packets: &[Packet]) {
    let reads: Vec<_> = packets.iter().map(|packet| plain(&from_pod(packet))).collect();
    assert_eq!(node.egress(&reads).sent.len(), packets.len());
}

/// Sends super-packets of different connections to the pod, and returns the size of their segments.
fn segments(node: &mut Node, packets: &[Packet]) -> Vec<u16> {
    let arrivals: Vec<_> = packets.iter().map(|packet| single(in_vxlan(0, &packet.bytes()))).collect();
    let writes = node.ingress(&arrivals);
    assert_eq!(writes.len(), packets.len());
    writes.iter().map(|write| u16::from_ne_bytes([write[4], write[5]])).collect()
}

#[test]
fn new_connections_do_not_displace_one_that_carries_data() {
    for v6 in [false, true] {
        let mut node = node();
        let packets: Vec<_> =
            (0..50).map(|i| Packet { ports: (i, 5201), ..super_packet(v6, 20_000) }).collect();
        for packet in &packets {
            connect(&mut node, packet, Some(1410), Some(1290));
            assert_eq!(segment(&mut node, packet), 1290 - 12);
        }
        for round in 0..50 {
            flood(&mut node, v6, round * 2000, 2000);
            // The others rest meanwhile.
            assert_eq!(segment(&mut node, &packets[0]), 1290 - 12, "after {round} rounds");
        }
        for packet in &packets {
            assert_eq!(segment(&mut node, packet), 1290 - 12);
        }
    }
}

/// Workers share the table; none waits for another.
#[test]
fn workers_beside_each_other_keep_what_carries_data() {
    let node = node();
    let like = super_packet(false, 2000);
    let ports = |thread: u16, i: u16| Packet { ports: (i, thread), ..like.clone() };
    let egress = |packet: &Packet| {
        let bytes = from_pod(packet);
        node.sizes.observe_egress(&Inner::parse(&bytes).unwrap(), &bytes);
    };
    let size = |packet: &Packet| node.sizes.payload(&Inner::parse(&packet.bytes()).unwrap(), 52, false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let own = ports(thread, 1);
                egress(&syn(&own, Some(1000 + thread), ACK));
                let first = size(&own);
                // Another one's SYN may have been in between; the data that follows is protected.
                assert!([244, 988 + thread].contains(&first), "{first}");
                for i in 2..5000 {
                    egress(&syn(&ports(thread, i), Some(1400), 0));
                    assert_eq!(size(&own), first);
                }
            });
        }
    });
}

/// Connections that have ended without a word make room in the end; one that goes on stays.
#[test]
fn connections_that_carried_data_give_way_once_they_rest() {
    let mut node = node();
    let bulk = super_packet(false, 5000);
    connect(&mut node, &bulk, Some(1410), Some(1290));
    assert_eq!(segment(&mut node, &bulk), 1290 - 12);
    let like = super_packet(false, 1300);
    for closed in [false, true] {
        let mut late = 0;
        for round in 0..200 {
            let packets: Vec<_> =
                (0..200).map(|i| Packet { ports: (round * 200 + i, 80), ..like.clone() }).collect();
            send_all(&mut node, &packets.iter().map(|p| syn(p, Some(1200), 0)).collect::<Vec<_>>());
            let sizes = segments(&mut node, &packets);
            assert!(sizes.iter().all(|size| [1200 - 12, 256 - 12].contains(size)), "{sizes:?}");
            if round >= 150 {
                late += sizes.iter().filter(|size| **size == 1200 - 12).count();
            }
            if closed {
                let ends: Vec<_> =
                    packets.iter().map(|p| closing(p, [FIN, RST][round as usize % 2])).collect();
                send_all(&mut node, &ends);
            }
            assert_eq!(segment(&mut node, &bulk), 1290 - 12);
        }
        assert!(late > if closed { 9_900 } else { 4_000 }, "{late} of 10000 with {closed}");
    }
}

#[test]
fn a_forged_syn_changes_no_connection_that_carries_data() {
    for v6 in [false, true] {
        let packet = super_packet(v6, 20_000);
        let mut node = node();
        connect(&mut node, &packet, Some(1390), Some(1290));
        assert_eq!(segment(&mut node, &packet), 1290 - 12);
        for mss in [None, Some(1), Some(48), Some(1000), Some(1410), Some(65_535)] {
            for flags in [0, ACK, FIN, RST, FIN | RST | ACK] {
                arrive(&mut node, &closing(&packet, flags));
                arrive(&mut node, &syn(&packet, mss, flags));
                assert_eq!(segment(&mut node, &packet), 1290 - 12, "{mss:?} {flags}");
            }
        }
        // A pod that forges its neighbour's address raises nothing, and lowers no further than to the size of
        // a connection that is not known.
        for (mss, now) in [(1410, 1290), (1270, 1270), (1290, 1270), (48, if v6 { 1220 } else { 256 })] {
            for flags in [0, ACK, FIN, RST] {
                send(&mut node, &syn(&packet, Some(mss), flags));
                assert_eq!(segment(&mut node, &packet), now - 12, "{mss} {flags}");
            }
        }
    }
}

/// The connection goes on in the other direction.
#[test]
fn a_pod_that_sends_no_more_may_still_receive() {
    let packet = super_packet(false, 20_000);
    let mut node = node();
    connect(&mut node, &packet, Some(1410), Some(1290));
    assert_eq!(segment(&mut node, &packet), 1290 - 12);
    send(&mut node, &closing(&packet, FIN));
    assert_eq!(segment(&mut node, &packet), 1290 - 12);
    flood(&mut node, false, 0, 30_000);
    arrive(&mut node, &syn(&packet, Some(48), 0));
    assert_eq!(segment(&mut node, &packet), 1290 - 12);
}

/// More connections than are remembered: the forgotten ones are safe, and no one gets another's size.
#[test]
fn a_forgotten_connection_gets_no_more_than_it_negotiated() {
    let mut node = node();
    let like = super_packet(false, 1500);
    let packets: Vec<_> = (0..24_000).map(|i| Packet { ports: (10_000 + i, 80), ..like.clone() }).collect();
    let mss = |i: usize| if i.is_multiple_of(2) { 500 } else { 1400 };
    let syns: Vec<_> = packets.iter().enumerate().map(|(i, p)| syn(p, Some(mss(i)), 0)).collect();
    syns.chunks(1000).for_each(|syns| send_all(&mut node, syns));
    let (mut kept, mut forgotten) = (0, 0);
    for (i, size) in packets.chunks(1000).flat_map(|some| segments(&mut node, some)).enumerate() {
        match size {
            244 => forgotten += 1,
            size if size == mss(i) - 12 => kept += 1,
            other => panic!("connection {i} has {other}"),
        }
    }
    assert!(kept > 12_000 && forgotten > 7_000, "{kept} {forgotten}");
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

/// Over ipip the kernel joins segments. One that came alone shows what the sender's segments are.
#[test]
fn single_segments_restore_a_connection_that_is_not_known() {
    let mut node = Node::new(1, ipip(1), MTU, BOTH);
    let packet = super_packet(false, 20_000);
    let raw = |packet: &Packet| from_kernel(&packet.bytes(), 0);
    let size = |node: &mut Node| {
        let writes = node.ingress(&[raw(&packet)]);
        assert_eq!(writes.len(), 1);
        u16::from_ne_bytes([writes[0][4], writes[0][5]])
    };
    let alone = |node: &mut Node, len, checksum| {
        let alone = Packet { checksum, ..super_packet(false, len) };
        assert_eq!(node.ingress(&[raw(&alone)]).len(), 1);
    };
    let too_big = |mtu| plain(&from_pod(&too_big(&packet, mtu)));
    alone(&mut node, 1000, Checksum::Valid);
    assert_eq!(size(&mut node), 244, "nothing is cut, nothing is remembered");
    for (len, now) in [(100, 244), (244, 244), (700, 700), (300, 700), (1000, 1000)] {
        alone(&mut node, len, Checksum::Valid);
        assert_eq!(size(&mut node), now);
    }
    // Possibly two segments.
    alone(&mut node, 1200, Checksum::Open);
    assert_eq!(size(&mut node), 1000);
    // No SYN raises it, from whichever side.
    node.ingress(&[raw(&syn(&packet, Some(1400), 0)), raw(&syn(&packet, Some(48), 0))]);
    assert_eq!(node.egress(&[plain(&from_pod(&syn(&packet, Some(1400), ACK)))]).sent.len(), 1);
    assert_eq!(size(&mut node), 1000);
    alone(&mut node, 1398, Checksum::Valid);
    assert_eq!(size(&mut node), 1398);
    // What was under way when the peer was told.
    assert_eq!(node.egress(&[too_big(1300)]).sent.len(), 1);
    assert_eq!(size(&mut node), 1300 - 52);
    alone(&mut node, 1398, Checksum::Valid);
    assert_eq!(size(&mut node), 1300 - 52);
    // A connection whose SYNs were seen keeps what they say.
    let mut node = Node::new(1, ipip(1), MTU, BOTH);
    node.ingress(&[raw(&syn(&packet, Some(1410), 0))]);
    assert_eq!(node.egress(&[plain(&from_pod(&syn(&packet, Some(600), ACK)))]).sent.len(), 1);
    for _ in 0..2 {
        alone(&mut node, 1398, Checksum::Valid);
        assert_eq!(size(&mut node), 588);
    }
}

/// What may happen to a connection.
#[derive(Clone, Copy, Debug)]
enum Event {
    PeerSyn(u16),
    PodSyn(u16),
    PodCloses(u8),
    PeerCloses(u8),
    TooBig(u16),
    Data,
}

/// What is known of one connection, by the rules in words.
#[derive(Default)]
struct Known {
    by_pod: Option<u16>,
    by_peer: Option<u16>,
    carries_data: bool,
}

impl Known {
    /// Returns the MSS to cut to on `Data`.
    fn apply(&mut self, v6: bool, event: Event) -> Option<u16> {
        let unknown = if v6 { 1220 } else { 256 };
        match event {
            Event::PeerSyn(mss) if !self.carries_data => self.by_peer = Some(mss.max(48)),
            Event::PodSyn(mss) if !self.carries_data => self.by_pod = Some(mss.max(48)),
            Event::PodSyn(mss) => self.by_pod = self.by_pod.map(|old| old.min(mss.max(unknown))),
            Event::PeerSyn(_) | Event::PeerCloses(_) => {}
            Event::PodCloses(_) => self.carries_data = false,
            Event::TooBig(mtu) => {
                let (least, headers) = if v6 { (1280, 60) } else { (552, 40) };
                self.by_pod = self.by_pod.map(|old| old.min(mtu.max(least) - headers));
            }
            Event::Data => {
                self.carries_data = self.by_pod.is_some();
                let least = |mss: u16| mss.min(self.by_peer.unwrap_or(u16::MAX)).min(MTU);
                return Some(self.by_pod.map_or(unknown, least));
            }
        }
        None
    }
}

fn events() -> impl Strategy<Value = Vec<(u16, Event)>> {
    let mss = || prop_oneof![1u16..1500, 1u16..=u16::MAX];
    let end = || prop_oneof![Just(FIN), Just(RST), Just(FIN | PSH)];
    let event = prop_oneof![
        mss().prop_map(Event::PeerSyn),
        mss().prop_map(Event::PodSyn),
        end().prop_map(Event::PodCloses),
        end().prop_map(Event::PeerCloses),
        mss().prop_map(Event::TooBig),
        Just(Event::Data),
        Just(Event::Data),
    ];
    prop::collection::vec((0u16..6, event), 1..60)
}

proptest! {
    #[test]
    fn a_table_of_connections_agrees_with_the_rules(events in events()) {
        let mut node = node();
        let mut known: [Known; 6] = Default::default();
        for (i, event) in events {
            let v6 = i % 2 == 1;
            let packet = Packet { ports: (40_000 + i, 5201), ..super_packet(v6, 20_000) };
            let expected = known[usize::from(i)].apply(v6, event);
            match event {
                Event::PeerSyn(mss) => drop(arrive(&mut node, &syn(&packet, Some(mss), 0))),
                Event::PodSyn(mss) => send(&mut node, &syn(&packet, Some(mss), ACK)),
                Event::PodCloses(flags) => send(&mut node, &closing(&packet, flags)),
                Event::PeerCloses(flags) => drop(arrive(&mut node, &closing(&packet, flags))),
                Event::TooBig(mtu) => send(&mut node, &too_big(&packet, mtu.into())),
                Event::Data => {
                    let fits = MTU as usize - headers(v6) - 12;
                    let mss = usize::from(expected.unwrap_or_default());
                    prop_assert_eq!(segment(&mut node, &packet), mss.saturating_sub(12).min(fits));
                }
            }
        }
    }
}
