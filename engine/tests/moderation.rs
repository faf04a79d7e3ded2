//! A worker pauses for bulk streams and for floods, and never between a request and its response.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use engine::Switches;
use engine::testing::ByHand;
use io::memory::{
    self, Datagram, MemoryConfig, MemoryOverlay, MemoryUnderlay, OverlayHandle, UnderlayHandle,
};
use path::{Fib, FibBuilder, Format, PeerSpec};
use wire::{ipv4, virtio};

const MTU: u16 = 1472;
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const REMOTE: &str = "192.0.2.2:8285";
const PATIENCE: Duration = Duration::from_secs(20);
/// Packets in each direction per turn: far less than a bulk turn has, in bytes.
const BURST: usize = 30;

/// Builds the smallest packet that is forwarded.
fn packet(src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let ip = ipv4::Header {
        header_len: 20,
        tos: 0,
        total_len: bytes.len() as u16,
        id: 1,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: 253,
        checksum: 0,
        src,
        dst,
    };
    ip.emit(&mut bytes).unwrap();
    bytes
}

struct Node {
    worker: ByHand<MemoryOverlay, MemoryUnderlay>,
    pod: OverlayHandle,
    peer: UnderlayHandle,
}

impl Node {
    fn new() -> Node {
        let (queue, pod) = memory::overlay();
        let (port, peer) = memory::underlay("192.0.2.1:8285".parse().unwrap(), MemoryConfig::default());
        let mut worker = ByHand::new(vec![queue], port, table(), MTU, 1, Switches::default()).unwrap();
        worker.moderate(Duration::from_micros(1));
        Node { worker, pod, peer }
    }

    /// Runs a turn that finds this many packets from the pods and from the peer. Returns how often the worker
    /// has paused so far.
    fn turn(&mut self, out: usize, into: usize) -> u64 {
        let read = [&[0; virtio::HEADER_LEN], &packet(NEAR, FAR)[..]].concat();
        (0..out).for_each(|_| self.pod.inject(&read));
        let remote = REMOTE.parse().unwrap();
        for _ in 0..into {
            let bytes = packet(FAR, NEAR);
            self.peer.inject(Datagram { from: remote, to: remote, lane: 0, ecn: 0, bytes });
        }
        self.worker.rouse();
        self.worker.turn().unwrap();
        assert_eq!(self.peer.collect().len(), out);
        assert_eq!(self.pod.collect().len(), into);
        self.worker.counter("loop.moderated")
    }
}

fn table() -> Fib {
    let mut builder = FibBuilder::new(Format::Udp);
    let spec = PeerSpec { remote: REMOTE.parse().unwrap(), mac: None, mtu: MTU };
    builder.add("198.18.1.0/24".parse().unwrap(), spec).unwrap();
    builder.build().unwrap()
}

#[test]
fn floods_in_either_direction_are_moderated() {
    for (out, into) in [(BURST, 0), (0, BURST), (BURST, 1)] {
        let mut node = Node::new();
        let began = Instant::now();
        while node.turn(out, into) == 0 {
            assert!(began.elapsed() < PATIENCE, "no pause in a flood of {out} out and {into} in");
        }
    }
}

#[test]
fn requests_and_their_responses_never_wait() {
    let mut node = Node::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(20) {
        assert_eq!(node.turn(BURST, BURST), 0);
    }
    // Idle turns do not pause either.
    assert_eq!((0..100).map(|_| node.turn(0, 0)).max(), Some(0));
}
