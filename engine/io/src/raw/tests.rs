use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::PeerId;
use crate::{netns, scratch};

const PROTOCOL: u8 = 4;
const SLOT: usize = 65_536;
const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn ports(count: usize) -> Vec<RawPort> {
    let config = RawConfig {
        protocol: PROTOCOL,
        local: LOCAL,
        shape: Shape { slots: 16, len: SLOT },
        mmsg: true,
        receive_buffer: 8 << 20,
        send_buffer: 8 << 20,
    };
    open(&config, count).unwrap()
}

/// Builds an outer header as the engine sends it, and an inner packet of `len` bytes of protocol 253 from
/// 10.1.0.`flow`.
fn packet(flow: u8, len: usize, tos: u8, ttl: u8, dont_fragment: bool) -> Vec<u8> {
    let flags = if dont_fragment { 0x40 } else { 0 };
    let mut bytes = vec![0x45, tos, 0, 0, 0, 0, flags, 0, ttl, PROTOCOL, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
    bytes.extend([
        0x45,
        0,
        (len >> 8) as u8,
        len as u8,
        0,
        0,
        0,
        0,
        64,
        253,
        0,
        0,
        10,
        1,
        0,
        flow,
        10,
        2,
        0,
        7,
    ]);
    bytes.resize(20 + len, flow);
    bytes
}

#[test]
fn what_a_full_receive_buffer_drops_is_counted_but_not_other_sockets_shares() {
    scratch::run(|| {
        let shape = Shape { slots: 16, len: SLOT };
        let small = RawConfig {
            protocol: PROTOCOL,
            local: LOCAL,
            shape,
            mmsg: true,
            receive_buffer: 10_000,
            send_buffer: 0,
        };
        let mut ports = open(&small, 2).unwrap();
        let sent = send(&mut ports[0], &vec![packet(1, 1000, 0, 64, false); 200]).sent;
        let meters: Vec<_> = ports.iter().map(|port| port.overflow().unwrap()).collect();
        let dropped = || meters.iter().map(|meter| meter.dropped().unwrap()).collect::<Vec<u64>>();
        let mut arrived = vec![0; 2];
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        // A busy kernel may deliver late.
        while arrived.iter().chain(&dropped()).sum::<u64>() < u64::from(sent)
            && std::time::Instant::now() < deadline
        {
            ports.iter_mut().zip(&mut arrived).for_each(|(port, count)| *count += drain_all(port));
        }
        let dropped = dropped();
        assert_eq!(dropped.iter().sum::<u64>() + arrived.iter().sum::<u64>(), u64::from(sent));
        assert!(
            dropped.contains(&0) && arrived.contains(&0),
            "{dropped:?} {arrived:?}: one flow, one socket"
        );
        assert!(dropped.iter().sum::<u64>() > 0);
    });
}

/// Receives until the port is empty, and returns the number of packets.
fn drain_all(port: &mut RawPort) -> u64 {
    let (mut arena, mut out) = (vec![0; 16 * SLOT], Vec::with_capacity(16));
    let mut arrived = 0;
    while port.receive(&mut arena, 0, &mut out).is_ok() {
        arrived += out.len() as u64;
    }
    arrived
}

/// Sends each packet as a transmit with two spans.
fn send(port: &mut RawPort, packets: &[Vec<u8>]) -> TransmitOutcome {
    let (mut arena, mut spans, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    for packet in packets {
        let start = arena.len() as u32;
        arena.extend_from_slice(packet);
        let first_span = spans.len() as u32;
        spans.extend([start..start + 20, start + 20..arena.len() as u32]);
        let to = SocketAddr::new(LOCAL.into(), 0);
        batch.push(Transmit {
            to,
            peer: PeerId(0),
            lane: 0,
            first_span,
            span_count: 2,
            segment_size: 0,
            segments: 1,
            ecn: 0,
        });
    }
    port.transmit(&arena, &spans, &batch)
}

/// Returns everything that arrives within 200 ms.
fn drain(port: &mut RawPort) -> Vec<(Vec<u8>, u8)> {
    let mut arena = vec![0; 16 * SLOT];
    let (mut out, mut all) = (Vec::with_capacity(16), Vec::new());
    let deadline = std::time::Instant::now() + Duration::from_millis(200);
    while std::time::Instant::now() < deadline {
        match port.receive(&mut arena, 0, &mut out) {
            Ok(()) => all.extend(
                out.iter().map(|one| (arena[one.at as usize..(one.at + one.len) as usize].to_vec(), one.ecn)),
            ),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    all
}

#[test]
fn outer_headers_are_preserved_and_completed_by_the_kernel() {
    scratch::run(|| {
        let mut ports = ports(1);
        let sent = [packet(1, 28, 0, 64, true), packet(2, 1400, 1, 7, false), packet(3, 29, 3, 255, true)];
        assert_eq!(send(&mut ports[0], &sent), TransmitOutcome { sent: 3, ..TransmitOutcome::default() });
        assert_eq!(ports[0].counters().write_calls, 1, "one call for all packets");
        let received = drain(&mut ports[0]);
        assert_eq!(received.len(), 3);
        for ((bytes, ecn), sent) in received.iter().zip(&sent) {
            assert_eq!(bytes.len(), sent.len());
            assert_eq!(bytes[20..], sent[20..], "the inner packet");
            assert_eq!((bytes[1], bytes[6], bytes[8]), (sent[1], sent[6], sent[8]), "TOS, DF, TTL");
            assert_eq!(*ecn, sent[1] & 3);
            assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), sent.len());
            let sum: u32 =
                bytes[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            assert_eq!((sum >> 16) + (sum & 0xffff), 0xffff, "the header's checksum");
        }
    });
}

#[test]
fn a_run_is_sent_as_single_packets() {
    scratch::run(|| {
        let mut port = ports(1).remove(0);
        let (mut arena, mut spans) = (Vec::new(), Vec::new());
        for flow in 1..=5 {
            let start = arena.len() as u32;
            arena.extend(packet(flow, if flow == 5 { 30 } else { 100 }, 0, 64, false));
            spans.extend([start..start + 40, start + 40..arena.len() as u32]);
        }
        let to = SocketAddr::new(LOCAL.into(), 0);
        let run = Transmit {
            to,
            peer: PeerId(0),
            lane: 3,
            first_span: 0,
            span_count: 10,
            segment_size: 120,
            segments: 5,
            ecn: 0,
        };
        assert_eq!(port.transmit(&arena, &spans, &[run]).sent, 5);
        let lengths: Vec<usize> = drain(&mut port).iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(lengths, [120, 120, 120, 120, 50]);
    });
}

#[test]
fn each_flow_has_one_socket_and_every_packet_arrives_once() {
    scratch::run(|| {
        let mut ports = ports(3);
        for port in &mut ports[..2] {
            let sent: Vec<_> = (0..=255).map(|flow| packet(flow, 40, 0, 64, false)).collect();
            assert_eq!(send(port, &sent).sent, 256);
        }
        let mut keepers = std::collections::BTreeMap::new();
        for (index, port) in ports.iter_mut().enumerate() {
            for (bytes, _) in drain(port) {
                keepers.entry(bytes[20 + 15]).or_insert_with(Vec::new).push(index);
            }
        }
        assert_eq!(keepers.len(), 256);
        for (flow, keepers) in &keepers {
            assert_eq!((keepers.len(), keepers[0]), (2, keepers[1]), "flow {flow}");
        }
        for index in 0..3 {
            let share = keepers.values().filter(|keepers| keepers[0] == index).count();
            assert!((43..=170).contains(&share), "socket {index} has {share} of 256 flows");
        }
    });
}

#[test]
fn short_packets_reach_the_first_socket_and_fragments_are_reassembled() {
    scratch::run(|| {
        let mut ports = ports(2);
        let mut stray = packet(1, 28, 0, 64, false);
        stray.truncate(27);
        // A packet larger than one fragment of the loopback's MTU.
        netns::set_up("lo").unwrap();
        let large = packet(9, 40_000, 0, 64, false);
        let halves = fragments(&large);
        assert_eq!(send(&mut ports[0], &[stray.clone(), halves.0, halves.1]).sent, 3);
        let [first, second] = [0, 1].map(|index| drain(&mut ports[index]));
        assert!(first.iter().any(|(bytes, _)| bytes.len() == 27));
        assert!(second.iter().all(|(bytes, _)| bytes.len() != 27));
        let joined: Vec<_> =
            first.iter().chain(&second).filter(|(bytes, _)| bytes.len() == large.len()).collect();
        assert_eq!(joined.len(), 1);
        assert_eq!(joined[0].0[20..], large[20..]);
    });
}

/// Splits a packet into two fragments after 20,000 bytes of payload.
fn fragments(packet: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut header, cut) = (packet[..20].to_vec(), 20_000);
    header[4..6].copy_from_slice(&[0x12, 0x34]);
    let mut first = header.clone();
    first[6] = 0x20;
    first.extend(&packet[20..20 + cut]);
    header[6..8].copy_from_slice(&((cut / 8) as u16).to_be_bytes());
    header.extend(&packet[20 + cut..]);
    (first, header)
}

#[test]
fn workers_beyond_the_maximum_only_send() {
    scratch::run(|| {
        let mut ports = ports(MAX_RECEIVERS + 1);
        let sent: Vec<_> = (0..100).map(|flow| packet(flow, 40, 0, 64, false)).collect();
        assert_eq!(send(&mut ports[MAX_RECEIVERS], &sent).sent, 100);
        let counts: Vec<usize> = ports.iter_mut().map(|port| drain(port).len()).collect();
        assert_eq!((counts.iter().sum::<usize>(), counts[MAX_RECEIVERS]), (100, 0), "{counts:?}");
    });
}

#[test]
fn a_packet_above_the_mtu_is_dropped_and_the_next_is_sent() {
    scratch::run(|| {
        let mut port = ports(1).remove(0);
        let outcome = send(&mut port, &[packet(1, 65_517, 0, 64, true), packet(2, 40, 0, 64, true)]);
        assert_eq!((outcome.sent, outcome.dropped_error), (1, 1), "{outcome:?}");
    });
}

#[test]
fn a_forged_message_does_not_lower_the_mtu() {
    scratch::run(|| {
        let mut port = ports(1).remove(0);
        let large = packet(1, 1400, 0, 64, true);
        assert_eq!(send(&mut port, std::slice::from_ref(&large)).sent, 1);
        // "Fragmentation needed" (RFC 1191) with an MTU of 576.
        let mut message = vec![3, 4, 0, 0, 0, 0, 0x02, 0x40];
        message.extend(&large[..28]);
        message[8 + 2..8 + 4].copy_from_slice(&1420u16.to_be_bytes());
        let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let forger = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        forger.send_to(&message, &SocketAddr::new(LOCAL.into(), 0).into()).unwrap();
        assert_eq!(send(&mut port, &[large]).sent, 1);
    });
}

#[test]
fn the_error_names_an_address_that_no_interface_has() {
    scratch::run(|| {
        let local = Ipv4Addr::new(192, 0, 2, 1);
        let shape = Shape { slots: 16, len: SLOT };
        let config =
            RawConfig { protocol: PROTOCOL, local, shape, mmsg: true, receive_buffer: 0, send_buffer: 0 };
        let error = open(&config, 1).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1") && error.contains("no interface on this host"), "{error}");
    });
}
