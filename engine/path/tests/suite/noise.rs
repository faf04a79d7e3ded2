//! Random input with any segment size never panics, and every packet that it produces is valid.

use path::Format;
use proptest::prelude::*;

use crate::support::node::{Arrival, BOTH, MTU, Node, in_vxlan, single, vxlan};
use crate::support::reference::as_kernel;

fn noise() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![4 => any::<u8>(), 1 => Just(0u8), 1 => Just(255), 1 => Just(0x45), 1 => Just(0x60)];
    prop::collection::vec(byte, 0..400)
}

fn arrive(format: Format, arrivals: &[Arrival]) {
    for write in Node::new(1, format, MTU, BOTH).ingress(arrivals) {
        as_kernel(&write);
    }
}

proptest! {
    #[test]
    fn from_the_underlay(
        bytes in prop::collection::vec(noise(), 1..5),
        segment_size in 0u16..200,
        ecn in 0u8..4,
    ) {
        let bare = |b: &Vec<u8>| Arrival { bytes: b.clone(), segment_size, ecn };
        let framed = |b: &Vec<u8>| Arrival { bytes: in_vxlan(0, b), segment_size, ecn };
        arrive(Format::Udp, &bytes.iter().map(bare).collect::<Vec<_>>());
        arrive(vxlan(1), &bytes.iter().map(bare).collect::<Vec<_>>());
        arrive(vxlan(1), &bytes.iter().map(framed).collect::<Vec<_>>());
    }

    #[test]
    fn from_the_pods(bytes in prop::collection::vec(noise(), 1..5)) {
        for format in [Format::Udp, vxlan(0)] {
            let out = Node::new(0, format, MTU, BOTH).egress(&bytes);
            prop_assert_eq!(out.verdicts.len(), bytes.len());
        }
    }
}

#[test]
fn all_zeros_and_all_ones_of_every_size() {
    for byte in [0, 0xff] {
        for len in (0..200).chain([1472, 9000, 65_507]) {
            let bytes = vec![byte; len];
            for format in [Format::Udp, vxlan(1)] {
                let mut node = Node::new(1, format, MTU, BOTH);
                assert_eq!(node.ingress(&[single(bytes.clone())]), Vec::<Vec<u8>>::new());
                assert_eq!(node.counters.ingress.dropped_total(), 1);
                assert!(Node::new(0, format, MTU, BOTH).egress(std::slice::from_ref(&bytes)).sent.is_empty());
            }
        }
    }
}
