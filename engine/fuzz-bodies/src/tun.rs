//! Target for super-packets against the TUN driver of the running kernel.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use io::Overlay;
use io::tun::{self, Offloads, Queue, TunConfig};
use path::egress::{self, HEADROOM};
use path::offload::coalesce::{Coalescer, Joins};
use path::outbox::Outbox;
use path::{
    Counters, DropReason, Fib, FibBuilder, Format, PeerSpec, Received, SegmentSizes, Verdict, ingress,
};
use wire::checksum::{pseudo_v4, pseudo_v6};
use wire::{ipv4, ipv6, virtio};

use crate::input::Input;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Space for headers, as in a worker.
const SPACE: usize = 1 << 18;
/// The largest packet that any of the devices takes.
const MTU: u16 = 65_000;
const TTL: u8 = 64;
/// The subnet of the device that packets are written to, and those of the devices they are forwarded to:
/// one with all offloads, and one for which the kernel cuts and sums everything itself.
const SUBNETS: [u8; 3] = [0, 1, 2];
const NAMES: [&str; 3] = ["lfuzz0", "lfuzz1", "lfuzz2"];
const FLOWS: usize = 8;
/// Maximum packets of one input.
const PACKETS: usize = 200;

/// Has datagrams with packets for pods joined, writes the result to a TUN device, and reads what the kernel
/// forwards to another one. The input chooses flows, sizes, flags and header fields; see [`Flow::next`].
///
/// The kernel must accept every super-packet. What it forwards, cut by the kernel or by the egress path,
/// must be packets as they were received, in the order of their flow; packets with ordinary headers must all
/// come out.
pub fn tun(data: &[u8]) {
    static DEVICES: OnceLock<Option<Mutex<Vec<Queue>>>> = OnceLock::new();
    let Some(devices) = DEVICES.get_or_init(|| devices().map(Mutex::new)) else { return };
    let mut devices = devices.lock().unwrap_or_else(PoisonError::into_inner);
    let mut input = Input(data);
    let joins = input.byte();
    let joins = Joins { tcp: joins & 1 == 0, udp: joins & 2 == 0 };
    let mut flows: Vec<Flow> = (0..FLOWS as u8).map(Flow::new).collect();
    let mut packets = Vec::new();
    while !input.is_empty() && packets.len() < PACKETS {
        let flow = input.below(flows.len());
        packets.push(flows[flow].next(&mut input));
    }
    write(&mut devices[0], &packets, joins);
    let forwarded = [read(&mut devices[1]), read(&mut devices[2])].concat();
    check(&packets, &forwarded);
}

/// Opens the devices in a network namespace that nothing else sees. Returns `None` if this machine does not
/// allow it, unless CI=true.
fn devices() -> Option<Vec<Queue>> {
    let opened = std::thread::spawn(|| {
        io::netns::enter_scratch().map_err(|error| error.to_string())?;
        let forwarding = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];
        for name in forwarding {
            std::fs::write(format!("/proc/sys/net/{name}"), "1")
                .map_err(|error| format!("{name}: {error}"))?;
        }
        let all = Offloads { csum: true, tso: true, uso: true };
        [all, all, Offloads::default()]
            .into_iter()
            .zip(SUBNETS)
            .map(|(offloads, subnet)| device(offloads, subnet))
            .collect()
    });
    match opened.join().unwrap_or_else(|_| Err("a panic".to_owned())) {
        Ok(queues) => Some(queues),
        Err(why) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "required in CI: {why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn device(offloads: Offloads, subnet: u8) -> Result<Queue, String> {
    let name = NAMES[usize::from(subnet)];
    let config = TunConfig::plain(name, offloads);
    let mut tun = tun::open(&config).map_err(|error| error.to_string())?;
    if tun.granted != offloads {
        return Err(tun.notes.join("; "));
    }
    for command in [
        format!("link set {name} mtu {MTU} txqueuelen 1000 up"),
        format!("addr add 198.18.{subnet}.1/24 dev {name}"),
        format!("addr add fd00:{subnet}::1/64 dev {name} nodad"),
    ] {
        let output =
            Command::new("ip").args(command.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
        if !output.status.success() {
            return Err(format!("ip {command}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    tun.queues.pop().ok_or("no queue".to_owned())
}

/// A flow between two pods.
struct Flow {
    number: u8,
    v6: bool,
    protocol: u8,
    /// The destination's subnet.
    to: u8,
    sequence: u32,
    id: u16,
}

/// A packet for a pod, as it was received.
struct Packet {
    bytes: Vec<u8>,
    flow: usize,
    ecn: u8,
    /// The kernel must forward it.
    ordinary: bool,
}

impl Flow {
    fn new(number: u8) -> Flow {
        Flow {
            number,
            v6: number & 1 != 0,
            protocol: if number & 2 != 0 { UDP } else { TCP },
            to: if number & 4 != 0 { 2 } else { 1 },
            sequence: 0xffff_f000,
            id: 0xfff0,
        }
    }

    /// Builds the flow's next packet as the input chooses.
    fn next(&mut self, input: &mut Input<'_>) -> Packet {
        let choice = input.byte();
        // Equal sizes are what is joined.
        let len = match choice & 3 {
            0 => 1000,
            1 => 1 + usize::from(input.byte()),
            2 => usize::from(input.word() % 9000),
            _ => 1400,
        };
        let ecn = if choice & 4 != 0 { input.byte() & 3 } else { 0 };
        let (mut flags, mut options, mut tos, mut ttl, mut fragment) = (0x10, 0, 0, TTL, 0x40);
        if choice & 8 != 0 {
            flags = input.byte();
        }
        if choice & 16 != 0 {
            options = input.below(11);
        }
        if choice & 32 != 0 {
            (tos, ttl) = (input.byte(), input.byte().max(1));
        }
        if choice & 64 != 0 {
            fragment = input.byte() & 0x40;
            self.id = self.id.wrapping_add(u16::from(input.byte()));
            self.sequence = self.sequence.wrapping_add(u32::from(input.byte()));
        }
        let transport = self.transport(flags, options, len);
        let mut bytes = if self.v6 {
            ip_v6(self, tos, ttl, &transport)
        } else {
            ip_v4(self, (tos, ttl, fragment), &transport)
        };
        self.sequence = self.sequence.wrapping_add(len as u32);
        self.id = self.id.wrapping_add(1);
        // This node, the kernel and the egress path are a hop each. Congestion is not hidden from a flow
        // that cannot hear of it (RFC 6040).
        let mut ordinary = ttl > 3 && !(ecn == 3 && tos & 3 == 0);
        if choice & 128 != 0 {
            let at = usize::from(input.word()) % bytes.len();
            bytes[at] ^= input.byte();
            if input.byte() & 1 == 0 {
                self.sum(&mut bytes);
            }
            ordinary = false;
        }
        Packet { bytes, flow: usize::from(self.number), ecn, ordinary }
    }

    fn transport(&self, flags: u8, options: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0x9c, 0x40, 0x14, 0x51];
        if self.protocol == TCP {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([0, 0, 0, 7, ((5 + options) << 4) as u8, flags, 0x20, 0, 0, 0, 0, 0]);
            bytes.extend(std::iter::repeat_n(1, 4 * options));
        } else {
            bytes.extend([(8 + len as u16).to_be_bytes(), [0, 0]].concat());
        }
        bytes.extend((0..len).map(|at| (at as u32 ^ self.sequence ^ u32::from(self.id)) as u8));
        bytes
    }

    /// Writes the checksums of the IP header and of what follows it.
    fn sum(&self, packet: &mut [u8]) {
        let lengths = ipv4::MIN_HEADER_LEN..=packet.len();
        let Some(header_len) = header_len(packet, self.v6).filter(|len| lengths.contains(len)) else {
            return;
        };
        let (ip, transport) = packet.split_at_mut(header_len);
        let field = if self.protocol == TCP { 16 } else { 6 };
        let len = transport.len() as u32;
        let sum = if self.v6 {
            let address = |at| <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap_or_default().into();
            pseudo_v6(address(8), address(24), self.protocol, len)
        } else {
            ipv4::fill_checksum(ip);
            let address = |at| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap_or_default().into();
            pseudo_v4(address(12), address(16), self.protocol, len)
        };
        let Some(place) = transport.get_mut(field..field + 2) else { return };
        place.fill(0);
        let sum = match sum.add(transport).finish() {
            // A UDP checksum of 0 means that there is none.
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

fn ip_v4(flow: &Flow, (tos, ttl, fragment): (u8, u8, u8), transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ipv4::MIN_HEADER_LEN];
    let header = ipv4::Header {
        header_len: ipv4::MIN_HEADER_LEN,
        tos,
        total_len: (ipv4::MIN_HEADER_LEN + transport.len()) as u16,
        id: flow.id,
        dont_fragment: fragment != 0,
        more_fragments: false,
        fragment_offset: 0,
        ttl,
        protocol: flow.protocol,
        checksum: 0,
        src: Ipv4Addr::new(198, 18, 0, 2),
        dst: Ipv4Addr::new(198, 18, flow.to, 2),
    };
    assert!(header.emit(&mut bytes).is_ok());
    bytes.extend_from_slice(transport);
    flow.sum(&mut bytes);
    bytes
}

fn ip_v6(flow: &Flow, class: u8, hop_limit: u8, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60 | class >> 4, class << 4, 0, 0];
    bytes.extend((transport.len() as u16).to_be_bytes());
    bytes.extend([flow.protocol, hop_limit]);
    bytes.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
    bytes.extend(Ipv6Addr::new(0xfd00, flow.to.into(), 0, 0, 0, 0, 0, 2).octets());
    bytes.extend_from_slice(transport);
    flow.sum(&mut bytes);
    bytes
}

fn header_len(packet: &[u8], v6: bool) -> Option<usize> {
    if v6 { Some(ipv6::HEADER_LEN) } else { packet.first().map(|first| usize::from(first & 15) * 4) }
}

/// Has the packets joined, and writes the result to the device.
fn write(queue: &mut Queue, packets: &[Packet], joins: Joins) {
    let fib = table(Format::Udp);
    let sizes = SegmentSizes::new(MTU, 7);
    let room: usize = packets.iter().map(|packet| packet.bytes.len() + 64).sum();
    let mut arena = vec![0xee; SPACE + room];
    let mut coalescer = Coalescer::new(0..SPACE as u32, joins);
    let (mut counters, mut at) = (Counters::default(), SPACE);
    let source = SocketAddr::from(([192, 0, 2, 2], 8472));
    for packet in packets {
        if !coalescer.has_room() {
            write_runs(queue, &mut arena, &mut coalescer);
        }
        let end = at + packet.bytes.len();
        arena[at..end].copy_from_slice(&packet.bytes);
        let len = packet.bytes.len() as u32;
        let received = Received { at: at as u32, len, segment_size: 0, ecn: packet.ecn, source };
        ingress::ingress(&mut arena, received, &fib, &sizes, &mut coalescer, &mut counters.ingress);
        at = end.next_multiple_of(64);
    }
    write_runs(queue, &mut arena, &mut coalescer);
}

fn write_runs(queue: &mut Queue, arena: &mut [u8], coalescer: &mut Coalescer) {
    coalescer.seal(arena);
    for run in coalescer.runs() {
        if let Err(error) = queue.write(arena, run.spans()) {
            panic!("the kernel rejects a run of {} segments: {error}", run.segments());
        }
    }
    coalescer.clear();
}

/// Reads what the kernel has forwarded to a device, and has it cut.
fn read(queue: &mut Queue) -> Vec<Vec<u8>> {
    let fib = table(Format::Udp);
    let sizes = SegmentSizes::new(MTU, 7);
    let mut arena = vec![0xee; SPACE + HEADROOM + virtio::HEADER_LEN + 65_536];
    let mut outbox = Outbox::new(0..SPACE as u32);
    let (mut counters, mut sent) = (Counters::default(), Vec::new());
    while let Ok(len) = queue.read(&mut arena[SPACE + HEADROOM..]) {
        let read = (SPACE + HEADROOM) as u32..(SPACE + HEADROOM + len) as u32;
        let ip = &arena[SPACE + HEADROOM + virtio::HEADER_LEN..];
        if !is_ours(ip) {
            continue;
        }
        let bound = match egress::check(&mut arena, read.clone(), &fib, &sizes) {
            Ok(bound) => bound,
            Err(refusal) if refusal.reason == DropReason::TtlExpired => continue,
            Err(refusal) => {
                let start = &arena[SPACE + HEADROOM..][..80];
                panic!("forwarded by the kernel, but refused: {refusal:?}, {len} bytes {start:02x?}")
            }
        };
        let verdict = egress::queue(&mut arena, &bound, 1, &mut outbox, &mut counters.egress);
        assert_eq!(verdict, Verdict::ToUnderlay(bound.datagrams() as u32));
        for message in outbox.pending() {
            let bytes = gather(&arena, outbox.spans_of(message));
            sent.extend(bytes.chunks(usize::from(message.segment_size).max(1)).map(<[u8]>::to_vec));
        }
        outbox.clear();
    }
    sent
}

fn gather(arena: &[u8], spans: &[Range<u32>]) -> Vec<u8> {
    spans.iter().flat_map(|span| &arena[span.start as usize..span.end as usize]).copied().collect()
}

/// Whether a packet comes from a pod, and not from the kernel itself.
fn is_ours(ip: &[u8]) -> bool {
    match ip[0] >> 4 {
        4 => ip[12..16] == [198, 18, 0, 2],
        _ => ip[8..24] == Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets(),
    }
}

/// Compares the packets that were forwarded with those that were received.
fn check(packets: &[Packet], forwarded: &[Vec<u8>]) {
    let mut expected: Vec<Option<Vec<u8>>> =
        packets.iter().map(|packet| Some(normal(&packet.bytes))).collect();
    let mut last = [None; FLOWS];
    for packet in forwarded {
        let packet = normal(packet);
        let same = |index: &usize| expected[*index].as_ref() == Some(&packet);
        // Of packets that are alike, some may have been dropped.
        let found = (0..packets.len()).filter(same).min_by_key(|index| !packets[*index].ordinary);
        let Some(found) = found else {
            panic!("not received, but forwarded: {}", nearest(&expected, packet))
        };
        expected[found] = None;
        let Packet { flow, ordinary, .. } = packets[found];
        if ordinary {
            assert!(last[flow] < Some(found), "packet {found} of flow {flow} is out of order");
            last[flow] = Some(found);
        }
    }
    for (number, (packet, expected)) in packets.iter().zip(expected).enumerate() {
        assert!(
            !packet.ordinary || expected.is_none(),
            "packet {number} of {} was not forwarded",
            packets.len()
        );
    }
}

/// Describes a packet by its difference to the most similar one that was received.
fn nearest(expected: &[Option<Vec<u8>>], packet: Vec<u8>) -> String {
    let differences = |other: &Vec<u8>| {
        let bytes = packet.iter().zip(other).enumerate().filter(|(_, (ours, theirs))| ours != theirs);
        bytes.map(|(at, (ours, theirs))| (at, *ours, *theirs)).collect::<Vec<_>>()
    };
    let similar = expected.iter().flatten().filter(|other| other.len() == packet.len());
    match similar.map(differences).min_by_key(Vec::len) {
        Some(bytes) => {
            format!("{} bytes, which differ in (offset, sent, received) {bytes:02x?}", packet.len())
        }
        None => format!("{packet:02x?}"),
    }
}

/// Returns a packet without the fields that each hop may change: time to live, ECN, header checksum; and
/// without bytes behind its end, as of an Ethernet frame.
fn normal(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let word =
        |at: usize| packet.get(at..at + 2).map(|len| usize::from(u16::from_be_bytes([len[0], len[1]])));
    let end = match packet.first().map(|first| first >> 4) {
        Some(4) => word(2),
        _ => word(4).map(|len| ipv6::HEADER_LEN + len),
    };
    packet.truncate(end.unwrap_or_default());
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= ipv4::MIN_HEADER_LEN => {
            packet[1] &= !3;
            packet[8] = 0;
            packet[10..12].fill(0);
        }
        Some(6) if packet.len() >= ipv6::HEADER_LEN => {
            packet[1] &= !0x30;
            packet[7] = 0;
        }
        _ => {}
    }
    packet
}

fn table(format: Format) -> Fib {
    let mut builder = FibBuilder::new(format);
    for prefix in ["198.18.0.0/15", "fd00::/16"] {
        let spec = PeerSpec { remote: SocketAddr::from(([192, 0, 2, 2], 8472)), mac: None, mtu: MTU };
        if let Ok(prefix) = prefix.parse() {
            assert_eq!(builder.add(prefix, spec), Ok(()));
        }
    }
    builder.build().unwrap_or_else(|error| panic!("{error}"))
}
