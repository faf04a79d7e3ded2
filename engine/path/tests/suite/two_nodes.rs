//! One node strips what the other encapsulates: inner packets arrive unchanged.

use path::Format;
use proptest::prelude::*;

use crate::support::node::{Arrival, BOTH, Egress, LANES, MACS, MTU, Node, Sent, joined, plain, vxlan};
use crate::support::packet::{Checksum, ICMP, Packet, TCP, UDP, pattern};
use crate::support::reference::{as_kernel, finish, flows};

/// Generates packets that a pod can send and the tunnel carries.
fn packets() -> impl Strategy<Value = Packet> {
    let addresses = (any::<bool>(), 0u8..4, 0u8..4, 0u16..3);
    let header = (
        any::<u8>(),
        3u8..,
        any::<u16>(),
        any::<bool>(),
        prop::sample::select(vec![0u16, 0, 0, 0x2000, 0x2010, 9]),
    );
    let rest = (prop::sample::select(vec![TCP, UDP, ICMP, 132]), 0usize..1380, any::<bool>(), any::<u32>());
    (addresses, header, rest).prop_map(
        |((v6, src, dst, port), (tos, ttl, id, df, fragment), (protocol, len, options, seq))| Packet {
            protocol: if v6 && protocol == ICMP { 58 } else { protocol },
            src,
            dst,
            ports: (1000 + port, 80),
            tos,
            ttl,
            id,
            df,
            fragment: if v6 { 0 } else { fragment },
            ip_options: match (v6, options) {
                (_, false) => vec![],
                (false, true) => vec![1; 8],
                (true, true) => vec![protocol, 0, 1, 4, 0, 0, 0, 0],
            },
            payload: pattern(seq, len),
            ..Packet::tcp(v6, seq, 0)
        },
    )
}

fn carry(from: Format, to: Format, packets: &[Packet], gro: bool, hops: u8) {
    let mut a = Node::new(0, from, MTU, BOTH);
    let mut b = Node::new(1, to, MTU, BOTH);
    let reads: Vec<_> = packets.iter().map(|p| plain(&p.bytes())).collect();
    let Egress { sent, replies, .. } = a.egress(&reads);
    assert_eq!((sent.len(), replies.len()), (packets.len(), 0));
    let alone = |s: &Sent| Arrival { bytes: s.bytes.clone(), segment_size: 0, ecn: s.ecn };
    let arrivals = if gro { joined(&sent) } else { sent.iter().map(alone).collect() };
    let writes = b.ingress(&arrivals);
    assert_eq!(b.dropped(), []);
    let got: Vec<_> = writes.iter().flat_map(|w| as_kernel(w)).map(canonical).collect();
    let expected: Vec<_> =
        packets.iter().map(|p| canonical(Packet { ttl: p.ttl - hops, ..p.clone() }.bytes())).collect();
    assert_eq!(flows(&got), flows(&expected));
    assert_eq!(b.counters.ingress.segments, packets.len() as u64);
    assert!(b.counters.ingress.summed_bytes <= b.counters.ingress.bytes, "at most one pass");
}

/// Clears the id of packets with DF, where it is meaningless (RFC 6864 section 4.1): constant ids count up
/// after cutting.
fn canonical(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        if packet[6] & 0x3f == 0 && packet[7] == 0 {
            finish(&mut packet);
        } else {
            packet[10..12].fill(0);
        }
    }
    packet
}

proptest! {
    #[test]
    fn through_vxlan(packets in prop::collection::vec(packets(), 1..40), gro: bool) {
        carry(vxlan(0), vxlan(1), &packets, gro, 0);
    }

    #[test]
    fn through_udp_with_two_hops(packets in prop::collection::vec(packets(), 1..40), gro: bool) {
        carry(Format::Udp, Format::Udp, &packets, gro, 2);
    }

    #[test]
    fn a_flow_has_one_source_port_and_ecn_is_copied(packets in prop::collection::vec(packets(), 1..20)) {
        let mut a = Node::new(0, vxlan(0), MTU, BOTH);
        let twice: Vec<_> = packets.iter().chain(&packets).map(|p| plain(&p.bytes())).collect();
        // One packet per batch, because a batch orders its datagrams by send.
        let sent: Vec<_> = twice.iter().flat_map(|r| a.egress(std::slice::from_ref(r)).sent).collect();
        for (i, packet) in packets.iter().enumerate() {
            prop_assert!(sent[i].lane < LANES);
            prop_assert_eq!(sent[i].lane, sent[i + packets.len()].lane);
            prop_assert_eq!(sent[i].ecn, packet.tos & 3);
        }
    }
}

#[test]
fn the_bytes_of_a_vxlan_datagram() {
    for (v6, ethertype) in [(false, [8, 0]), (true, [0x86, 0xdd])] {
        let packet = Packet { checksum: Checksum::Valid, ..Packet::udp(v6, 1, 9) }.bytes();
        let sent = Node::new(0, vxlan(0), MTU, BOTH).egress(&[plain(&packet)]).sent;
        let expected = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &MACS[1], &MACS[0], &ethertype, &packet].concat();
        assert_eq!(sent[0].bytes, expected);
        assert_eq!(sent[0].to, "192.0.2.2:8472".parse().unwrap());
    }
}

#[test]
fn the_bytes_of_a_udp_datagram() {
    let packet = Packet::udp(false, 1, 9);
    let sent = Node::new(0, Format::Udp, MTU, BOTH).egress(&[plain(&packet.bytes())]).sent;
    assert_eq!(sent[0].bytes, Packet { ttl: 63, ..packet }.bytes());
}
