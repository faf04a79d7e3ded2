//! ECN, TTL and ICMP errors to pods, checked against the RFCs' tables and with an independent parser.

use path::{DropReason, Format, Verdict};

use crate::support::node::{Arrival, BOTH, MTU, Node, in_vxlan, plain, single, vxlan, with_virtio};
use crate::support::packet::{Checksum, Packet};
use crate::support::reference::{fold, ip_checksum_valid, pseudo};

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// RFC 6040 section 4.2, figure 4.
#[test]
fn ecn_codepoints_are_merged_according_to_rfc_6040() {
    let table = [
        (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
        (NOT_ECT, ECT_0, Some(NOT_ECT)),
        (NOT_ECT, ECT_1, Some(NOT_ECT)),
        (NOT_ECT, CE, None),
        (ECT_0, NOT_ECT, Some(ECT_0)),
        (ECT_0, ECT_0, Some(ECT_0)),
        (ECT_0, ECT_1, Some(ECT_1)),
        (ECT_0, CE, Some(CE)),
        (ECT_1, NOT_ECT, Some(ECT_1)),
        (ECT_1, ECT_0, Some(ECT_1)),
        (ECT_1, ECT_1, Some(ECT_1)),
        (ECT_1, CE, Some(CE)),
        (CE, NOT_ECT, Some(CE)),
        (CE, ECT_0, Some(CE)),
        (CE, ECT_1, Some(CE)),
        (CE, CE, Some(CE)),
    ];
    for (inner, outer, merged) in table {
        for v6 in [false, true] {
            let packet = Packet { tos: 0xb8 | inner, ..Packet::udp(v6, 1, 50) };
            let mut node = Node::new(1, vxlan(1), MTU, BOTH);
            let writes = node.ingress(&[Arrival { ecn: outer, ..single(in_vxlan(0, &packet.bytes())) }]);
            let expected: Vec<_> = merged
                .iter()
                .map(|ecn| plain(&Packet { tos: 0xb8 | ecn, ..packet.clone() }.bytes()))
                .collect();
            assert_eq!(writes, expected, "inner {inner}, outer {outer}");
            let dropped = if merged.is_none() { vec![(DropReason::EcnUnheard, 1)] } else { vec![] };
            assert_eq!(node.dropped(), dropped);
        }
    }
}

/// RFC 6040 section 4.1, normal mode.
#[test]
fn the_outer_ecn_codepoint_is_copied_from_the_inner_one() {
    for ecn in [NOT_ECT, ECT_1, ECT_0, CE] {
        for v6 in [false, true] {
            let packet = Packet { tos: 0xb8 | ecn, ..Packet::udp(v6, 1, 50) };
            for format in [vxlan(0), Format::Udp] {
                let out = Node::new(0, format, MTU, BOTH).egress(&[plain(&packet.bytes())]);
                assert_eq!(out.sent[0].ecn, ecn);
            }
        }
    }
}

#[test]
fn packets_with_different_ecn_codepoints_do_not_share_a_send() {
    let marked = |ecn| plain(&Packet { tos: ecn, ..Packet::udp(false, 1, 50) }.bytes());
    let out = Node::new(0, vxlan(0), MTU, BOTH).egress(&[marked(0), marked(3), marked(0)]);
    assert_eq!(out.sent.iter().map(|s| s.ecn).collect::<Vec<_>>(), [0, 3, 0]);
    assert_eq!(out.sends.len(), 3);
}

#[test]
fn a_vxlan_tunnel_is_no_hop_and_a_udp_tunnel_is_a_hop_at_each_end() {
    for v6 in [false, true] {
        for ttl in [0, 1, 2, 255] {
            let packet = Packet { ttl, ..Packet::udp(v6, 1, 50) };
            let through = Node::new(0, vxlan(0), MTU, BOTH).egress(&[plain(&packet.bytes())]);
            assert_eq!(through.sent[0].bytes[22..], packet.bytes());
            let writes = Node::new(1, vxlan(1), MTU, BOTH).ingress(&[single(in_vxlan(0, &packet.bytes()))]);
            assert_eq!(writes, [plain(&packet.bytes())]);

            let out = Node::new(0, Format::Udp, MTU, BOTH).egress(&[plain(&packet.bytes())]);
            let mut node = Node::new(1, Format::Udp, MTU, BOTH);
            let writes = node.ingress(&[single(packet.bytes())]);
            if ttl <= 1 {
                assert_eq!(out.verdicts, [Verdict::Reply(DropReason::TtlExpired)]);
                assert_eq!(node.dropped(), [(DropReason::TtlExpired, 1)]);
                assert!(writes.is_empty() && out.sent.is_empty());
            } else {
                let one_less = Packet { ttl: ttl - 1, ..packet }.bytes();
                assert_eq!(out.sent[0].bytes, one_less);
                assert_eq!(writes, [plain(&one_less)]);
            }
        }
    }
}

/// Parses an ICMP error into type, code, the four bytes after the checksum, and the quote. Checks all other
/// fields.
fn read_error(reply: &[u8], offender: &[u8]) -> (u8, u8, u32, Vec<u8>) {
    assert_eq!(reply[..10], [0; 10], "an empty virtio header");
    let p = &reply[10..];
    assert!(ip_checksum_valid(p));
    let (header, protocol) = if p[0] >> 4 == 4 { (20, p[9]) } else { (40, p[6]) };
    let len = if header == 20 { word(p, 2) } else { 40 + word(p, 4) };
    assert_eq!(len, p.len());
    if header == 20 {
        assert_eq!((protocol, p[0]), (1, 0x45));
        assert_eq!(p[12..16], offender[16..20], "from the offender's destination");
        assert_eq!(p[16..20], offender[12..16], "to the sender");
        assert_eq!(fold(0, &p[20..]), 0xffff);
        assert!(p.len() <= 576, "RFC 1812 section 4.3.2.3");
    } else {
        assert_eq!(protocol, 58);
        assert_eq!(p[8..24], [&[0xfd, 0, 0, 1][..], &[0; 12]].concat(), "from this node");
        assert_eq!(p[24..40], offender[8..24], "to the sender");
        assert_eq!(fold(pseudo(p, 58, p.len() - 40).into(), &p[40..]), 0xffff);
        assert!(p.len() <= 1280, "RFC 4443 section 2.4 (c)");
    }
    let body = &p[header..];
    let rest = u32::from_be_bytes([body[4], body[5], body[6], body[7]]);
    assert!(body.len() >= 8 + offender.len().min(28), "the quote includes the ports");
    (body[0], body[1], rest, body[8..].to_vec())
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Sends a packet that is refused with an ICMP error, and returns the error's type, code and next four bytes.
fn refused(format: Format, packet: &[u8], read: &[u8], reason: DropReason) -> (u8, u8, u32) {
    let out = Node::new(0, format, MTU, BOTH).egress(&[read.to_vec()]);
    assert_eq!(out.verdicts, [Verdict::Reply(reason)]);
    assert!(out.sent.is_empty());
    let (kind, code, rest, quote) = read_error(&out.replies[0], packet);
    assert!(packet.starts_with(&quote));
    (kind, code, rest)
}

#[test]
fn a_packet_that_is_too_big_gets_an_error_with_the_mtu() {
    let sized =
        |v6: bool, len: usize| Packet { df: true, ..Packet::udp(v6, 1, len - if v6 { 48 } else { 28 }) };
    for v6 in [false, true] {
        for format in [vxlan(0), Format::Udp] {
            let fits = sized(v6, 1450).bytes();
            assert_eq!(
                Node::new(0, format, MTU, BOTH).egress(&[plain(&fits)]).verdicts,
                [Verdict::ToUnderlay(1)]
            );
        }
        let large = sized(v6, 1451).bytes();
        let expected = if v6 { (2, 0, 1450) } else { (3, 4, 1450) };
        assert_eq!(refused(vxlan(0), &large, &plain(&large), DropReason::TooBig), expected);
    }
    // Without DF no error is sent.
    let large = Packet { df: false, ..sized(false, 1451) };
    let out = Node::new(0, vxlan(0), MTU, BOTH).egress(&[plain(&large.bytes())]);
    assert_eq!(out.verdicts, [Verdict::Drop(DropReason::TooBig)]);
}

#[test]
fn the_mtu_applies_to_the_segments_of_a_super_packet() {
    for (v6, gso, headers) in [(false, 1, 40), (true, 4, 60)] {
        let packet = Packet { checksum: Checksum::Open, df: true, ..Packet::tcp(v6, 1, 10_000) };
        let read = |size: u16| with_virtio(1, gso, size, (packet.ip_len() as u16, 16), &packet.bytes());
        let out = Node::new(0, vxlan(0), MTU, BOTH).egress(&[read(MTU - headers)]);
        assert!(matches!(out.verdicts[0], Verdict::ToUnderlay(_)));
        let expected = if v6 { (2, 0, 1450) } else { (3, 4, 1450) };
        assert_eq!(
            refused(vxlan(0), &packet.bytes(), &read(MTU - headers + 1), DropReason::TooBig),
            expected
        );
    }
}

#[test]
fn a_destination_without_a_peer_is_unreachable() {
    for v6 in [false, true] {
        let mut packet = Packet::udp(v6, 1, 900).bytes();
        // Node A's own network has no peer.
        packet[if v6 { 27 } else { 17 }] = 1;
        crate::support::reference::finish(&mut packet);
        let expected = if v6 { (1, 0, 0) } else { (3, 0, 0) };
        for format in [vxlan(0), Format::Udp] {
            assert_eq!(refused(format, &packet, &plain(&packet), DropReason::NoRoute), expected);
        }
    }
}

/// A healthy node has no unknown destinations, though its kernel reports groups on every device.
#[test]
fn a_group_is_no_unknown_destination() {
    let destinations: [(bool, &[u8], DropReason); 7] = [
        (true, &[0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16], DropReason::Multicast),
        (true, &[0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], DropReason::Multicast),
        (true, &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], DropReason::NoRoute),
        (false, &[224, 0, 0, 22], DropReason::Multicast),
        (false, &[239, 255, 255, 250], DropReason::Multicast),
        (false, &[255, 255, 255, 255], DropReason::Multicast),
        (false, &[240, 0, 0, 1], DropReason::NoRoute),
    ];
    for (v6, destination, expected) in destinations {
        let mut packet = Packet::udp(v6, 1, 90).bytes();
        let at = if v6 { 24 } else { 16 };
        packet[at..at + destination.len()].copy_from_slice(destination);
        crate::support::reference::finish(&mut packet);
        for format in [vxlan(0), Format::Udp] {
            let out = Node::new(0, format, MTU, BOTH).egress(&[plain(&packet)]);
            let verdict = match expected {
                DropReason::Multicast => Verdict::Drop(expected),
                _ => Verdict::Reply(expected),
            };
            assert_eq!(
                (out.verdicts, out.replies.len()),
                (vec![verdict], usize::from(expected == DropReason::NoRoute))
            );
        }
    }
}

#[test]
fn an_expired_ttl_gets_an_error() {
    for v6 in [false, true] {
        let packet = Packet { ttl: 1, ..Packet::udp(v6, 1, 900) }.bytes();
        let expected = if v6 { (3, 0, 0) } else { (11, 0, 0) };
        assert_eq!(refused(Format::Udp, &packet, &plain(&packet), DropReason::TtlExpired), expected);
    }
}

#[test]
fn errors_and_later_fragments_are_not_answered() {
    let mut error = Packet::icmp(false, 60);
    error.payload[0] = 3;
    let fragment = Packet { fragment: 5, ..Packet::udp(false, 1, 60) };
    let mut error_v6 = Packet::icmp(true, 60);
    error_v6.payload[0] = 1;
    for packet in [error, fragment, error_v6] {
        let packet = Packet { ttl: 1, ..packet };
        let out = Node::new(0, Format::Udp, MTU, BOTH).egress(&[plain(&packet.bytes())]);
        assert_eq!(out.verdicts, [Verdict::Drop(DropReason::TtlExpired)]);
        assert!(out.replies.is_empty());
    }
}

#[test]
fn the_number_of_errors_per_batch_is_limited() {
    let packet = |port| Packet { ttl: 1, ports: (port, 53), ..Packet::udp(false, 1, 900) };
    let packets: Vec<_> = (0..40).map(|port| plain(&packet(port).bytes())).collect();
    let out = Node::new(0, Format::Udp, MTU, BOTH).egress(&packets);
    let replies = out.verdicts.iter().filter(|v| matches!(v, Verdict::Reply(_))).count();
    assert_eq!((replies, out.replies.len(), out.verdicts.len()), (16, 16, 40));
}

#[test]
fn an_ethernet_trailer_is_removed() {
    for v6 in [false, true] {
        let packet = Packet::udp(v6, 1, 3).bytes();
        let padded = [&packet[..], &[0xee; 12]].concat();
        let writes = Node::new(1, vxlan(1), MTU, BOTH).ingress(&[single(in_vxlan(0, &padded))]);
        assert_eq!(writes, [plain(&packet)]);
        let out = Node::new(0, vxlan(0), MTU, BOTH).egress(&[plain(&padded)]);
        assert_eq!(out.sent[0].bytes, in_vxlan(0, &packet));
    }
}
