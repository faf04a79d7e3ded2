use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::*;
use crate::PeerId;
use crate::mask::{self, Feature};
use crate::scratch;

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";
const SLOT: usize = 65_535;
const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn config(listen: &str) -> UdpConfig {
    UdpConfig {
        listen: listen.parse().unwrap(),
        send_from: None,
        fan: 0,
        shape: Shape { slots: MAX_SLOTS, len: SLOT },
        segment: true,
        gro: true,
        mmsg: true,
        own_path_mtu: true,
        receive_buffer: 8 << 20,
        send_buffer: 8 << 20,
    }
}

fn port(config: &UdpConfig) -> UdpPort {
    open(config, 1).unwrap().pop().unwrap()
}

/// Opens a port without UDP_GRO.
fn plain(listen: &str) -> UdpPort {
    port(&UdpConfig { gro: false, ..config(listen) })
}

/// Builds a run of `count` datagrams of `size` bytes, the last of `tail`, each with a header and a payload
/// span.
fn run_of(size: usize, tail: usize, count: usize, to: SocketAddr) -> (Vec<u8>, Vec<Range<u32>>, Transmit) {
    let mut arena = Vec::new();
    let mut spans = Vec::new();
    for index in 0..count {
        let len = if index + 1 == count { tail } else { size };
        let start = arena.len() as u32;
        arena.extend((0..len).map(|byte| (byte * 7 + index * 13) as u8));
        let middle = start + (len as u32).min(8);
        spans.push(start..middle);
        spans.push(middle..start + len as u32);
    }
    let transmit = Transmit {
        to,
        peer: PeerId(0),
        lane: 0,
        first_span: 0,
        span_count: spans.len() as u32,
        segment_size: size as u16,
        segments: count as u16,
        ecn: 0,
    };
    (arena, spans, transmit)
}

fn pieces(arena: &[u8], size: usize) -> Vec<Vec<u8>> {
    arena.chunks(size).map(<[u8]>::to_vec).collect()
}

fn times(datagrams: &[Vec<u8>], count: usize) -> Vec<Vec<u8>> {
    std::iter::repeat_n(datagrams, count).flatten().cloned().collect()
}

/// Receives one batch, waiting for it if necessary.
fn next(port: &mut UdpPort, arena: &mut [u8], out: &mut Vec<Received>) {
    while let Err(error) = port.receive(arena, 0, out) {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        wait_for(port);
    }
}

/// Waits until there is a datagram or an error to fetch.
fn wait_for(port: &UdpPort) {
    let mut waiter = Waiter::new().unwrap();
    port.register(&mut waiter, 0).unwrap();
    assert!(waiter.wait(LONG).unwrap().contains(0), "no datagram arrived");
}

/// Receives runs until they add up to `datagrams`.
fn receive(port: &mut UdpPort, datagrams: usize) -> Vec<(Received, Vec<u8>)> {
    let mut arena = vec![0; 16 * SLOT];
    let mut batch = Vec::with_capacity(16);
    let mut all = Vec::new();
    let mut seen = 0;
    while seen < datagrams {
        next(port, &mut arena, &mut batch);
        for received in &batch {
            let at = received.at as usize;
            let bytes = arena[at..at + received.len as usize].to_vec();
            seen += match received.segment_size {
                0 => 1,
                size => bytes.len().div_ceil(usize::from(size)),
            };
            all.push((*received, bytes));
        }
    }
    assert_eq!(seen, datagrams);
    all
}

fn split(received: Vec<(Received, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    for (received, bytes) in received {
        match received.segment_size {
            0 => datagrams.push(bytes),
            size => datagrams.extend(pieces(&bytes, usize::from(size))),
        }
    }
    datagrams
}

/// Shapes of a run: datagram size, last datagram's size, count.
const SHAPES: [(usize, usize, usize); 7] = [
    (1400, 1400, 1),
    (1400, 1400, 2),
    (1400, 1, 10),
    (1400, 1400, 45),
    (1400, 700, 46),
    (900, 900, 64),
    (1, 1, 64),
];

#[test]
fn runs_arrive_as_sent_with_every_combination_of_features() {
    for (listen, segment, gro, mmsg) in [
        (V4, true, true, true),
        (V4, true, false, true),
        (V4, false, true, true),
        (V4, false, false, true),
        (V4, true, true, false),
        (V4, false, false, false),
        (V6, true, true, true),
        (V6, false, false, false),
    ] {
        let with = UdpConfig { segment, gro, mmsg, ..config(listen) };
        let (mut sender, mut receiver) = (port(&with), port(&with));
        assert_eq!(sender.features(), Features { segment, gro, mmsg }, "{:?}", sender.notes());
        let to = receiver.local_addr().unwrap();
        let mut sent = PortCounters::default();
        for (size, tail, count) in SHAPES {
            let (arena, spans, transmit) = run_of(size, tail, count, to);
            let outcome = sender.transmit(&arena, &spans, &[transmit]);
            assert_eq!(outcome, TransmitOutcome { sent: count as u32, ..Default::default() });
            let got = receive(&mut receiver, count);
            if segment && gro && count > 1 {
                assert_eq!(got.len(), 1, "loopback delivers a run unsegmented");
                assert_eq!(usize::from(got[0].0.segment_size), size);
            }
            if !segment {
                assert!(got.iter().all(|(received, _)| received.segment_size == 0));
            }
            assert!(got.iter().all(|(received, _)| received.source == sender.local_addr().unwrap()));
            assert_eq!(split(got), pieces(&arena, size), "{size} {tail} {count}");

            let calls = sender.counters().write_calls - sent.write_calls;
            assert_eq!(calls, if segment || mmsg { 1 } else { count as u64 });
            sent = *sender.counters();
        }
        assert_eq!(sent.write_datagrams, receiver.counters().read_datagrams);
        assert_eq!(sent.write_bytes, receiver.counters().read_bytes);
        assert_eq!((sent.errors, sent.resent, sent.downgrades), (0, 0, 0));
    }
}

#[test]
fn transmits_of_one_lane_are_sent_in_one_call_in_order() {
    let mut receiver = plain(V4);
    let to = receiver.local_addr().unwrap();
    let mut sender = port(&config(V4));
    let (arena, spans, transmit) = run_of(1000, 300, 3, to);
    let single = Transmit { segment_size: 0, segments: 1, first_span: 1, span_count: 1, ..transmit };
    let empty = Transmit { segment_size: 0, segments: 0, first_span: 6, span_count: 1, ..transmit };
    let spans = [spans, vec![5..5]].concat();
    let batch: Vec<Transmit> = [transmit, single, empty].into_iter().cycle().take(30).collect();
    let outcome = sender.transmit(&arena, &spans, &batch);
    assert_eq!(outcome, TransmitOutcome { sent: 50, dropped_full: 0, dropped_error: 0, too_big: None });
    assert_eq!(sender.counters().write_calls, 1);
    assert_eq!(sender.counters().writes, 30);
    let mut expected = pieces(&arena, 1000);
    expected.push(arena[8..1000].to_vec());
    expected.push(Vec::new());
    assert_eq!(split(receive(&mut receiver, 50)), times(&expected, 10));
}

#[test]
fn long_batches_are_split_at_the_limits_of_a_call() {
    let mut receiver = plain(V4);
    let to = receiver.local_addr().unwrap();
    for mmsg in [true, false] {
        let mut sender = port(&UdpConfig { segment: false, mmsg, ..config(V4) });
        let (arena, spans, transmit) = run_of(100, 40, 64, to);
        let outcome = sender.transmit(&arena, &spans, &[transmit; 5]);
        assert_eq!(outcome.sent, 320);
        assert_eq!(sender.counters().write_calls, if mmsg { 5 } else { 320 });
        assert_eq!(split(receive(&mut receiver, 320)), times(&pieces(&arena, 100), 5));
    }
    // With 900 one-byte spans per transmit, two exceed the vectors of one call.
    let arena = vec![9; 900];
    let spans: Vec<Range<u32>> = (0..900).map(|at| at..at + 1).collect();
    let whole = Transmit {
        to,
        peer: PeerId(0),
        lane: 0,
        first_span: 0,
        span_count: 900,
        segment_size: 0,
        segments: 1,
        ecn: 0,
    };
    let mut sender = port(&config(V4));
    assert_eq!(sender.transmit(&arena, &spans, &[whole; 3]).sent, 3);
    assert_eq!(sender.counters().write_calls, 3);
    assert_eq!(split(receive(&mut receiver, 3)), vec![arena; 3]);
}

#[test]
fn invalid_transmits_are_dropped_and_the_rest_are_sent() {
    let mut receiver = plain(V4);
    let to = receiver.local_addr().unwrap();
    for segment in [true, false] {
        let mut sender = port(&UdpConfig { segment, ..config(V4) });
        let (mut arena, mut spans, good) = run_of(1000, 500, 4, to);
        arena.resize(70_000, 0);
        let bad_spans = spans.len() as u32;
        let end = arena.len() as u32;
        #[allow(clippy::reversed_empty_ranges)]
        spans.extend([end - 1..end + 1, 10..5, u32::MAX..u32::MAX, 0..MAX_PAYLOAD as u32 + 1, 0..1500]);
        let one = Transmit { segment_size: 0, segments: 1, span_count: 1, ..good };
        let many_spans = spans.len() as u32;
        spans.extend(std::iter::repeat_n(0..1, 1025));
        let beyond = spans.len() as u32;
        let bad = [
            Transmit { first_span: bad_spans, ..one },
            Transmit { first_span: bad_spans + 1, ..one },
            Transmit { first_span: bad_spans + 2, ..one },
            Transmit { first_span: bad_spans + 3, ..one },
            Transmit { first_span: many_spans, span_count: 1025, ..one },
            Transmit { first_span: many_spans, span_count: 65, segment_size: 1, segments: 65, ..one },
            Transmit { first_span: beyond, ..one },
            Transmit { first_span: u32::MAX, span_count: u32::MAX, ..one },
            Transmit { span_count: 0, ..one },
            Transmit { to: "[::1]:9".parse().unwrap(), ..one },
            // Datagrams that do not begin at a span, and wrong datagram counts.
            Transmit { segment_size: 999, ..good },
            Transmit { segments: 3, ..good },
            Transmit { segments: 5, ..good },
        ];
        for transmit in bad {
            let lost = u32::from(transmit.segments);
            let before = *sender.counters();
            let outcome = sender.transmit(&arena, &spans, &[good, transmit, good]);
            let expected = TransmitOutcome { sent: 8, dropped_full: 0, dropped_error: lost, too_big: None };
            assert_eq!(outcome, expected, "{transmit:?}");
            assert_eq!(outcome.total(), 8 + lost);
            assert_eq!(sender.counters().errors - before.errors, 1);
            assert_eq!(split(receive(&mut receiver, 8)), times(&pieces(&arena[..3500], 1000), 2));
        }
        let outcome = sender.transmit(&[], &[], &[]);
        assert_eq!(outcome, TransmitOutcome::default());
    }
}

#[test]
fn ecn_is_preserved_in_both_directions_and_families() {
    for listen in [V4, V6] {
        for segment in [true, false] {
            let mut a = port(&UdpConfig { segment, ..config(listen) });
            let mut b = port(&config(listen));
            for ecn in 0..4 {
                for (sender, receiver) in [(&mut a, &mut b)] {
                    let to = receiver.local_addr().unwrap();
                    let (arena, spans, transmit) = run_of(1000, 10, 3, to);
                    sender.transmit(&arena, &spans, &[Transmit { ecn, ..transmit }]);
                    for (received, _) in receive(receiver, 3) {
                        assert_eq!(received.ecn, ecn);
                    }
                    let back = Transmit { ecn: 3 - ecn, to: sender.local_addr().unwrap(), ..transmit };
                    receiver.transmit(&arena, &spans, &[back]);
                    for (received, _) in receive(sender, 3) {
                        assert_eq!(received.ecn, 3 - ecn);
                    }
                }
            }
        }
    }
}

#[test]
fn a_lane_has_the_same_port_from_every_worker() {
    let config = UdpConfig { send_from: Some(Ipv4Addr::LOCALHOST.into()), fan: 4, ..config(V4) };
    let ports = open(&config, 3).unwrap();
    let lanes: Vec<_> = ports.iter().map(UdpPort::lane_addrs).collect();
    assert_eq!(lanes[0].len(), 4);
    assert!(lanes.iter().all(|these| *these == lanes[0]), "{lanes:?}");
}

#[test]
fn lanes_have_separate_ports_and_receive_nothing() {
    for (listen, from) in [(V4, "127.0.0.1"), (V6, "::1")] {
        let mut receiver = plain(listen);
        let to = receiver.local_addr().unwrap();
        let from: IpAddr = from.parse().unwrap();
        let mut sender = port(&UdpConfig { send_from: Some(from), fan: 4, ..config(listen) });
        let lanes = sender.lane_addrs();
        assert_eq!(lanes.len(), 4);
        let (arena, spans, transmit) = run_of(100, 100, 1, to);
        let batch: Vec<Transmit> = (0..8).map(|lane| Transmit { lane, ..transmit }).collect();
        assert_eq!(sender.transmit(&arena, &spans, &batch).sent, 8);
        let sources: Vec<SocketAddr> = receive(&mut receiver, 8).iter().map(|(r, _)| r.source).collect();
        assert_eq!(sources, [lanes.clone(), lanes.clone()].concat());
        assert!(!lanes.contains(&sender.local_addr().unwrap()));

        let stranger = UdpSocket::bind(listen).unwrap();
        for (lane, socket) in lanes.iter().zip(&sender.lanes) {
            stranger.send_to(b"unwanted", lane).unwrap();
            let mut room = [std::mem::MaybeUninit::uninit(); 16];
            assert_eq!(socket.recv(&mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        // Loopback delivers before send_to returns, so a datagram that was not dropped would be there.
        let mut out = Vec::with_capacity(4);
        let error = sender.receive(&mut [0; SLOT], 0, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn queues_share_the_port_and_each_sender_stays_on_one_queue() {
    let short = Shape { slots: MAX_SLOTS, len: 64 };
    let mut ports = open(&UdpConfig { shape: short, ..config(V4) }, 2).unwrap();
    let to = ports[0].local_addr().unwrap();
    assert_eq!(ports[1].local_addr().unwrap(), to);
    let senders: Vec<UdpSocket> = (0..64).map(|_| UdpSocket::bind(V4).unwrap()).collect();
    for _ in 0..2 {
        for sender in &senders {
            sender.send_to(b"x", to).unwrap();
        }
    }
    let mut by_port: Vec<Vec<SocketAddr>> = Vec::new();
    let mut waiter = Waiter::new().unwrap();
    for (token, port) in ports.iter().enumerate() {
        port.register(&mut waiter, token).unwrap();
        by_port.push(Vec::new());
    }
    while by_port.iter().map(Vec::len).sum::<usize>() < 128 {
        for (port, sources) in ports.iter_mut().zip(&mut by_port) {
            let mut out = Vec::with_capacity(MAX_SLOTS);
            let mut arena = vec![0; short.bytes()];
            while port.receive(&mut arena, 0, &mut out).is_ok() {
                sources.extend(out.iter().map(|received| received.source));
            }
        }
        // The first waits return the edges of datagrams already read; then this sleeps until more arrive.
        if by_port.iter().map(Vec::len).sum::<usize>() < 128 {
            assert!(!waiter.wait(LONG).unwrap().is_empty());
        }
    }
    assert!(by_port.iter().all(|sources| !sources.is_empty()), "64 senders hash to both queues");
    assert!(by_port[0].iter().all(|source| !by_port[1].contains(source)));

    let full = UdpConfig { listen: to, ..config(V4) };
    for queues in [1, 2] {
        let error = open(&full, queues).unwrap_err();
        assert_eq!(error.cause.raw_os_error(), Some(libc::EADDRINUSE));
        assert!(error.to_string().contains("in use by another process"), "{error}");
    }
}

#[test]
fn receive_respects_slots_capacity_and_lengths() {
    let mut receiver = plain(V4);
    let to = receiver.local_addr().unwrap();
    let sender = UdpSocket::bind(V4).unwrap();
    let mut out = Vec::with_capacity(3);
    for (len, slot, capacity) in [(0, 10, 3), (100, 0, 3), (9, 10, 3), (100, 10, 0)] {
        let mut out = Vec::with_capacity(capacity);
        receiver.shape.len = slot;
        let error = receiver.receive(&mut vec![0; len], 0, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    receiver.shape.len = 10;
    let error = receiver.receive(&mut [0; 100], 91, &mut out).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "no slot fits after that offset");
    for len in [10, 11, 0, 10, 1] {
        sender.send_to(&vec![len as u8; len], to).unwrap();
    }
    // The sender's datagrams stay in order: once the marker has arrived, so have the others.
    let marker = UdpSocket::bind(V4).unwrap();
    sender.send_to(b"marker", marker.local_addr().unwrap()).unwrap();
    marker.set_read_timeout(LONG).unwrap();
    marker.recv(&mut [0; 10]).unwrap();
    let mut arena = [0xee; 100];
    receiver.receive(&mut arena, 0, &mut out).unwrap();
    assert_eq!(out.iter().map(|r| (r.at, r.len)).collect::<Vec<_>>(), [(0, 10), (20, 0)]);
    assert_eq!(receiver.counters().truncated, 1);
    assert_eq!(arena[30..], [0xee; 70], "the capacity allows three messages");
    receiver.receive(&mut arena[..28], 3, &mut out).unwrap();
    assert_eq!(out.iter().map(|r| (r.at, r.len)).collect::<Vec<_>>(), [(3, 10), (13, 1)]);
    let error = receiver.receive(&mut arena, 0, &mut out).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(out.is_empty());
    assert_eq!(receiver.counters().would_block, 1);
}

#[test]
fn a_rejected_run_is_sent_singly_and_eight_in_a_row_slow_down_only_their_peer() {
    let mut receiver = plain(V4);
    let to = receiver.local_addr().unwrap();
    let mut sender = port(&config(V4));
    // Without an outer checksum the kernel rejects segmentation with EINVAL (net/ipv4/udp.c udp_send_skb).
    sys::set_option(sender.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    let (arena, spans, transmit) = run_of(1000, 10, 20, to);
    let single = Transmit { segment_size: 0, segments: 1, span_count: 2, ..transmit };
    let outcome = sender.transmit(&arena, &spans, &[single, transmit, single, transmit]);
    let too_big = Some((PeerId(0), to));
    assert_eq!(outcome, TransmitOutcome { sent: 42, dropped_full: 0, dropped_error: 0, too_big });
    let mut expected = vec![arena[..1000].to_vec()];
    expected.extend(pieces(&arena, 1000));
    assert_eq!(split(receive(&mut receiver, 42)), times(&expected, 2));
    let counters = sender.counters();
    assert_eq!((counters.downgrades, counters.resent, counters.errors), (0, 40, 0));
    // A successful send resets the count.
    sys::set_option(sender.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 0).unwrap();
    sender.transmit(&arena, &spans, &[transmit]);
    sys::set_option(sender.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    sender.transmit(&arena, &spans, &[transmit; 7]);
    assert_eq!((sender.counters().downgrades, sender.counters().resent), (0, 40 + 140));
    let outcome = sender.transmit(&arena, &spans, &[transmit; 3]);
    assert_eq!(outcome.sent, 60);
    assert_eq!((sender.counters().downgrades, sender.counters().resent), (1, 40 + 160), "no more attempts");
    assert!(sender.features().segment);
    // Another peer's runs are still joined.
    sys::set_option(sender.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 0).unwrap();
    let calls = |sender: &UdpPort| sender.counters().writes;
    let before = calls(&sender);
    sender.transmit(&arena, &spans, &[Transmit { peer: PeerId(1), ..transmit }]);
    assert_eq!(calls(&sender) - before, 1);
    sender.transmit(&arena, &spans, &[transmit]);
    assert_eq!(calls(&sender) - before, 1 + 20);
    // The peer gets another attempt, which succeeds.
    let runs: Vec<Transmit> = vec![transmit; usize::from(transmit::SINGLY)];
    sender.transmit(&arena, &spans, &runs);
    let before = calls(&sender);
    sender.transmit(&arena, &spans, &[transmit]);
    assert_eq!(calls(&sender) - before, 1);
}

#[test]
fn a_run_above_the_mtu_is_fragmented_and_the_option_stays_on() {
    scratch::run(|| {
        if !scratch::tool("ip link set lo mtu 1400") {
            return;
        }
        let mut receiver = plain(V4);
        let to = receiver.local_addr().unwrap();
        let mut sender = port(&config(V4));
        let (arena, spans, wide) = run_of(2000, 500, 5, to);
        let fits = Transmit { first_span: 8, span_count: 2, segment_size: 0, segments: 1, ..wide };
        let outcome = sender.transmit(&arena, &spans, &[wide, fits]);
        let too_big = Some((PeerId(0), to));
        assert_eq!(outcome, TransmitOutcome { sent: 6, dropped_full: 0, dropped_error: 0, too_big });
        let mut expected = pieces(&arena, 2000);
        expected.push(arena[8000..].to_vec());
        assert_eq!(split(receive(&mut receiver, 6)), expected);
        assert_eq!(sender.counters().resent, 5);
        assert!(sender.features().segment, "the option stays on after EMSGSIZE or EINVAL");
    });
}

#[test]
fn a_forged_message_does_not_lower_the_mtu() {
    scratch::run(|| {
        if !scratch::tool("ip link set lo mtu 1500") {
            return;
        }
        let mut resent = Vec::new();
        for own_path_mtu in [true, false] {
            let mut receiver = plain(V6);
            let to = receiver.local_addr().unwrap();
            let mut sender = port(&UdpConfig { own_path_mtu, ..config(V6) });
            let from = sender.local_addr().unwrap();
            // "Packet too big" (RFC 4443 section 3.2) with an MTU of 1280, about a datagram of 1400 bytes.
            let mut message = vec![2, 0, 0, 0, 0, 0, 5, 0, 0x60, 0, 0, 0, 0x05, 0x80, 17, 64];
            for _ in 0..2 {
                message.extend(std::net::Ipv6Addr::LOCALHOST.octets());
            }
            for half in [from.port(), to.port(), 1408, 0] {
                message.extend(half.to_be_bytes());
            }
            message.resize(1240, 0);
            let forger = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
            forger.send_to(&message, &SocketAddr::new(to.ip(), 0).into()).unwrap();
            let (arena, spans, transmit) = run_of(1400, 1400, 20, to);
            assert_eq!(sender.transmit(&arena, &spans, &[transmit]).sent, 20);
            assert_eq!(split(receive(&mut receiver, 20)), pieces(&arena, 1400));
            resent.push(sender.counters().resent);
        }
        assert_eq!(resent, [0, 20], "only a socket that obeys the kernel's path MTU believes it");
    });
}

#[test]
fn a_full_send_buffer_is_counted_and_ends_the_batch() {
    scratch::run(|| {
        // A slow queueing discipline on lo holds the packets, which occupy the sender's buffer.
        if !scratch::tool("tc qdisc add dev lo root tbf rate 8kbit burst 70000 limit 10000000") {
            return;
        }
        let mut sender = port(&UdpConfig { segment: false, send_buffer: 100_000, ..config(V4) });
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let (arena, spans, transmit) = run_of(1000, 1000, 60, to);
        let outcome = sender.transmit(&arena, &spans, &[transmit; 10]);
        assert_eq!(outcome.total(), 600);
        assert!(outcome.dropped_full > 0, "{outcome:?}");
        assert_eq!(outcome.dropped_error, 0);
        let counters = sender.counters();
        assert_eq!(u64::from(outcome.dropped_full), counters.write_full);
        assert_eq!(u64::from(outcome.sent), counters.write_datagrams);
        assert!(counters.write_calls <= 21, "one failing call per chunk: {}", counters.write_calls);
    });
}

#[test]
fn what_a_full_receive_buffer_drops_is_counted_for_all_sockets() {
    scratch::run(|| {
        let small = UdpConfig { receive_buffer: 10_000, ..config(V4) };
        let mut group = open_groups(&small, &["[::1]:0".parse().unwrap()], 1).unwrap().remove(0);
        let overflow = group.overflow().unwrap();
        assert_eq!(overflow.dropped(), Some(0));
        let addresses = group.lane_addrs();
        for to in &addresses {
            let from = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
            (0..200).for_each(|_| _ = from.send_to(&[7; 1000], to).unwrap());
        }
        let (mut out, mut arrived) = (Vec::with_capacity(16), 0);
        let mut arena = vec![0; small.shape.bytes()];
        let end = std::time::Instant::now() + LONG.unwrap();
        // A busy kernel may deliver late.
        while arrived + overflow.dropped().unwrap() < 400 && std::time::Instant::now() < end {
            while group.receive(&mut arena, 0, &mut out).is_ok() {
                arrived += out.len() as u64;
            }
        }
        assert!(arrived > 0);
        assert_eq!(overflow.dropped(), Some(400 - arrived));
        // The descriptors are the meter's own.
        drop(group);
        assert_eq!(overflow.dropped(), Some(400 - arrived));
    });
}

#[test]
fn an_icmp_error_for_an_earlier_datagram_does_not_drop_the_next() {
    scratch::run(|| {
        let mut sender = port(&UdpConfig { gro: false, ..config(V4) });
        let mut receiver = plain(V4);
        let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        // Only a connected socket receives ICMP errors.
        sender.listen.connect(&closed.into()).unwrap();
        let (arena, spans, transmit) = run_of(100, 100, 1, closed);
        assert_eq!(sender.transmit(&arena, &spans, &[transmit]).sent, 1);
        wait_for(&sender);
        let to = receiver.local_addr().unwrap();
        let outcome = sender.transmit(&arena, &spans, &[Transmit { to, ..transmit }]);
        assert_eq!(outcome, TransmitOutcome { sent: 1, dropped_full: 0, dropped_error: 0, too_big: None });
        assert_eq!(sender.counters().write_calls, 3);
        assert_eq!(receive(&mut receiver, 1)[0].1, arena);

        // A receive counts the error and goes on to read the queue.
        assert_eq!(sender.transmit(&arena, &spans, &[transmit]).sent, 1);
        wait_for(&sender);
        let mut out = Vec::with_capacity(4);
        let error = sender.receive(&mut [0; SLOT], 0, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(sender.counters().errors, 1);
    });
}

#[test]
fn a_datagram_without_a_route_is_dropped_after_one_retry() {
    scratch::run(|| {
        let mut sender = port(&config("0.0.0.0:0"));
        let (arena, spans, transmit) = run_of(100, 100, 2, "192.0.2.1:9".parse().unwrap());
        let outcome = sender.transmit(&arena, &spans, &[transmit, transmit]);
        assert_eq!(outcome, TransmitOutcome { sent: 0, dropped_full: 0, dropped_error: 4, too_big: None });
        assert_eq!((sender.counters().errors, sender.counters().write_calls), (2, 4));
    });
}

#[test]
fn every_datagram_arrives_on_a_kernel_without_the_features() {
    for features in [&[Feature::BatchCalls][..], &[Feature::UdpSegment], &[Feature::UdpGro], &mask::ALL] {
        let body = move || {
            mask::hide(features).unwrap();
            let (mut sender, mut receiver) = (port(&config(V4)), port(&config(V4)));
            let expected = Features {
                segment: !features.contains(&Feature::UdpSegment),
                gro: !features.contains(&Feature::UdpGro),
                mmsg: !features.contains(&Feature::BatchCalls),
            };
            assert_eq!(sender.features(), expected);
            assert!(!sender.notes().is_empty());
            let (arena, spans, transmit) = run_of(1400, 9, 40, receiver.local_addr().unwrap());
            assert_eq!(sender.transmit(&arena, &spans, &[transmit]).sent, 40);
            assert_eq!(split(receive(&mut receiver, 40)), pieces(&arena, 1400));
        };
        std::thread::spawn(body).join().unwrap();
    }
}

#[test]
fn batch_calls_that_fail_in_use_are_replaced_by_single_calls() {
    std::thread::spawn(|| {
        let (mut sender, mut receiver) = (port(&config(V4)), plain(V4));
        mask::hide(&[Feature::BatchCalls]).unwrap();
        let (arena, spans, transmit) = run_of(1400, 9, 40, receiver.local_addr().unwrap());
        assert_eq!(sender.transmit(&arena, &spans, &[transmit, transmit]).sent, 80);
        assert_eq!(split(receive(&mut receiver, 80)), times(&pieces(&arena, 1400), 2));
        assert_eq!(sender.counters().downgrades, 1);
        assert_eq!(receiver.counters().downgrades, 1);
        assert!(!sender.features().mmsg && !receiver.features().mmsg);
    })
    .join()
    .unwrap();
}

#[test]
fn the_error_mentions_a_kernel_vxlan_that_has_the_port() {
    scratch::run(|| {
        let add = "ip link add vx0 type vxlan id 1 local 127.0.0.1 dstport 8472 nolearning";
        if !(scratch::tool(add) && scratch::tool("ip link set vx0 up")) {
            return;
        }
        for queues in [1, 2] {
            let error = open(&config("0.0.0.0:8472"), queues).unwrap_err();
            assert_eq!(error.cause.raw_os_error(), Some(libc::EADDRINUSE));
            assert!(error.advice.contains("type vxlan"), "{error}");
        }
    });
}

#[test]
fn outer_headers_have_no_df_and_no_flow_label() {
    let port = port(&config(V6));
    let mut label: libc::c_int = -1;
    let mut len = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel writes at most `len` bytes into `label`.
    let answer = unsafe {
        libc::getsockopt(
            port.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            IPV6_AUTOFLOWLABEL,
            (&raw mut label).cast(),
            &raw mut len,
        )
    };
    assert_eq!((answer, label), (0, 0));
}

#[test]
fn the_error_explains_why_an_address_is_unusable() {
    let mixed = UdpConfig { send_from: Some("::1".parse().unwrap()), ..config(V4) };
    assert!(open(&mixed, 1).unwrap_err().advice.contains("same family"));
    let absent = config("192.0.2.77:0");
    assert!(open(&absent, 1).unwrap_err().advice.contains("no interface on this host"));
}
