//! IP in IP: the outer header, and the round trip between two nodes for every form in which a raw socket
//! delivers packets.

use path::{DropReason, Format, Ipip};
use proptest::prelude::*;

use crate::support::node::{Arrival, BOTH, MTU, Node, plain, single};
use crate::support::packet::{Checksum, Packet, TCP};
use crate::support::reference::{as_kernel, cut, flows};

pub(crate) fn ipip(node: usize) -> Format {
    Format::Ipip(Ipip { local: [192, 0, 2, node as u8 + 1].into() })
}

/// Passes a datagram through a sending raw socket with IP_HDRINCL and a receiving one.
fn as_raw(mut datagram: Vec<u8>) -> Arrival {
    let total = datagram.len() as u16;
    datagram[2..4].copy_from_slice(&total.to_be_bytes());
    Arrival { ecn: datagram[1] & 3, ..single(datagram) }
}

/// Builds a datagram of a kernel ipip peer, with options, an id and correct lengths.
pub(crate) fn from_kernel(inner: &[u8], options: usize) -> Arrival {
    let mut outer = vec![0x45 + options as u8, 0, 0, 0, 7, 7, 0, 0, 64, 4, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    outer.extend(vec![1; 4 * options]);
    outer.extend(inner);
    as_raw(outer)
}

fn ipv4() -> impl Strategy<Value = Packet> {
    let protocol = prop::sample::select(vec![TCP, 17, 1, 132]);
    (protocol, any::<u8>(), 1u8.., any::<bool>(), any::<u16>(), 0usize..1380, any::<u32>()).prop_map(
        |(protocol, tos, ttl, df, id, len, seq)| Packet {
            protocol,
            tos,
            ttl,
            df,
            id: if df { 0 } else { id },
            payload: crate::support::packet::pattern(seq, len),
            ..Packet::tcp(false, seq, 0)
        },
    )
}

proptest! {
    #[test]
    fn one_node_strips_what_the_other_encapsulates(packets in prop::collection::vec(ipv4(), 1..40)) {
        let (mut a, mut b) = (Node::new(0, ipip(0), MTU, BOTH), Node::new(1, ipip(1), MTU, BOTH));
        let inner: Vec<_> = packets.iter().map(Packet::bytes).collect();
        let sent: Vec<_> = inner.iter().flat_map(|p| a.egress(&[plain(p)]).sent).collect();
        for (datagram, packet) in sent.iter().zip(&packets) {
            let df = if packet.df { 0x40 } else { 0 };
            let (ecn, ttl) = (packet.tos & 3, packet.ttl);
            let id = [datagram.bytes[4], datagram.bytes[5]];
            prop_assert_eq!(id != [0, 0], packet.df, "the kernel fills in the id of packets without DF");
            let outer = [0x45, ecn, 0, 0, id[0], id[1], df, 0, ttl, 4, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
            prop_assert_eq!(&datagram.bytes[..20], &outer);
            prop_assert_eq!(datagram.ecn, 0, "ECN is in the header");
        }
        let arrivals: Vec<_> = sent.into_iter().map(|datagram| as_raw(datagram.bytes)).collect();
        let writes = b.ingress(&arrivals);
        prop_assert_eq!(b.dropped(), []);
        let got: Vec<_> = writes.iter().flat_map(|write| as_kernel(write)).collect();
        prop_assert_eq!(flows(&got), flows(&inner));
    }

    /// A device that joins segments of one flow leaves the inner checksum open and does not report the
    /// segment size. Of a connection without a SYN, every host accepts 256 bytes.
    #[test]
    fn joined_segments_of_a_kernel_peer_are_cut_again(
        len in 1500usize..40_000,
        seq: u32,
        options in 0usize..3,
    ) {
        let packet = Packet { checksum: Checksum::Open, ..Packet::tcp(false, seq, len) };
        let mut node = Node::new(1, ipip(1), MTU, BOTH);
        let writes = node.ingress(&[from_kernel(&packet.bytes(), options)]);
        prop_assert_eq!(node.dropped(), []);
        let got: Vec<_> = writes.iter().flat_map(|write| as_kernel(write)).collect();
        prop_assert_eq!(got, cut(&packet.bytes(), 256));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), ecn in 0u8..4) {
        Node::new(1, ipip(1), MTU, BOTH).ingress(&[Arrival { ecn, ..single(bytes) }]);
    }

    #[test]
    fn a_changed_byte_of_the_outer_header_never_panics(packet in ipv4(), at in 0usize..20, value: u8) {
        let mut arrival = from_kernel(&packet.bytes(), 0);
        arrival.bytes[at] = value;
        Node::new(1, ipip(1), MTU, BOTH).ingress(&[arrival]);
    }
}

#[test]
fn ipv6_and_congestion_without_ecn_support_are_dropped_by_name() {
    let mut node = Node::new(1, ipip(1), MTU, BOTH);
    assert!(node.ingress(&[from_kernel(&Packet::udp(true, 1, 9).bytes(), 0)]).is_empty());
    assert_eq!(node.dropped(), [(DropReason::NotIp, 1)]);
    let mut node = Node::new(1, ipip(1), MTU, BOTH);
    let without_ecn = Packet { tos: 0, ..Packet::udp(false, 1, 9) };
    assert!(node.ingress(&[Arrival { ecn: 3, ..from_kernel(&without_ecn.bytes(), 0) }]).is_empty());
    assert_eq!(node.dropped(), [(DropReason::EcnUnheard, 1)]);
}
