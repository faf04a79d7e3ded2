use std::time::Duration;

use super::*;
use crate::PeerId;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pair(options: MemoryConfig) -> (MemoryUnderlay, MemoryUnderlay) {
    underlay_pair(address("192.0.2.1:8472"), address("192.0.2.2:8472"), options)
}

/// Builds a run of 25 bytes in datagrams of 10, two spans each, with an empty span at the end.
fn run() -> (Vec<u8>, Vec<Range<u32>>, Transmit) {
    let spans = vec![0..3, 3..10, 10..13, 13..20, 20..23, 23..25, 25..25];
    let transmit = Transmit {
        to: address("192.0.2.2:8472"),
        peer: PeerId(0),
        lane: 5,
        first_span: 0,
        span_count: 7,
        segment_size: 10,
        segments: 3,
        ecn: 1,
    };
    ((0..25).collect(), spans, transmit)
}

#[test]
fn packets_cross_the_overlay_in_both_directions() {
    let (mut port, pod) = overlay();
    let mut buffer = [0; 8];
    assert_eq!(port.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    pod.inject(b"first");
    pod.inject(b"longer than the buffer");
    assert_eq!(port.read(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"first");
    assert_eq!(port.read(&mut buffer).unwrap(), 8);
    port.write(b"abcdef", &[4..6, 0..2]).unwrap();
    let error = port.write(b"abcdef", &[4..7]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(pod.collect(), [b"efab"]);
    assert_eq!(pod.collect(), Vec::<Vec<u8>>::new());
    let counters = port.counters();
    assert_eq!((counters.reads, counters.read_bytes, counters.would_block), (2, 13, 1));
    assert_eq!((counters.writes, counters.write_bytes, counters.errors), (1, 4, 1));
}

#[test]
fn options_control_how_runs_are_split_and_joined() {
    for (segment, gro) in [(true, true), (true, false), (false, true), (false, false)] {
        let shape = Shape { slots: 4, len: 100 };
        let (mut a, mut b) = pair(MemoryConfig { shape, segment, gro, ..MemoryConfig::default() });
        let (arena, spans, transmit) = run();
        let outcome = a.transmit(&arena, &spans, &[transmit]);
        assert_eq!(outcome, TransmitOutcome { sent: 3, dropped_full: 0, dropped_error: 0, too_big: None });
        assert_eq!(a.counters().writes, if segment { 1 } else { 3 });
        let mut slots = vec![0; 400];
        let mut out = Vec::with_capacity(4);
        b.receive(&mut slots, 0, &mut out).unwrap();
        let source = address("192.0.2.1:49157");
        if gro {
            assert_eq!(out, [Received { at: 0, len: 25, segment_size: 10, ecn: 1, source }]);
            assert_eq!(slots[..25], arena);
        } else {
            let lens: Vec<(u32, u32, u16)> = out.iter().map(|r| (r.at, r.len, r.segment_size)).collect();
            assert_eq!(lens, [(0, 10, 0), (100, 10, 0), (200, 5, 0)]);
        }
        assert_eq!(b.counters().read_datagrams, 3);
        assert_eq!(b.receive(&mut slots, 0, &mut out).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn only_datagrams_of_equal_flow_size_and_ecn_are_joined() {
    let (mut port, wire) = underlay(
        address("192.0.2.1:8472"),
        MemoryConfig { shape: Shape { slots: 20, len: 100 }, ..MemoryConfig::default() },
    );
    let base = Datagram {
        from: address("192.0.2.2:50000"),
        to: address("192.0.2.1:8472"),
        lane: 0,
        ecn: 0,
        bytes: vec![1; 10],
    };
    let other_port = Datagram { from: address("192.0.2.2:50001"), ..base.clone() };
    let marked = Datagram { ecn: 3, ..base.clone() };
    let long = Datagram { bytes: vec![2; 11], ..base.clone() };
    let empty = Datagram { bytes: Vec::new(), ..base.clone() };
    for datagram in [&base, &other_port, &marked, &base, &long, &base, &base, &empty, &base, &base] {
        wire.inject(datagram.clone());
    }
    let mut out = Vec::with_capacity(20);
    port.receive(&mut [0; 2000], 0, &mut out).unwrap();
    let runs: Vec<(u32, u16)> = out.iter().map(|r| (r.len, r.segment_size)).collect();
    // A shorter datagram ends a run; a longer or empty one is not joined to the previous one.
    assert_eq!(runs, [(10, 0), (10, 0), (10, 0), (10, 0), (21, 11), (10, 0), (0, 0), (20, 10)]);
}

#[test]
fn full_queues_invalid_spans_and_short_slots_are_counted() {
    let (mut a, mut b) =
        pair(MemoryConfig { shape: Shape { slots: 4, len: 8 }, capacity: 4, ..MemoryConfig::default() });
    let (arena, spans, transmit) = run();
    let bad = Transmit { first_span: 7, ..transmit };
    let outcome = a.transmit(&arena, &spans, &[transmit, bad, transmit]);
    assert_eq!(outcome, TransmitOutcome { sent: 4, dropped_full: 2, dropped_error: 3, too_big: None });
    assert_eq!((a.counters().write_full, a.counters().errors), (2, 1));
    let mut out = Vec::with_capacity(4);
    b.receive(&mut [0; 32], 0, &mut out).unwrap();
    assert_eq!(out.iter().map(|r| (r.at, r.len)).collect::<Vec<_>>(), [(16, 5)]);
    assert_eq!(b.counters().truncated, 3);
    assert_eq!(b.receive(&mut [], 0, &mut out).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn packets_queued_before_and_after_registration_are_reported() {
    let (port, pod) = overlay();
    let (a, mut b) = pair(MemoryConfig::default());
    let mut waiter = Waiter::new().unwrap();
    pod.inject(b"early");
    port.register(&mut waiter, 3).unwrap();
    a.register(&mut waiter, 4).unwrap();
    assert!(a.register(&mut waiter, 64).is_err());
    let ready = waiter.wait(Some(Duration::ZERO)).unwrap();
    assert!(ready.contains(3) && !ready.contains(4));
    let (arena, spans, transmit) = run();
    b.transmit(&arena, &spans, &[transmit]);
    assert_eq!(waiter.wait(Some(Duration::ZERO)).unwrap().bits(), 1 << 4);
}
