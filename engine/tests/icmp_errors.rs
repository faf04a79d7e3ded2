//! The number of ICMP errors to pods, by a worker that is turned by hand.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use engine::Switches;
use engine::testing::ByHand;
use io::memory::{self, MemoryConfig, MemoryOverlay, MemoryUnderlay, OverlayHandle};
use path::{FibBuilder, Format, PeerSpec};
use wire::{ipv4, virtio};

const MTU: u16 = 1422;
/// The packets of a flood.
const FLOOD: u16 = 52_308;

struct Node {
    worker: ByHand<MemoryOverlay, MemoryUnderlay>,
    pods: OverlayHandle,
}

impl Node {
    fn new() -> Node {
        let mut fib = FibBuilder::new(Format::Udp).reply_from(Some(Ipv4Addr::new(10, 1, 0, 0)), None);
        let remote = SocketAddr::from(([192, 0, 2, 2], 8285));
        fib.add("10.2.0.0/24".parse().unwrap(), PeerSpec { remote, mac: None, mtu: MTU }).unwrap();
        let (overlay, pods) = memory::overlay();
        let (underlay, _) = memory::underlay(remote, MemoryConfig::default());
        let fib = fib.build().unwrap();
        let worker = ByHand::new(vec![overlay], underlay, fib, MTU, 1, Switches::default()).unwrap();
        Node { worker, pods }
    }

    /// Sends packets, and returns the destinations of the ICMP errors.
    fn send(&mut self, packets: impl Iterator<Item = Vec<u8>>) -> Vec<Ipv4Addr> {
        let mut errors = Vec::new();
        for (number, packet) in packets.enumerate() {
            self.pods.inject(&packet);
            if number % 100 == 99 {
                self.turn(&mut errors);
            }
        }
        self.turn(&mut errors);
        errors
    }

    fn turn(&mut self, errors: &mut Vec<Ipv4Addr>) {
        self.worker.rouse();
        self.worker.turn().unwrap();
        for error in self.pods.collect() {
            let header = ipv4::Header::parse(&error[virtio::HEADER_LEN..]).unwrap();
            assert_eq!(header.protocol, 1);
            errors.push(header.dst);
        }
    }
}

fn pod(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, host)
}

/// Builds a UDP packet that gets an error: too big, with DF; or expired; or to a node that does not exist.
fn packet(kind: &str, src: Ipv4Addr, port: u16) -> Vec<u8> {
    let len = if kind == "too big" { MTU + 1 } else { 100 };
    let mut packet = vec![0; virtio::HEADER_LEN + usize::from(len)];
    let ip = &mut packet[virtio::HEADER_LEN..];
    let header = ipv4::Header {
        header_len: 20,
        tos: 0,
        total_len: len,
        id: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: if kind == "expired" { 1 } else { 64 },
        protocol: 17,
        checksum: 0,
        src,
        dst: Ipv4Addr::new(10, if kind == "nowhere" { 3 } else { 2 }, 0, 7),
    };
    header.emit(ip).unwrap();
    ipv4::fill_checksum(&mut ip[..20]);
    ip[20..22].copy_from_slice(&port.to_be_bytes());
    ip[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    packet
}

#[test]
fn a_flood_is_answered_a_few_times_and_leaves_other_pods_their_errors() {
    for kind in ["too big", "expired", "nowhere"] {
        let mut node = Node::new();
        // One flow; then all ports, in the name of another pod.
        let one = node.send((0..FLOOD).map(|_| packet(kind, pod(5), 1)));
        assert_eq!(one, vec![pod(5); 6], "{kind}");
        let forged = node.send((0..FLOOD).map(|port| packet(kind, pod(6), port)));
        assert!(
            (1..=50).contains(&forged.len()) && forged.iter().all(|to| *to == pod(6)),
            "{}",
            forged.len()
        );
        // Other pods, and another flow of the first.
        for (src, port) in [(pod(7), 1), (pod(8), 1), (pod(5), 2)] {
            assert_eq!(node.send(std::iter::once(packet(kind, src, port))), [src], "{kind}");
        }
        node.worker.advance(Duration::from_secs(1));
        assert_eq!(node.send((0..FLOOD).map(|_| packet(kind, pod(5), 1))), [pod(5)], "{kind}");
        let (sent, suppressed) =
            (node.worker.counter("egress.replies"), node.worker.counter("egress.suppressed_replies"));
        assert_eq!(sent, (one.len() + forged.len() + 4) as u64);
        assert_eq!(sent + suppressed, 3 * u64::from(FLOOD) + 3);
    }
}

#[test]
fn errors_to_any_number_of_forged_sources_are_bounded() {
    let mut node = Node::new();
    let forged = |from: u32| (0..u32::from(FLOOD)).map(move |n| packet("too big", (from + n).into(), 1));
    assert_eq!(node.send(forged(0x0a40_0000)).len(), 200);
    node.worker.advance(Duration::from_millis(50));
    assert_eq!(node.send(forged(0x0a50_0000)).len(), 50);
}
