//! A worker that serves several queues of a device forwards from all of them, and each flow keeps its queue.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use engine::testing::ByHand;
use engine::{Engine, EngineConfig, Switches, TunnelConfig, WaitPolicy};
use io::memory::{self, MemoryConfig, MemoryOverlay, MemoryUnderlay, OverlayHandle, UnderlayHandle};
use io::netns;
use support::{FAR, MTU, NEAR, packet, table};
use wire::addr::Mtu;
use wire::{ipv4, udp, virtio};

const FLOWS: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(20);
/// As many single packets as a queue may bring in a row, and as all queues may bring in a turn.
const QUANTUM: usize = 64;
const TURN: usize = 128;

/// Builds a UDP super-packet of one flow as a TUN delivers it.
fn super_packet(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), gso_size: u16, segments: usize) -> Vec<u8> {
    let payload = usize::from(gso_size) * segments;
    let mut bytes = packet(src, dst);
    bytes.resize(20 + 8 + payload, 0x5a);
    let ip = ipv4::Header::parse(&bytes).unwrap();
    ipv4::Header { total_len: bytes.len() as u16, ..ip }.emit(&mut bytes).unwrap();
    let len = (8 + payload) as u16;
    udp::Header { src_port: src.1, dst_port: dst.1, len, checksum: 0 }.emit(&mut bytes[20..]).unwrap();
    let header = virtio::Header {
        flags: virtio::NEEDS_CSUM,
        gso: virtio::Gso::UdpL4,
        ecn: false,
        hdr_len: 0,
        gso_size,
        csum_start: 20,
        csum_offset: 6,
    };
    let mut read = vec![0; virtio::HEADER_LEN];
    header.emit(&mut read).unwrap();
    read.extend(bytes);
    read
}

fn ports(packet: &[u8]) -> (u16, u16) {
    let header = udp::Header::parse(&packet[20..]).unwrap();
    (header.src_port, header.dst_port)
}

#[test]
fn every_queue_of_a_worker_is_read_and_a_flow_is_written_to_one_of_them() {
    let pods: Vec<_> = (0..3).map(|_| memory::overlay()).collect();
    let (queues, pods): (Vec<_>, Vec<_>) = pods.into_iter().unzip();
    let (port, peer) = memory::underlay("192.0.2.1:8285".parse().unwrap(), MemoryConfig::default());
    let remote = "192.0.2.2:8285".parse().unwrap();
    let mut worker = ByHand::new(queues, port, table(remote), MTU, 4, Switches::default()).unwrap();
    for (pod, number) in pods.iter().zip(1..) {
        let packet = packet((NEAR, number), (FAR, 9));
        pod.inject(&[&[0; virtio::HEADER_LEN], &packet[..]].concat());
    }
    worker.turn().unwrap();
    let sent: Vec<_> = peer.collect().iter().map(|sent| (sent.to, ports(&sent.bytes))).collect();
    assert_eq!(sent, [1, 2, 3].map(|number| (remote, (number, 9))), "one from each queue");

    let mut used = BTreeSet::new();
    for number in 1..=FLOWS {
        let mut chosen = BTreeSet::new();
        for _ in 0..3 {
            let bytes = packet((FAR, number), (NEAR, 9));
            let datagram = memory::Datagram { from: remote, to: remote, lane: 0, ecn: 0, bytes };
            peer.inject(datagram);
            worker.rouse();
            worker.turn().unwrap();
            chosen.extend((0..3).filter(|queue| !pods[*queue].collect().is_empty()));
        }
        assert_eq!(chosen.len(), 1, "a flow changed its queue");
        used.extend(chosen);
    }
    assert_eq!(used.len(), 3, "a queue has no flow");
    assert_eq!(worker.counter("ingress.delivered"), u64::from(FLOWS) * 3);
    assert_eq!(worker.counter("overlay.reads") + worker.counter("overlay.writes"), 3 + u64::from(FLOWS) * 3);
}

/// Nobody can work out from its addresses and ports which queue a flow will have.
#[test]
fn the_queue_of_a_flow_differs_from_one_start_to_the_next() {
    let chosen = || {
        let (queues, pods): (Vec<_>, Vec<_>) = (0..4).map(|_| memory::overlay()).unzip();
        let (port, peer) = memory::underlay("192.0.2.1:8285".parse().unwrap(), MemoryConfig::default());
        let remote = "192.0.2.2:8285".parse().unwrap();
        let mut worker = ByHand::new(queues, port, table(remote), MTU, 4, Switches::default()).unwrap();
        let mut of = |number: u16| {
            let bytes = packet((FAR, number), (NEAR, 9));
            peer.inject(memory::Datagram { from: remote, to: remote, lane: 0, ecn: 0, bytes });
            worker.rouse();
            worker.turn().unwrap();
            pods.iter().position(|pod| !pod.collect().is_empty()).unwrap()
        };
        let first: Vec<usize> = (1..=FLOWS).map(&mut of).collect();
        assert_eq!((1..=FLOWS).map(&mut of).collect::<Vec<usize>>(), first, "a flow changed its queue");
        first
    };
    assert_ne!(chosen(), chosen());
}

/// Builds a worker with two queues and one source port, so that packets are sent in the order in which they
/// were read. Returns it with the pods' ends of its queues and the peer's end of its port.
fn two_queues() -> (ByHand<MemoryOverlay, MemoryUnderlay>, OverlayHandle, OverlayHandle, UnderlayHandle) {
    let (first, first_pod) = memory::overlay();
    let (second, second_pod) = memory::overlay();
    let (port, peer) = memory::underlay("192.0.2.1:8285".parse().unwrap(), MemoryConfig::default());
    let remote = "192.0.2.2:8285".parse().unwrap();
    let worker = ByHand::new(vec![first, second], port, table(remote), MTU, 1, Switches::default());
    (worker.unwrap(), first_pod, second_pod, peer)
}

/// Takes what was sent to the peer; returns the inner source ports.
fn sources(peer: &UnderlayHandle) -> Vec<u16> {
    peer.collect().iter().map(|sent| ports(&sent.bytes).0).collect()
}

#[test]
fn a_full_queue_delays_the_others_by_a_quantum() {
    let (mut worker, full_pod, other_pod, peer) = two_queues();
    let inject = |pod: &OverlayHandle, port: u16| {
        pod.inject(&[&[0; virtio::HEADER_LEN], &packet((NEAR, port), (FAR, 9))[..]].concat());
    };
    (0..3 * TURN).for_each(|_| inject(&full_pod, 1));
    inject(&other_pod, 2);
    worker.turn().unwrap();
    let sent = sources(&peer);
    assert_eq!(sent.len(), TURN, "a turn is bounded");
    assert_eq!(sent.iter().position(|port| *port == 2), Some(QUANTUM));
    // What is left is read in the next turns, without another report of the waiter.
    (0..3).for_each(|_| worker.turn().unwrap());
    assert_eq!(peer.collect().len(), 2 * TURN + 1);

    // The next turn begins where the last one ended.
    (0..2 * TURN).for_each(|_| inject(&full_pod, 1));
    (0..2 * TURN).for_each(|_| inject(&other_pod, 2));
    worker.rouse();
    worker.turn().unwrap();
    let sent = sources(&peer);
    let of = |port: u16| sent.iter().filter(|sent| **sent == port).count();
    assert_eq!((of(1), of(2)), (QUANTUM, QUANTUM), "each queue has its share of a turn");
}

#[test]
fn a_queue_of_small_segments_is_charged_for_the_datagrams_that_it_makes() {
    const SEGMENTS: usize = 800;
    let (mut worker, full_pod, other_pod, peer) = two_queues();
    let super_packet = super_packet((NEAR, 1), (FAR, 9), 76, SEGMENTS);
    let single = [&[0; virtio::HEADER_LEN], &packet((NEAR, 2), (FAR, 9))[..]].concat();
    (0..12).for_each(|_| full_pod.inject(&super_packet));
    (0..2 * TURN).for_each(|_| other_pod.inject(&single));
    worker.turn().unwrap();
    let sent = sources(&peer);
    assert_eq!(sent.iter().position(|port| *port == 2), Some(SEGMENTS), "one super-packet is a quantum");
    assert!(sent[SEGMENTS..SEGMENTS + QUANTUM].iter().all(|port| *port == 2));
    assert_eq!(sent.len(), 2 * SEGMENTS + TURN - 2);

    // What one queue alone may bring is bounded, too: once the singles are sent, only the others are left.
    worker.turn().unwrap();
    peer.collect();
    worker.turn().unwrap();
    let sent = sources(&peer);
    assert_eq!(sent.iter().filter(|port| **port == 1).count(), 4 * SEGMENTS);
}

/// Runs `test` on its own thread in its own network namespace, if that is permitted.
fn in_scratch(test: impl FnOnce() + Send + 'static) {
    let body = move || match netns::enter_scratch() {
        Ok(()) => test(),
        Err(error) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI requires network namespaces: {error}");
            eprintln!("skipped: {error}");
        }
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn one_worker_forwards_from_both_queues_of_a_device() {
    in_scratch(|| {
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = EngineConfig {
            workers: 1,
            queues: 2,
            memory: 0,
            pin: false,
            realtime: false,
            wait: WaitPolicy::default(),
            switches: Switches::default(),
        };
        let tunnel = TunnelConfig {
            device: "lqueues0".into(),
            persist: false,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            listen_besides: Vec::new(),
            send_from: None,
            table: Arc::new(table(peer.local_addr().unwrap())),
            mtu: Mtu::new(MTU.into()).unwrap(),
            fan: 1,
            wireguard: None,
        };
        let engine = Engine::start(&config, &[tunnel]).unwrap();
        let chosen = engine.chosen().next().unwrap().clone();
        assert_eq!(chosen.workers, 1);
        if !chosen.features.multiqueue {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI requires multi-queue");
            return eprintln!("skipped: {:?}", chosen.notes);
        }
        netns::set_address("lqueues0", NEAR, 15).unwrap();
        netns::set_up("lqueues0").unwrap();

        // Egress: the kernel spreads the flows over both queues.
        let pods: Vec<_> = (0..FLOWS).map(|_| UdpSocket::bind((NEAR, 0)).unwrap()).collect();
        let sources: BTreeSet<u16> = pods.iter().map(|pod| pod.local_addr().unwrap().port()).collect();
        pods.iter().for_each(|pod| _ = pod.send_to(b"out", (FAR, 9)).unwrap());
        let mut seen = BTreeSet::new();
        let mut room = [0; 2048];
        while seen != sources {
            let (len, _) = peer.recv_from(&mut room).expect("a flow of each queue");
            if room[..len].ends_with(b"out") {
                seen.insert(ports(&room[..len]).0);
            }
        }

        // Ingress: each flow uses its own queue.
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, chosen.source_ports[0]));
        for pod in &pods {
            let own = pod.local_addr().unwrap().port();
            peer.send_to(&packet((FAR, 9), (NEAR, own)), to).unwrap();
            pod.set_read_timeout(Some(PATIENCE)).unwrap();
            let (len, from) = pod.recv_from(&mut room).expect("a datagram");
            assert_eq!((len, from), (32, SocketAddr::from((FAR, 9))));
        }
        engine.stop();
        let status = engine.status();
        assert_eq!(status.tunnels[0].workers.len(), 1, "one page for one worker");
        assert!(status.tunnels[0].total("overlay.reads") >= u64::from(FLOWS));
        assert_eq!(status.tunnels[0].total("ingress.delivered"), u64::from(FLOWS));
    });
}
