//! TUN super-packets through the forwarding path of a scratch namespace: written to one device and read from
//! another, once cut by the kernel and once whole. The kernel's segments must equal the engine's.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use io::tun::{self, Queue};
use io::{Overlay, Waiter};
use path::inner::{Inner, TCP, UDP};
use path::offload::segment::SuperPacket;
use path::space::Space;
use wire::virtio;

use super::{Outcome, Report, TRAINS, pattern};
use crate::config::Switches;

const PATIENCE: Duration = Duration::from_millis(300);
const ROOM: usize = 1 << 16;
/// Benchmarking addresses (RFC 2544), in a namespace that nothing else sees.
const FROM: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const TO: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const FROM_SIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const TO_SIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const TTL: u8 = 64;

const CASES: [(&str, u8, &str); 2] = [
    ("tso", TCP, "TCP super-packets through two TUN devices"),
    ("uso", UDP, "UDP super-packets through two TUN devices"),
];

pub(super) fn check(wanted: &Switches, report: &mut Report) {
    for (feature, protocol, what) in CASES {
        if is_wanted(wanted, feature) {
            report.add(feature, what, through(protocol));
        }
    }
}

pub(super) fn skip(wanted: &Switches, why: &str, report: &mut Report) {
    for (feature, _, what) in CASES {
        if is_wanted(wanted, feature) {
            report.add(feature, what, Outcome::Untested(why.to_owned()));
        }
    }
}

fn is_wanted(wanted: &Switches, feature: &str) -> bool {
    wanted.named().iter().any(|(name, on)| *name == feature && *on)
}

fn through(protocol: u8) -> Outcome {
    // Test whole super-packets first: if the kernel does not deliver them, there is nothing to test.
    for whole in [true, false] {
        match devices(protocol, whole)
            .and_then(|pair| pair.map(|(a, b)| trains(a, b, protocol, whole)).transpose())
        {
            Ok(Some(Outcome::Works)) => {}
            Ok(Some(other)) => return other,
            Ok(None) => return Outcome::Untested("not supported by the kernel".into()),
            Err(why) => return Outcome::Untested(why),
        }
    }
    Outcome::Works
}

/// Opens the two devices; the second has the offload if packets must arrive whole. Returns `None` if the
/// kernel does not grant the offload.
fn devices(protocol: u8, whole: bool) -> Result<Option<(Queue, Queue)>, String> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .map_err(|error| format!("enabling forwarding in the scratch namespace: {error}"))?;
    let offloads = tun::Offloads { csum: true, tso: true, uso: protocol == UDP };
    let bare = tun::Offloads { csum: false, tso: false, uso: false };
    let open = |name: &str, offloads, address| {
        let config = tun::TunConfig::plain(name, offloads);
        let mut tun = tun::open(&config).map_err(|error| error.to_string())?;
        let failed = |error: std::io::Error| format!("setting up {name}: {error}");
        io::netns::set_address(name, address, 24).map_err(failed)?;
        io::netns::set_up(name).map_err(failed)?;
        let queue = tun.queues.pop().ok_or("no queue")?;
        Ok::<_, String>((queue, tun.granted))
    };
    let (first, _) = open("ltest0", offloads, FROM_SIDE)?;
    let (second, granted) = open("ltest1", if whole { offloads } else { bare }, TO_SIDE)?;
    let missing = whole && (!granted.tso || (protocol == UDP && !granted.uso));
    Ok((!missing).then_some((first, second)))
}

fn trains(mut first: Queue, mut second: Queue, protocol: u8, whole: bool) -> Result<Outcome, String> {
    let mut waiter = Waiter::new().map_err(|error| error.to_string())?;
    second.register(&mut waiter, 0).map_err(|error| error.to_string())?;
    for (size, total) in TRAINS {
        let packet = super_packet(protocol, size as u16, &pattern(total));
        let all = 0..packet.len() as u32;
        if let Err(error) = first.write(&packet, std::slice::from_ref(&all)) {
            return Ok(Outcome::Broken(format!("writing {total} bytes in segments of {size}: {error}")));
        }
        let mut expected = cut(&packet, size as u16);
        if whole {
            expected.truncate(1);
        }
        let read = read_all(&mut second, &mut waiter, expected.len(), protocol)?;
        let right = if whole {
            read.first().is_some_and(|read| same_whole(read, &packet, size as u16))
        } else {
            read.iter().map(|packet| &packet[virtio::HEADER_LEN..]).eq(expected.iter().map(Vec::as_slice))
        };
        if !right {
            let how = if whole { "whole" } else { "cut" };
            return Ok(Outcome::Broken(format!(
                "{total} bytes in segments of {size}, expected {how}: received {} packets, wrong or too few",
                read.len()
            )));
        }
    }
    Ok(Outcome::Works)
}

/// Reads packets of the tested protocol, skipping the packets that the kernel sends on a new device.
fn read_all(
    queue: &mut Queue,
    waiter: &mut Waiter,
    expected: usize,
    protocol: u8,
) -> Result<Vec<Vec<u8>>, String> {
    let mut room = vec![0; ROOM + virtio::HEADER_LEN];
    let mut packets = Vec::new();
    while packets.len() < expected {
        match queue.read(&mut room) {
            Ok(len) => {
                let packet = &room[..len];
                let inner = packet.get(virtio::HEADER_LEN..).map(Inner::parse);
                if inner.and_then(Result::ok).is_some_and(|inner| inner.protocol == protocol && !inner.v6) {
                    packets.push(packet.to_vec());
                }
            }
            Err(_) => {
                if waiter.wait(Some(PATIENCE)).map_err(|error| error.to_string())?.is_empty() {
                    break;
                }
            }
        }
    }
    Ok(packets)
}

/// Builds a super-packet with an open checksum, virtio header first.
fn super_packet(protocol: u8, size: u16, payload: &[u8]) -> Vec<u8> {
    let transport_len = if protocol == TCP { 20 } else { 8 };
    let (ip_len, field) = (20, if protocol == TCP { 16 } else { 6 });
    let total = ip_len + transport_len + payload.len();
    let mut packet = vec![0; virtio::HEADER_LEN + total];
    let (head, ip) = packet.split_at_mut(virtio::HEADER_LEN);
    let gso = if protocol == TCP { virtio::Gso::Tcp4 } else { virtio::Gso::UdpL4 };
    let virtio = virtio::Header {
        flags: virtio::NEEDS_CSUM,
        gso,
        ecn: false,
        hdr_len: (ip_len + transport_len) as u16,
        gso_size: size,
        csum_start: ip_len as u16,
        csum_offset: field,
    };
    let header = wire::ipv4::Header {
        header_len: ip_len,
        tos: 0,
        total_len: total as u16,
        id: 7,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: TTL,
        protocol,
        checksum: 0,
        src: FROM,
        dst: TO,
    };
    // Both buffers are long enough.
    let _ = virtio.emit(head);
    let _ = header.emit(ip);
    let (transport, data) = ip[ip_len..].split_at_mut(transport_len);
    transport[..4].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    if protocol == TCP {
        transport[4..8].copy_from_slice(&1000u32.to_be_bytes());
        transport[12..14].copy_from_slice(&[0x50, wire::tcp::ACK | wire::tcp::PSH]);
        transport[14] = 0x20;
    } else {
        transport[4..6].copy_from_slice(&((transport_len + payload.len()) as u16).to_be_bytes());
    }
    let open = wire::checksum::pseudo_v4(FROM, TO, protocol, (transport_len + payload.len()) as u32).fold();
    transport[usize::from(field)..usize::from(field) + 2].copy_from_slice(&open.to_be_bytes());
    data.copy_from_slice(payload);
    packet
}

/// Returns the segments that `packet` must become after one hop.
fn cut(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    let mut arena = packet.to_vec();
    wire::ipv4::decrement_ttl(&mut arena[virtio::HEADER_LEN..]);
    let at = virtio::HEADER_LEN as u32;
    let parsed = Inner::parse(&arena[virtio::HEADER_LEN..]);
    let Some(whole) =
        parsed.and_then(|inner| SuperPacket::check(inner, &arena[virtio::HEADER_LEN..], at, size)).ok()
    else {
        return Vec::new();
    };
    let start = arena.len() as u32;
    arena.resize(arena.len() + whole.segments() * whole.header_len, 0);
    let mut space = Space::new(start..arena.len() as u32);
    let mut packets = Vec::new();
    let piece = |arena: &[u8], span: Range<u32>| arena[span.start as usize..span.end as usize].to_vec();
    whole.cut(
        &mut arena,
        &[whole.payload()],
        0,
        |len| space.take(len),
        |arena, header, payload| {
            let mut one = piece(arena, header);
            one.extend(piece(arena, payload));
            packets.push(one);
        },
    );
    packets
}

/// Whether `read` is `sent` after one hop, still whole.
fn same_whole(read: &[u8], sent: &[u8], size: u16) -> bool {
    let mut sent = sent.to_vec();
    wire::ipv4::decrement_ttl(&mut sent[virtio::HEADER_LEN..]);
    let same_size = virtio::Header::parse(read).is_ok_and(|header| header.gso_size == size);
    same_size && read[virtio::HEADER_LEN..] == sent[virtio::HEADER_LEN..]
}
