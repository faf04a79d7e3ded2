//! Checksums that nobody has verified: a wrong one is never replaced by a right one.

use path::ingress;
use path::offload::coalesce::Coalescer;
use path::{Counters, DropReason, Format, Received, Verdict};
use proptest::prelude::*;

use crate::support::node::{Arrival, BOTH, MTU, Node, in_vxlan, plain, single, vxlan, with_virtio};
use crate::support::packet::{Checksum, Packet, TCP, UDP};
use crate::support::reference::{as_kernel, complement, cut, finish, fold};

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

fn kinds() -> [Packet; 4] {
    [
        Packet::tcp(false, 7, 600),
        Packet::tcp(true, 7, 600),
        Packet::udp(false, 7, 600),
        Packet::udp(true, 7, 600),
    ]
}

fn with(packet: &Packet, checksum: Checksum) -> Vec<u8> {
    Packet { checksum, ..packet.clone() }.bytes()
}

/// Builds a TUN read of a packet, as a super-packet if `size` is not 0.
fn read(packet: &Packet, checksum: Checksum, flags: u8, size: u16) -> Vec<u8> {
    let field = if packet.protocol == TCP { 16 } else { 6 };
    let gso = match (size, packet.protocol, packet.v6) {
        (0, ..) => 0,
        (_, TCP, false) => 1,
        (_, TCP, true) => 4,
        _ => 5,
    };
    with_virtio(flags, gso, size, (packet.ip_len() as u16, field), &with(packet, checksum))
}

fn sent(format: Format, read: Vec<u8>) -> Result<Vec<Vec<u8>>, DropReason> {
    let offset = if format == Format::Udp { 0 } else { 22 };
    let out = Node::new(0, format, MTU, BOTH).egress(&[read]);
    match out.verdicts[0] {
        Verdict::Drop(reason) => Err(reason),
        _ => Ok(out.sent.iter().map(|s| s.bytes[offset..].to_vec()).collect()),
    }
}

#[test]
fn a_pods_packet_with_a_wrong_checksum_is_dropped_by_name() {
    for packet in kinds() {
        // An open checksum is wrong unless the kernel says that it is open, as after a capture is replayed.
        for checksum in [Checksum::Invalid, Checksum::Open] {
            for (format, size) in [(vxlan(0), 0), (Format::Udp, 0), (vxlan(0), 200)] {
                let dropped = sent(format, read(&packet, checksum, 0, size));
                assert_eq!(dropped, Err(DropReason::BadTransportChecksum), "{packet:?} {size}");
            }
        }
        assert_eq!(sent(vxlan(0), read(&packet, Checksum::Valid, 0, 0)), Ok(vec![packet.bytes()]));
        let segments = cut(&packet.bytes(), 200);
        assert_eq!(sent(vxlan(0), read(&packet, Checksum::Valid, 0, 200)), Ok(segments.clone()));
        assert_eq!(sent(vxlan(0), read(&packet, Checksum::Open, NEEDS_CSUM, 200)), Ok(segments.clone()));
        assert_eq!(sent(vxlan(0), read(&packet, Checksum::Valid, DATA_VALID, 200)), Ok(segments));
    }
}

/// The kernel has looked at it: its word costs no pass over the bytes.
#[test]
fn what_the_kernel_has_verified_is_not_summed() {
    for packet in kinds() {
        let mut node = Node::new(0, vxlan(0), MTU, BOTH);
        let out = node.egress(&[read(&packet, Checksum::Valid, DATA_VALID, 0)]);
        assert_eq!(out.sent[0].bytes[22..], packet.bytes());
        assert_eq!(node.counters.egress.summed_bytes, 0);
        let mut node = Node::new(0, vxlan(0), MTU, BOTH);
        node.egress(&[read(&packet, Checksum::Valid, 0, 0)]);
        assert_eq!(node.counters.egress.summed_bytes, (packet.bytes().len() - packet.ip_len()) as u64);
    }
}

#[test]
fn what_has_no_checksum_passes_alone_and_unchanged() {
    for v6 in [false, true] {
        let packet = with(&Packet::udp(v6, 7, 600), Checksum::Zero);
        assert_eq!(sent(vxlan(0), plain(&packet)), Ok(vec![packet.clone()]));
        let writes = Node::new(1, vxlan(1), MTU, BOTH).ingress(&vec![single(in_vxlan(0, &packet)); 3]);
        assert_eq!(writes, vec![plain(&packet); 3]);
    }
    // Only part of the datagram is summed: nothing is known about the rest.
    let super_packet = read(&Packet::udp(false, 7, 600), Checksum::Zero, 0, 200);
    assert_eq!(sent(vxlan(0), super_packet), Err(DropReason::BadTransportChecksum));
}

/// Fragments and other protocols have no checksum that one packet could answer for.
#[test]
fn fragments_and_other_protocols_are_not_summed() {
    let first = Packet { fragment: 0x2000, checksum: Checksum::Invalid, ..Packet::udp(false, 7, 600) };
    let later = Packet { fragment: 100, checksum: Checksum::Invalid, ..Packet::udp(false, 7, 600) };
    for packet in
        [first, later, Packet::icmp(false, 100), Packet { protocol: 132, ..Packet::icmp(false, 100) }]
    {
        let bytes = packet.bytes();
        let mut node = Node::new(0, vxlan(0), MTU, BOTH);
        assert_eq!(node.egress(&[plain(&bytes)]).sent[0].bytes[22..], bytes);
        assert_eq!(node.counters.egress.summed_bytes, 0);
    }
}

fn train(format: Format, packets: &[Vec<u8>]) -> Arrival {
    let framed = |p: &Vec<u8>| if format == Format::Udp { p.clone() } else { in_vxlan(0, p) };
    let datagrams: Vec<_> = packets.iter().map(framed).collect();
    Arrival { segment_size: datagrams[0].len() as u16, bytes: datagrams.concat(), ecn: 0 }
}

proptest! {
    /// The kernel has verified the outer checksums of a train, which says nothing about the inner ones.
    #[test]
    fn a_wrong_checksum_in_a_train_harms_no_other(
        (v6, is_tcp, udp_format) in any::<(bool, bool, bool)>(),
        wrong in prop::collection::vec(any::<bool>(), 1..64),
        len in 1usize..900,
    ) {
        let (format, own) = if udp_format { (Format::Udp, Format::Udp) } else { (vxlan(0), vxlan(1)) };
        let number = |i: usize| {
            let seq = (i * len) as u32;
            let packet = if is_tcp { Packet::tcp(v6, seq, len) } else { Packet::udp(v6, i as u16, len) };
            Packet { id: i as u16, ttl: 64, ..packet }
        };
        let packets: Vec<Packet> = (0..wrong.len()).map(number).collect();
        let bytes = packets.iter().zip(&wrong).map(|(packet, wrong)| {
            with(packet, if *wrong { Checksum::Invalid } else { Checksum::Valid })
        }).collect::<Vec<_>>();
        let mut node = Node::new(1, own, MTU, BOTH);
        let writes = node.ingress(&[train(format, &bytes)]);
        let got: Vec<_> = writes.iter().flat_map(|w| as_kernel(w)).collect();
        let right = packets.iter().zip(&wrong).filter(|(_, wrong)| !**wrong).map(|(packet, _)| {
            Packet { ttl: if udp_format { 63 } else { 64 }, ..packet.clone() }.bytes()
        });
        prop_assert_eq!(got, right.collect::<Vec<_>>());
        let count = wrong.iter().filter(|wrong| **wrong).count() as u64;
        prop_assert_eq!(node.counters.ingress.dropped(DropReason::BadTransportChecksum), count);
        prop_assert_eq!(node.counters.ingress.dropped_total(), count);
    }
}

/// Only a kernel leaves checksums open. In other tunnels such a packet is a damaged one.
#[test]
fn an_open_checksum_is_wrong_where_no_kernel_sends() {
    for mut packet in kinds() {
        // Too short to be a super-packet.
        packet.payload.truncate(200);
        let bytes = with(&packet, Checksum::Open);
        let mut node = Node::new(1, Format::Udp, MTU, BOTH);
        assert_eq!(node.ingress(&[single(bytes.clone())]), Vec::<Vec<u8>>::new());
        assert_eq!(node.dropped(), [(DropReason::BadTransportChecksum, 1)]);
        let writes = Node::new(1, vxlan(1), MTU, BOTH).ingress(&[single(in_vxlan(0, &bytes))]);
        assert_eq!(writes.iter().flat_map(|w| as_kernel(w)).collect::<Vec<_>>(), [packet.bytes()]);
    }
}

/// A peer seals what it was given.
#[test]
fn a_sealed_packet_is_verified_too() {
    for packet in kinds() {
        for checksum in [Checksum::Valid, Checksum::Invalid, Checksum::Open] {
            let Node { fib, sizes, .. } = Node::new(1, Format::Udp, MTU, BOTH);
            let source = if packet.v6 {
                fib.lookup_v6(std::net::Ipv6Addr::from([0xfd00, 1, 0, 0, 0, 0, 0, 5]))
            } else {
                fib.lookup_v4([10, 1, 0, 5].into())
            };
            let (_, peer) = source.expect("the sender's network");
            let mut arena = vec![0; 4096];
            let bytes = with(&packet, checksum);
            arena.extend(&bytes);
            let received = Received {
                source: ([192, 0, 2, 1], 51_820).into(),
                at: 4096,
                len: bytes.len() as u32,
                segment_size: 0,
                ecn: 0,
            };
            let mut coalescer = Coalescer::new(0..4096, BOTH);
            let mut counters = Counters::default().ingress;
            ingress::opened(&mut arena, received, peer.id, &fib, &sizes, &mut coalescer, &mut counters);
            let valid = checksum == Checksum::Valid;
            assert_eq!(coalescer.runs().len(), usize::from(valid), "{packet:?}");
            assert_eq!(counters.dropped(DropReason::BadTransportChecksum), u64::from(!valid));
        }
    }
}

/// Returns packets whose checksum covers another destination or source than their IP header has.
fn on_source_routes() -> Vec<Vec<u8>> {
    let mut all = vec![];
    for kind in [131, 137] {
        let mut packet = Packet {
            // One more address, and the pointer in front of it.
            ip_options: vec![1, kind, 7, 4, 10, 2, 0, 99],
            ..Packet::udp(false, 7, 300)
        };
        packet.dst = 99;
        let mut bytes = packet.bytes();
        bytes[19] = 7;
        bytes[10..12].fill(0);
        let check = complement(fold(0, &bytes[..28]));
        bytes[10..12].copy_from_slice(&check.to_be_bytes());
        all.push(bytes);
    }
    let far = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99];
    let routing = [&[UDP, 2, 4, 1, 0, 0, 0, 0][..], &far].concat();
    let home = [&[UDP, 2, 1, 2, 0, 0, 201, 16][..], &far].concat();
    for (extension, options) in [(43, routing), (60, home)] {
        let mut packet = Packet { extension, ip_options: options, ..Packet::udp(true, 7, 300) }.bytes();
        // As if summed with the other address.
        packet[64 + 6] ^= 0x55;
        all.push(packet);
    }
    all
}

#[test]
fn a_checksum_over_the_end_of_a_source_route_is_left_to_the_pod() {
    for packet in on_source_routes() {
        assert_eq!(sent(vxlan(0), plain(&packet)), Ok(vec![packet.clone()]));
        let mut node = Node::new(1, vxlan(1), MTU, BOTH);
        let writes = node.ingress(&[single(in_vxlan(0, &packet)), single(in_vxlan(0, &packet))]);
        assert_eq!(writes, [plain(&packet), plain(&packet)], "{:?}", node.dropped());
    }
    // A route at its end, and padding, change nothing.
    for (v6, extension, options) in
        [(false, 0, vec![131, 7, 8, 10, 2, 0, 99, 0]), (true, 43, vec![UDP, 0, 4, 0, 0, 0, 0, 0])]
    {
        let packet = Packet { extension, ip_options: options, ..Packet::udp(v6, 7, 300) };
        let wrong = with(&packet, Checksum::Invalid);
        assert_eq!(sent(vxlan(0), plain(&wrong)), Err(DropReason::BadTransportChecksum));
        let mut right = wrong;
        finish(&mut right);
        assert_eq!(sent(vxlan(0), plain(&right)), Ok(vec![right]));
    }
}
