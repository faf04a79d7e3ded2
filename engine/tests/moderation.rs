//! A worker pauses for bulk streams and for floods, and never between a request and its response.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

mod support;

use std::time::{Duration, Instant};

use engine::Switches;
use engine::testing::ByHand;
use io::memory::{
    self, Datagram, MemoryConfig, MemoryOverlay, MemoryUnderlay, OverlayHandle, UnderlayHandle,
};
use support::{FAR, MTU, NEAR, packet, table};
use wire::virtio;

const REMOTE: &str = "192.0.2.2:8285";
const PATIENCE: Duration = Duration::from_secs(20);
/// Packets in each direction per turn: far less than a bulk turn has, in bytes.
const BURST: usize = 30;

struct Node {
    worker: ByHand<MemoryOverlay, MemoryUnderlay>,
    pod: OverlayHandle,
    peer: UnderlayHandle,
}

impl Node {
    fn new() -> Node {
        let (queue, pod) = memory::overlay();
        let (port, peer) = memory::underlay("192.0.2.1:8285".parse().unwrap(), MemoryConfig::default());
        let mut worker =
            ByHand::new(vec![queue], port, table(REMOTE.parse().unwrap()), MTU, 1, Switches::default())
                .unwrap();
        worker.moderate(Duration::from_micros(1));
        Node { worker, pod, peer }
    }

    /// Runs a turn that finds this many packets from the pods and from the peer. Returns how often the worker
    /// has paused so far.
    fn turn(&mut self, out: usize, into: usize) -> u64 {
        let read = [&[0; virtio::HEADER_LEN], &packet((NEAR, 1), (FAR, 9))[..]].concat();
        (0..out).for_each(|_| self.pod.inject(&read));
        let remote = REMOTE.parse().unwrap();
        for _ in 0..into {
            let bytes = packet((FAR, 9), (NEAR, 1));
            self.peer.inject(Datagram { from: remote, to: remote, lane: 0, ecn: 0, bytes });
        }
        self.worker.rouse();
        self.worker.turn().unwrap();
        assert_eq!(self.peer.collect().len(), out);
        assert_eq!(self.pod.collect().len(), into);
        self.worker.counter("loop.moderated")
    }
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
