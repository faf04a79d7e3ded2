//! Which packets coalescing must join, which it must keep apart, and in which order they must leave.
//!
//! The rules are those of `tcp4_gro_receive`, `tcp_gro_receive`, `udp_gro_receive` and `inet_gro_receive`
//! (net/ipv4/tcp_offload.c, udp_offload.c, af_inet.c; net/ipv6/ip6_offload.c).

use path::offload::coalesce::Joins;
use proptest::prelude::*;

use crate::support::node::{BOTH, MTU, Node, in_vxlan, single, vxlan};
use crate::support::packet::{ACK, CWR, Checksum, ECE, FIN, PSH, Packet, RST, SYN, URG};
use crate::support::reference::as_kernel;

fn writes(packets: &[Packet], joins: Joins) -> Vec<Vec<u8>> {
    let arrivals: Vec<_> = packets.iter().map(|p| single(in_vxlan(0, &p.bytes()))).collect();
    Node::new(1, vxlan(1), MTU, joins).ingress(&arrivals)
}

/// Returns the number of packets in each write. Checks that all writes together are the packets in order.
fn runs(packets: &[Packet]) -> Vec<usize> {
    let runs: Vec<_> = writes(packets, BOTH).iter().map(|w| as_kernel(w)).collect();
    let all: Vec<_> = runs.concat();
    let sent: Vec<_> = packets.iter().map(Packet::bytes).collect();
    assert_eq!(all, sent, "all packets in order");
    runs.iter().map(Vec::len).collect()
}

fn train(v6: bool, len: usize, count: usize) -> Vec<Packet> {
    let at = |i: usize| Packet {
        id: 65_530u16.wrapping_add(i as u16),
        ..Packet::tcp(v6, 0xffff_f000u32.wrapping_add((i * len) as u32), len)
    };
    (0..count).map(at).collect()
}

fn datagrams(v6: bool, lens: &[usize]) -> Vec<Packet> {
    lens.iter().enumerate().map(|(i, len)| Packet::udp(v6, i as u16, *len)).collect()
}

#[test]
fn consecutive_packets_of_equal_size_become_one_write() {
    for v6 in [false, true] {
        assert_eq!(runs(&train(v6, 1300, 40)), [40]);
        assert_eq!(runs(&datagrams(v6, &[1200; 40])), [40]);
        assert_eq!(runs(&datagrams(v6, &[1; 3])), [3]);
    }
}

#[test]
fn a_run_ends_at_its_limits() {
    assert_eq!(runs(&train(false, 100, 70)), [64, 6]);
    assert_eq!(runs(&datagrams(true, &[100; 70])), [64, 6]);
    // 49 × 1335 bytes and the headers fit into 65,535 bytes; 50 × 1335 do not.
    assert_eq!(runs(&train(false, 1335, 52)), [49, 3]);
    assert_eq!(runs(&train(true, 1335, 52)), [49, 3]);
}

#[test]
fn a_shorter_packet_ends_a_run_and_a_longer_one_begins_another() {
    assert_eq!(runs(&datagrams(false, &[500, 500, 300, 500, 500])), [3, 2]);
    assert_eq!(runs(&datagrams(false, &[300, 500, 500])), [1, 2]);
    let mut packets = train(false, 500, 5);
    packets[2].payload.truncate(300);
    packets[3..].iter_mut().for_each(|p| p.seq = p.seq.wrapping_sub(200));
    assert_eq!(runs(&packets), [3, 2]);
}

#[test]
fn packets_with_different_headers_are_not_joined() {
    type Change = fn(&mut Packet);
    let tcp: &[(&str, Change)] = &[
        ("ack", |p| p.ack += 1),
        ("window", |p| p.window += 1),
        ("urgent pointer", |p| p.urgent = 1),
        ("options", |p| p.tcp_options = vec![1; 4]),
        ("option bytes", |p| p.tcp_options = [8, 10, 0, 0, 0, 2, 0, 0, 0, 1, 1, 1].to_vec()),
        ("tos", |p| p.tos = 0x20),
        ("ecn", |p| p.tos = 2),
        ("ttl", |p| p.ttl -= 1),
        ("source port", |p| p.ports.0 += 1),
        ("destination port", |p| p.ports.1 += 1),
        ("source", |p| p.src += 1),
        ("destination", |p| p.dst += 1),
        ("sequence gap", |p| p.seq = p.seq.wrapping_add(1)),
        ("sequence repeat", |p| p.seq = p.seq.wrapping_sub(1)),
        ("SYN", |p| p.flags |= SYN),
        ("RST", |p| p.flags |= RST),
        ("URG", |p| p.flags |= URG),
        ("CWR", |p| p.flags |= CWR),
        ("ECE", |p| p.flags |= ECE),
        ("no ACK", |p| p.flags &= !ACK),
    ];
    let v4: &[(&str, Change)] = &[
        ("DF", |p| p.df = true),
        ("reserved bit", |p| p.fragment = 0x8000),
        ("id jump", |p| p.id = p.id.wrapping_add(1)),
        ("id repeat", |p| p.id = p.id.wrapping_sub(1)),
        ("IPv4 options", |p| p.ip_options = vec![1; 4]),
        ("first fragment", |p| p.fragment = 0x2000),
        ("later fragment", |p| p.fragment = 0x0010),
    ];
    let v6: &[(&str, Change)] = &[
        ("flow label", |p| p.flow_label ^= 1),
        ("extension header", |p| p.ip_options = vec![p.protocol, 0, 1, 4, 0, 0, 0, 0]),
        ("fragment header", |p| (p.extension, p.ip_options) = (44, vec![p.protocol, 0, 0, 1, 0, 0, 0, 9])),
    ];
    for (family, of_family) in [(false, v4), (true, v6)] {
        for (name, change) in tcp.iter().chain(of_family) {
            let mut packets = train(family, 700, 4);
            change(&mut packets[2]);
            let got = runs(&packets);
            assert_eq!(got[0], 2, "{name}: {got:?}");
            assert!(got[1] == 1, "{name}: {got:?}");
        }
        let alike = ["tos", "ecn", "ttl"];
        for (name, change) in tcp.iter().filter(|(name, _)| alike.contains(name)).chain(of_family) {
            let mut packets = datagrams(family, &[700; 4]);
            change(&mut packets[2]);
            let got = runs(&packets);
            assert_eq!(got[..2], [2, 1], "UDP {name}: {got:?}");
        }
        let other_flow = ["source port", "destination port", "source", "destination"];
        for (name, change) in tcp.iter().filter(|(name, _)| other_flow.contains(name)) {
            let mut packets = datagrams(family, &[700; 4]);
            packets[3].id = packets[2].id;
            change(&mut packets[2]);
            let writes = writes(&packets, BOTH);
            assert_eq!(writes.iter().map(|w| as_kernel(w).len()).collect::<Vec<_>>(), [3, 1], "UDP {name}");
        }
    }
}

#[test]
fn packets_with_equal_ids_are_joined_only_with_df() {
    let fixed = |df| train(false, 700, 4).into_iter().map(|p| Packet { id: 9, df, ..p }).collect::<Vec<_>>();
    assert_eq!(writes(&fixed(true), BOTH).len(), 1);
    assert_eq!(writes(&fixed(false), BOTH).len(), 4);
    // A run of constant ids does not continue with ids that count up.
    let mut packets = fixed(true);
    (packets[2].id, packets[3].id) = (10, 11);
    assert_eq!(writes(&packets, BOTH).len(), 2);
    assert_eq!(
        runs(&train(false, 700, 4).into_iter().map(|p| Packet { df: true, ..p }).collect::<Vec<_>>()),
        [4]
    );
}

#[test]
fn psh_and_fin_end_a_run_and_stay_on_its_last_segment() {
    for flag in [PSH, FIN, PSH | FIN] {
        for v6 in [false, true] {
            let mut packets = train(v6, 700, 5);
            packets[2].flags |= flag;
            assert_eq!(runs(&packets), [3, 2], "{flag:02x}");
            packets[0].flags |= flag;
            assert_eq!(runs(&packets), [1, 2, 2], "{flag:02x}");
        }
    }
}

#[test]
fn packets_that_can_never_be_joined_are_not_joined_with_each_other() {
    for flag in [SYN, RST, URG, CWR] {
        let packets: Vec<_> =
            train(false, 700, 3).into_iter().map(|p| Packet { flags: ACK | flag, ..p }).collect();
        assert_eq!(runs(&packets), [1, 1, 1], "{flag:02x}");
    }
    let each = |change: fn(&mut Packet)| {
        let mut packets = datagrams(false, &[700; 3]);
        packets.iter_mut().for_each(change);
        runs(&packets)
    };
    assert_eq!(each(|p| p.ip_options = vec![1; 4]), [1, 1, 1]);
    assert_eq!(each(|p| p.fragment = 0x2000), [1, 1, 1]);
    assert_eq!(each(|p| p.fragment = 0x8000), [1, 1, 1]);
    assert_eq!(each(|p| p.payload = vec![]), [1, 1, 1]);
    assert_eq!(each(|p| p.protocol = 50), [1, 1, 1]);
    assert_eq!(each(|p| p.checksum = Checksum::Zero), [1, 1, 1]);
}

#[test]
fn joining_can_be_disabled_per_protocol() {
    let (tcp, udp) = (train(false, 700, 3), datagrams(true, &[700; 3]));
    for (joins, tcp_writes, udp_writes) in [
        (Joins { tcp: true, udp: false }, 1, 3),
        (Joins { tcp: false, udp: true }, 3, 1),
        (Joins { tcp: false, udp: false }, 3, 3),
    ] {
        assert_eq!((writes(&tcp, joins).len(), writes(&udp, joins).len()), (tcp_writes, udp_writes));
    }
}

/// A packet that cannot be joined ends the run before it; the next packet must not overtake it.
#[test]
fn nothing_overtakes_a_packet_that_cannot_be_joined() {
    for v6 in [false, true] {
        let mut packets = datagrams(v6, &[700; 4]);
        packets[1].payload.clear();
        packets[2].id = 1;
        packets[3].id = 2;
        assert_eq!(runs(&packets), [1, 1, 2], "an empty datagram");

        let mut packets = train(v6, 700, 4);
        packets.insert(2, Packet { payload: vec![], id: packets[2].id, ..packets[2].clone() });
        assert_eq!(runs(&packets)[..2], [2, 1], "a repeated acknowledgement");

        let mut packets = train(v6, 700, 4);
        packets.insert(2, Packet { payload: vec![], flags: ACK | RST, ..packets[2].clone() });
        assert_eq!(runs(&packets)[..2], [2, 1], "a reset");
    }
    let mut packets = datagrams(false, &[700; 4]);
    packets.insert(1, Packet { checksum: Checksum::Zero, ..packets[1].clone() });
    assert_eq!(runs(&packets), [1, 1, 3], "a datagram without a checksum");
    let mut packets = datagrams(false, &[700; 4]);
    packets.insert(1, Packet { ip_options: vec![1; 4], ..packets[1].clone() });
    assert_eq!(runs(&packets), [1, 1, 3], "options");
    let mut packets = datagrams(false, &[700; 4]);
    packets.insert(1, Packet { fragment: 0x2000, ..packets[1].clone() });
    assert_eq!(runs(&packets), [1, 1, 3], "a fragment");
}

#[test]
fn interleaved_flows_are_joined_separately() {
    let (a, b) = (train(false, 700, 6), datagrams(true, &[300; 6]));
    let packets: Vec<_> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(writes(&packets, BOTH).iter().map(|w| as_kernel(w).len()).collect::<Vec<_>>(), [6, 6]);
}

proptest! {
    /// All packets of a flow arrive in order, whatever they contain.
    #[test]
    fn a_flow_is_never_reordered(
        v6: bool,
        is_tcp: bool,
        steps in prop::collection::vec((0usize..9, 1usize..4), 1..80),
    ) {
        let mut seq = 0u32;
        let mut packets = vec![];
        for (i, (kind, len)) in steps.into_iter().enumerate() {
            let len = if kind == 8 { 0 } else { len * 100 };
            let mut p = if is_tcp { Packet::tcp(v6, seq, len) } else { Packet::udp(v6, 0, len) };
            p.id = i as u16;
            match kind {
                0 => p.flags |= PSH,
                1 => p.ack += i as u32,
                2 if !v6 => p.ip_options = vec![1; 4],
                2 => p.ip_options = vec![p.protocol, 0, 1, 4, 0, 0, 0, 0],
                3 if !v6 && !is_tcp => p.checksum = Checksum::Zero,
                4 => p.flags |= RST,
                5 => p.tos = 0x40,
                6 if !v6 => p.fragment = 0x2000,
                7 => p.ttl -= 1,
                _ => {}
            }
            seq = seq.wrapping_add(p.payload.len() as u32);
            packets.push(p);
        }
        runs(&packets);
    }
}
