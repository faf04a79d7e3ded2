//! Packets that fit the tunnel but not the path to the peer.

use path::{DropReason, Format, PathEnd, Verdict};
use proptest::prelude::*;

use crate::support::node::{BOTH, Egress, Node, plain, vxlan, with_virtio};
use crate::support::packet::{Checksum, Packet, TCP};
use crate::support::reference::{cut, ip_checksum_valid, transport_checksum_valid};

const MTU: u16 = 1450;

fn node(format: Format, limit: u16) -> Node {
    let node = Node::new(0, format, MTU, BOTH);
    assert!(node.fib.set_path_limit(PathEnd::Remote([192, 0, 2, 2].into()), Some(limit)));
    assert!(!node.fib.set_path_limit(PathEnd::Remote([192, 0, 2, 9].into()), Some(limit)));
    node
}

fn send(node: &mut Node, packet: &Packet, size: u16) -> Egress {
    let (gso, field) = match (packet.protocol, packet.v6) {
        (TCP, false) => (1, 16),
        (TCP, true) => (4, 16),
        _ => (5, 6),
    };
    let bytes = Packet { checksum: Checksum::Open, ..packet.clone() }.bytes();
    node.egress(&[with_virtio(1, gso, size, (packet.ip_len() as u16, field), &bytes)])
}

fn stripped(out: &Egress) -> Vec<Vec<u8>> {
    out.sent.iter().map(|sent| sent.bytes[22..].to_vec()).collect()
}

/// Reassembles one IPv4 packet from the front of `fragments`, and returns it without its fragment fields.
fn reassemble(fragments: &mut &[Vec<u8>]) -> Vec<u8> {
    let mut whole = fragments[0][..20].to_vec();
    loop {
        let fragment = &fragments[0];
        assert!(ip_checksum_valid(fragment));
        assert_eq!(fragment[4..6], whole[4..6], "the identification");
        let field = u16::from_be_bytes([fragment[6], fragment[7]]);
        assert_eq!(usize::from(field & 0x1fff) * 8, whole.len() - 20);
        whole.extend(&fragment[20..]);
        *fragments = &fragments[1..];
        if field & 0x2000 == 0 {
            break;
        }
    }
    let len = (whole.len() as u16).to_be_bytes();
    whole[2..4].copy_from_slice(&len);
    whole[6..8].fill(0);
    whole[10..12].fill(0);
    whole
}

fn unsummed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    packet
}

proptest! {
    #[test]
    fn tcp_is_cut_to_the_path(v6: bool, df: bool, payload in 2000usize..60_000, limit in 1290u16..1449) {
        let packet = Packet { df, ..Packet::tcp(v6, 7, payload) };
        let header = packet.header_len() as u16;
        let out = send(&mut node(vxlan(0), limit), &packet, MTU - header);
        prop_assert_eq!(stripped(&out), cut(&packet.bytes(), (limit - header).into()));
        prop_assert!(out.replies.is_empty());
    }

    #[test]
    fn udp_without_df_is_fragmented(payload in 1281usize..1423, limit in 576u16..1300) {
        let packet = Packet::udp(false, 9, payload);
        for open in [false, true] {
            let checksum = if open { Checksum::Open } else { Checksum::Valid };
            let bytes = Packet { checksum, ..packet.clone() }.bytes();
            let read = with_virtio(u8::from(open), 0, 0, if open { (20, 6) } else { (0, 0) }, &bytes);
            let out = node(vxlan(0), limit).egress(&[read]);
            let fragments = stripped(&out);
            prop_assert!(fragments.iter().all(|one| one.len() <= usize::from(limit)));
            prop_assert_eq!(&out.verdicts, &[Verdict::ToUnderlay(fragments.len() as u32)]);
            let whole = reassemble(&mut &fragments[..]);
            prop_assert_eq!(whole, unsummed(packet.bytes()));
        }
    }

    #[test]
    fn every_segment_of_a_udp_super_packet_is_fragmented(segments in 2usize..44, limit in 576u16..1300) {
        let size = 1400;
        let packet = Packet::udp(false, 9, segments * size - 5);
        let out = send(&mut node(vxlan(0), limit), &packet, size as u16);
        let fragments = stripped(&out);
        let mut left = &fragments[..];
        for expected in cut(&packet.bytes(), size) {
            let mut whole = reassemble(&mut left);
            prop_assert_eq!(&whole, &unsummed(expected));
            whole[10..12].copy_from_slice(&[0, 0]);
            prop_assert!(transport_checksum_valid(&whole));
        }
        prop_assert!(left.is_empty());
    }
}

#[test]
fn what_must_not_be_fragmented_is_refused_with_the_paths_mtu() {
    for (v6, limit, told) in [(false, 1300, 1300), (true, 1300, 1300), (true, 1210, 1280)] {
        let packet = Packet { df: true, ..Packet::udp(v6, 1, 1330) };
        let out = node(vxlan(0), limit).egress(&[plain(&packet.bytes())]);
        assert_eq!(out.verdicts, [Verdict::Reply(DropReason::TooBig)]);
        let at = 10 + if v6 { 44 } else { 24 };
        let reply = &out.replies[0];
        assert_eq!(u16::from_be_bytes([reply[at + 2], reply[at + 3]]), told, "the MTU in the answer");
    }
    // An IPv6 packet of the minimum MTU is sent, whatever the path.
    let least = Packet::udp(true, 1, 1280 - 48);
    assert_eq!(node(vxlan(0), 1210).egress(&[plain(&least.bytes())]).sent.len(), 1);
    // A larger packet than the tunnel's is refused as before.
    let large = Packet::udp(false, 1, 2000);
    let out = node(vxlan(0), 1300).egress(&[plain(&large.bytes())]);
    assert_eq!((out.verdicts, out.replies.len()), (vec![Verdict::Drop(DropReason::TooBig)], 0));
}
