use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::*;
use crate::mask::{self, Feature};
use crate::{netns, scratch};

const ALL: Offloads = Offloads { csum: true, tso: true, uso: true };
const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn config(name: &str, queues: usize) -> TunConfig {
    TunConfig { queues, ..TunConfig::plain(name, ALL) }
}

/// Opens a device, assigns an address in 10.99.0.0/24 and brings it up.
fn up(config: &TunConfig) -> Tun {
    let tun = open(config).unwrap();
    netns::set_address(&tun.name, HERE, 24).unwrap();
    netns::set_up(&tun.name).unwrap();
    tun
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

/// Builds an IPv4 UDP packet from `THERE`. Its checksum field holds the pseudo-header sum, as NEEDS_CSUM
/// requires.
fn udp_packet(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = 28 + payload.len() as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(THERE.octets());
    packet.extend(HERE.octets());
    let check = !fold(words(&packet));
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    let udp_len = len - 20;
    let pseudo = fold(words(&THERE.octets()) + words(&HERE.octets()) + 17 + u32::from(udp_len));
    for field in [from, to, udp_len, pseudo] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// Builds a `struct virtio_net_hdr`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
fn header(flags: u8, gso: u8, gso_size: u16) -> Vec<u8> {
    let mut header = vec![flags, gso];
    for field in [28, gso_size, 20, 6] {
        header.extend(u16::to_ne_bytes(field));
    }
    header
}

/// Reads the next IPv4 packet with its header, skipping the IPv6 packets that the kernel sends by itself.
fn read_ipv4(queue: &mut Queue) -> Vec<u8> {
    let mut waiter = Waiter::new().unwrap();
    queue.register(&mut waiter, 1).unwrap();
    let mut buffer = vec![0; 65_550];
    loop {
        match queue.read(&mut buffer) {
            Ok(len) if buffer[HEADER_LEN] >> 4 == 4 => return buffer[..len].to_vec(),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(waiter.wait(LONG).unwrap().contains(1), "no packet arrived");
            }
        }
    }
}

fn socket() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((HERE, 0)).unwrap();
    socket.set_read_timeout(LONG).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[test]
fn packets_cross_with_their_virtio_header() {
    scratch::run(|| {
        let mut tun = up(&config("io-cross", 1));
        assert_eq!((tun.name.as_str(), tun.queues.len()), ("io-cross", 1));
        let queue = &mut tun.queues[0];
        let (socket, port) = socket();

        socket.send_to(b"out", SocketAddr::from((THERE, 7))).unwrap();
        let packet = read_ipv4(queue);
        assert_eq!(packet.len(), HEADER_LEN + 28 + 3);
        assert_eq!(packet[HEADER_LEN + 28..], *b"out");
        assert_eq!(packet[..2], [1, 0], "NEEDS_CSUM: checksum offload is on");

        // Gathered from three spans that are out of order in the arena.
        let packet = udp_packet(7, port, b"in and back");
        let mut arena = packet[28..].to_vec();
        let payload = 0..arena.len() as u32;
        arena.extend(header(1, 0, 0));
        let virtio = payload.end..arena.len() as u32;
        arena.extend(&packet[..28]);
        let headers = virtio.end..arena.len() as u32;
        queue.write(&arena, &[virtio.clone(), headers.clone(), payload]).unwrap();
        let mut got = [0; 100];
        let (len, from) = socket.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from), (&b"in and back"[..], SocketAddr::from((THERE, 7))));

        let before = *queue.counters();
        #[allow(clippy::reversed_empty_ranges)]
        for bad in [5..4, 0..arena.len() as u32 + 1, u32::MAX - 1..u32::MAX] {
            let error = queue.write(&arena, &[virtio.clone(), bad]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert!(queue.write(&arena, &vec![0..1; MAX_SPANS + 1]).is_err());
        assert_eq!(queue.counters().errors, before.errors + 4);
        assert_eq!(queue.counters().write_calls, 1, "invalid writes do not reach the kernel");
        // Too short for a header: rejected by the kernel.
        assert!(queue.write(&arena, &[0..4]).is_err());
        assert_eq!(queue.counters().errors, before.errors + 5);
        assert_eq!((queue.counters().writes, queue.counters().write_bytes), (1, 10 + 28 + 11));
    });
}

#[test]
fn super_packets_are_not_segmented_where_granted() {
    scratch::run(|| {
        let mut tun = up(&config("io-super", 1));
        if !tun.granted.uso {
            return scratch::missing(&tun.notes.join("; "));
        }
        assert_eq!((tun.granted, tun.notes.len()), (ALL, 0));
        let (socket, port) = socket();
        let payload: Vec<u8> = (0..2500u32).map(|byte| byte as u8).collect();

        let (arena, udp_l4) = ([header(1, 5, 1000), udp_packet(7, port, &payload)].concat(), 5);
        tun.queues[0].write(&arena, &[0..arena.len() as u32]).unwrap();
        let mut got = vec![0; 3000];
        for expected in payload.chunks(1000) {
            let len = socket.recv(&mut got).unwrap();
            assert_eq!(&got[..len], expected);
        }

        sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1000).unwrap();
        socket.send_to(&payload, SocketAddr::from((THERE, 7))).unwrap();
        let packet = read_ipv4(&mut tun.queues[0]);
        assert_eq!(packet.len(), HEADER_LEN + 28 + 2500);
        assert_eq!(packet[1], udp_l4);
        assert_eq!(packet[4..6], 1000u16.to_ne_bytes());
    });
}

#[test]
fn replies_arrive_on_the_queue_that_their_flow_was_written_to() {
    scratch::run(|| {
        let mut tun = up(&config("io-multi%d", 4));
        assert_eq!((tun.name.as_str(), tun.queues.len()), ("io-multi0", 4));
        for (index, queue) in tun.queues.iter_mut().enumerate() {
            let (socket, port) = socket();
            let from = 1000 + index as u16;
            let arena = [header(1, 0, 0), udp_packet(from, port, b"ask")].concat();
            queue.write(&arena, &[0..arena.len() as u32]).unwrap();
            let mut got = [0; 10];
            let (len, peer) = socket.recv_from(&mut got).unwrap();
            assert_eq!(&got[..len], b"ask");
            socket.send_to(b"answer", peer).unwrap();
            let packet = read_ipv4(queue);
            assert_eq!(packet[HEADER_LEN + 22..HEADER_LEN + 24], from.to_be_bytes());
        }
    });
}

#[test]
fn a_name_in_use_is_rejected_whatever_uses_it() {
    scratch::run(|| {
        for (first, second) in [(1, 1), (2, 2)] {
            let held = open(&config("io-held", first)).unwrap();
            let error = open(&config("io-held", second)).unwrap_err();
            assert_eq!(error.cause.raw_os_error(), Some(libc::EBUSY), "{error}");
            assert!(error.advice.contains("another process"), "{error}");
            drop(held);
        }
        let held = open(&config("io-held", 2)).unwrap();
        let error = open(&config("io-held", 1)).unwrap_err();
        assert_eq!(error.cause.raw_os_error(), Some(libc::EINVAL));
        assert!(error.advice.contains("ip link del io-held"), "{error}");
        drop(held);
        if scratch::tool("ip link add io-bridge type bridge") {
            let error = open(&config("io-bridge", 1)).unwrap_err();
            assert_eq!(error.cause.raw_os_error(), Some(libc::EINVAL));
            assert!(error.advice.contains("another kind"), "{error}");
        }
        for name in ["", "sixteen-bytes-xx", "a/b", "a b"] {
            let error = open(&config(name, 1)).unwrap_err();
            assert!(!error.advice.is_empty(), "{error}");
        }
    });
}

#[test]
fn a_persistent_device_is_reused_when_no_process_has_it_open() {
    scratch::run(|| {
        let persistent = TunConfig { persist: true, ..config("io-stay", 2) };
        // Not persistent before `keep`: a start that fails half-way leaves nothing behind.
        drop(open(&persistent).unwrap());
        assert!(sys::interface_flags("io-stay").is_err());
        let first = up(&persistent);
        first.hold.keep().unwrap();
        assert_eq!(open(&persistent).unwrap_err().cause.raw_os_error(), Some(libc::EBUSY));
        drop(first);
        assert!(sys::interface_flags("io-stay").is_ok());
        assert_eq!(open(&persistent).unwrap().queues.len(), 2);
        drop(open(&config("io-stay", 2)).unwrap());
        let gone = sys::interface_flags("io-stay").unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ENODEV));
    });
}

#[test]
fn a_persistent_device_with_the_wrong_number_of_queues_is_recreated() {
    scratch::run(|| {
        for (before, after) in [(1, 2), (2, 1)] {
            let queues = |queues| TunConfig { persist: true, ..config("io-count", queues) };
            up(&queues(before)).hold.keep().unwrap();
            assert_eq!(open(&queues(after)).unwrap().queues.len(), after);
            // A device that is in use, or is not a TUN, is left alone.
            let held = open(&queues(after)).unwrap();
            held.hold.keep().unwrap();
            assert!(open(&queues(before)).is_err());
            drop(held);
            drop(open(&config("io-count", after)).unwrap());
        }
        if scratch::tool("ip link add io-count type bridge") {
            assert!(open(&TunConfig { persist: true, ..config("io-count", 2) }).is_err());
            assert!(sys::interface_flags("io-count").is_ok());
        }
    });
}

#[test]
fn each_rejected_offload_leaves_a_note_and_a_working_device() {
    for (feature, granted, notes) in
        [(Feature::TunUso, Offloads { uso: false, ..ALL }, 1), (Feature::TunOffload, Offloads::default(), 3)]
    {
        scratch::run(move || {
            mask::hide(&[feature]).unwrap();
            let mut tun = up(&config("io-old", 1));
            assert_eq!((tun.granted, tun.notes.len()), (granted, notes), "{:?}", tun.notes);
            let (socket, _) = socket();
            socket.send_to(b"out", SocketAddr::from((THERE, 7))).unwrap();
            assert_eq!(read_ipv4(&mut tun.queues[0])[HEADER_LEN + 28..], *b"out");
        });
    }
    scratch::run(|| {
        // No kernel accepts segmentation without checksum offload, so it is not requested.
        let config = TunConfig { offloads: Offloads { csum: false, ..ALL }, ..config("io-none", 1) };
        let tun = open(&config).unwrap();
        assert_eq!((tun.granted, tun.notes.len()), (Offloads::default(), 0));
        let many = open(&TunConfig { name: "io-many".into(), queues: 300, ..config }).unwrap();
        assert_eq!((many.queues.len(), many.notes.len()), (MAX_QUEUES, 1));
    });
}

#[test]
fn the_error_names_the_missing_capability() {
    scratch::run(|| {
        keep_capabilities(0);
        let error = open(&config("io-rights", 1)).unwrap_err();
        assert_eq!(error.cause.raw_os_error(), Some(libc::EPERM), "{error}");
        assert!(error.advice.contains("CAP_NET_ADMIN"), "{error}");
        assert!(!crate::probe::tun().is_granted());
    });
}

/// Reads until the queue is empty. Returns the number of IPv4 packets of at least and of less than 1 KiB.
fn drain(queue: &mut Queue) -> (usize, usize) {
    let (mut large, mut small) = (0, 0);
    let mut buffer = vec![0; 65_550];
    while let Ok(len) = queue.read(&mut buffer) {
        match buffer[HEADER_LEN] >> 4 {
            4 if len >= 1024 => large += 1,
            4 => small += 1,
            _ => {}
        }
    }
    (large, small)
}

#[test]
fn large_packets_fill_a_part_of_the_bytes_and_small_ones_the_rest() {
    const BYTES: usize = 1 << 20;
    const LARGE: usize = 60_000;
    scratch::run(|| {
        if !crate::probe::bpf().is_granted() {
            assert!(std::env::var_os("CI").is_none(), "this test needs bpf(2)");
            return eprintln!("skipped: this test needs bpf(2)");
        }
        let limited = TunConfig { queue_bytes: BYTES, ..config("io-bytes", 1) };
        let mut tun = open(&limited).unwrap();
        assert!(tun.limited, "{:?}", tun.notes);
        netns::set_address("io-bytes", HERE, 24).unwrap();
        assert!(scratch::tool("ip link set io-bytes mtu 65000 txqueuelen 2000 up"));
        let (socket, _) = socket();
        let to = SocketAddr::from((THERE, 7));
        // A packet is checked against what waits before it.
        let fit = (BYTES / 4 * 3 / 5 * 4).div_ceil(LARGE + 28 + OVERHEAD);
        for round in 0..3 {
            for _ in 0..100 {
                // An error would mean that the sender is told.
                socket.send_to(&[1; LARGE], to).unwrap();
            }
            for _ in 0..50 {
                socket.send_to(&[2; 100], to).unwrap();
            }
            let (large, small) = drain(&mut tun.queues[0]);
            // The kernel's own IPv6 packets count as well.
            assert!((fit - 1..=fit).contains(&large), "round {round}: {large} of {fit}");
            assert_eq!(small, 50, "round {round}");
        }
        for _ in 0..2000 {
            socket.send_to(&[2; 100], to).unwrap();
        }
        let (_, small) = drain(&mut tun.queues[0]);
        let most = (BYTES / 5 * 4).div_ceil(128 + OVERHEAD);
        assert!(small <= most && small >= most - 20, "{small} of {most}");
    });
}

/// Senders that fill a queue, one after another, with many flows of packets of each size, in both families.
#[test]
fn a_sender_leaves_room_for_the_next_however_many_flows_it_has() {
    const SENDERS: u8 = 4;
    scratch::run(|| {
        if !crate::probe::bpf().is_granted() {
            assert!(std::env::var_os("CI").is_none(), "this test needs bpf(2)");
            return eprintln!("skipped: this test needs bpf(2)");
        }
        for (len, bytes) in [(20, 1 << 20), (1400, 1 << 20), (60_000, 4 << 20)] {
            fill_by_senders(SENDERS, len, bytes);
        }
    });
}

/// Lets senders fill a queue of a new device with payloads of `len` bytes, in both families.
fn fill_by_senders(senders: u8, len: usize, bytes: usize) {
    let limited = TunConfig { queue_bytes: bytes, ..config("io-senders", 1) };
    let mut tun = open(&limited).unwrap();
    assert!(tun.limited, "{:?}", tun.notes);
    if !scratch::tool("ip link set io-senders mtu 65000 txqueuelen 2000 up") {
        return;
    }
    for sender in 1..=senders {
        assert!(scratch::tool(&format!("ip addr add 10.99.0.{sender}/24 dev io-senders")));
        assert!(scratch::tool(&format!("ip addr add fd99::{sender}/64 dev io-senders nodad")));
    }
    for v6 in [false, true] {
        let at = |last: u8| match v6 {
            false => std::net::IpAddr::from([10, 99, 0, last]),
            true => format!("fd99::{last}").parse().unwrap(),
        };
        let header = if v6 { 48 } else { 28 };
        let limit = if len + header > 2048 { bytes / 4 * 3 } else { bytes } as f64;
        let charge = (len + header + OVERHEAD) as f64;
        drain(&mut tun.queues[0]);
        for sender in 1..=senders {
            let flows: Vec<_> = (0..64).map(|_| UdpSocket::bind((at(sender), 0)).unwrap()).collect();
            for flow in flows.iter().cycle().take(2000) {
                flow.send_to(&vec![1; len], (at(99), 7)).unwrap();
            }
        }
        let mut counts = vec![0u32; usize::from(senders)];
        let mut buffer = vec![0; 65_550];
        while tun.queues[0].read(&mut buffer).is_ok() {
            let packet = &buffer[HEADER_LEN..];
            let (version, last) = if packet[0] >> 4 == 6 { (true, packet[23]) } else { (false, packet[15]) };
            if version == v6 && (1..=senders).contains(&last) {
                counts[usize::from(last) - 1] += 1;
            }
        }
        // The first has four fifths, and the next four fifths of what is left, unless both share a count. A
        // packet is checked against what waits before it.
        let mut left = limit;
        for (place, count) in counts.iter().enumerate().take(2) {
            let most = (left * 0.8 / charge).ceil();
            let used = f64::from(*count);
            assert!(used <= most + 1.0, "{v6} {len}: sender {place}: {counts:?}");
            assert!(place > 0 || used >= most - 4.0, "{v6} {len}: sender {place}: {counts:?}");
            left -= used * charge;
        }
        assert!(counts.iter().filter(|count| **count > 0).count() >= 2, "{v6} {len}: {counts:?}");
    }
}

/// The kernel checks a program more strictly without CAP_PERFMON.
#[test]
fn two_capabilities_are_enough_for_a_limit_in_bytes() {
    scratch::run(|| {
        if !crate::probe::bpf().is_granted() {
            assert!(std::env::var_os("CI").is_none(), "this test needs bpf(2)");
            return eprintln!("skipped: this test needs bpf(2)");
        }
        // CAP_NET_ADMIN and CAP_BPF (linux/capability.h)
        keep_capabilities(1 << 12 | 1 << 39);
        let tun = open(&TunConfig { queue_bytes: 1 << 20, ..config("io-few-caps", 2) }).unwrap();
        assert!(tun.limited, "{:?}", tun.notes);
    });
}

#[test]
fn each_queue_of_a_device_has_its_share_of_the_bytes() {
    scratch::run(|| {
        if !crate::probe::bpf().is_granted() {
            assert!(std::env::var_os("CI").is_none(), "this test needs bpf(2)");
            return eprintln!("skipped: this test needs bpf(2)");
        }
        let limited = TunConfig { queue_bytes: 4 * (20 << 10), ..config("io-shares", 4) };
        let mut tun = open(&limited).unwrap();
        netns::set_address("io-shares", HERE, 24).unwrap();
        netns::set_up("io-shares").unwrap();
        // Four fifths of 20 KiB are 15 packets of 1128 bytes, rounded up.
        for _ in 0..400 {
            let (socket, _) = socket();
            socket.send_to(&[3; 76], SocketAddr::from((THERE, 7))).unwrap();
        }
        for queue in &mut tun.queues {
            let (_, small) = drain(queue);
            assert!((10..=19).contains(&small), "{small}");
        }
    });
}

#[test]
fn what_a_full_queue_drops_is_counted() {
    scratch::run(|| {
        const SENT: usize = 600;
        let mut tun = up(&config("io-full", 1));
        let (socket, _) = socket();
        for _ in 0..SENT {
            socket.send_to(&[1; 100], SocketAddr::from((THERE, 7))).unwrap();
        }
        let (_, small) = drain(&mut tun.queues[0]);
        let dropped = crate::overflow::dropped_by_device("io-full").unwrap();
        // Both may include the kernel's own IPv6 packets.
        assert!(small < SENT && dropped >= (SENT - small) as u64, "{small} read, {dropped} dropped");
    });
}

#[test]
fn a_device_without_bpf_is_limited_in_packets_and_loses_an_earlier_limit() {
    scratch::run(|| {
        let limited =
            TunConfig { queue_bytes: 2048, unlimited_queues: 2, persist: true, ..config("io-plain", 5) };
        let before = open(&limited).unwrap();
        assert_eq!(before.queues.len(), if before.limited { 5 } else { 2 }, "{:?}", before.notes);
        before.hold.keep().unwrap();
        drop(before);
        mask::hide(&[Feature::Bpf]).unwrap();
        let mut tun = up(&TunConfig { persist: false, ..limited });
        assert!(!tun.limited && tun.notes.len() == 1, "{:?}", tun.notes);
        assert!(tun.notes[0].contains("CAP_BPF"), "{:?}", tun.notes);
        assert_eq!(tun.queues.len(), 2);
        let (socket, _) = socket();
        for _ in 0..100 {
            socket.send_to(&[1; 100], SocketAddr::from((THERE, 7))).unwrap();
        }
        let arrived: usize = tun.queues.iter_mut().map(|queue| drain(queue).1).sum();
        assert_eq!(arrived, 100);
    });
}

/// capset(2) (linux/capability.h, version 3): drops all capabilities of the calling thread but these.
fn keep_capabilities(kept: u64) {
    let header = [0x2008_0522u32, 0];
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: the kernel reads a header of two words and two sets of three words each.
    let answer = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(answer, 0);
}
