//! A worker in steady state allocates nothing, copies no payload and sums no byte twice.
//!
//! The ports in this file deliver prepared packets and record their addresses in the arena, so that moved
//! payload is detected. The binary has a single test, because the allocator counts all threads.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not the ports")]

use std::io::{ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::Switches;
use engine::testing::ByHand;
use io::{Overlay, PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay, Waiter};
use path::{Fib, FibBuilder, Format, PeerSpec, Vxlan};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wire::addr::{Mac, Vni};
use wire::checksum::{Sum, pseudo_v4};
use wire::{ipv4, tcp, udp, virtio, vxlan};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const MTU: u16 = 1450;
const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 7);
/// Tunnel headers and the longest inner headers in this file; a virtio header is shorter than the tunnel
/// headers.
const HEADERS: usize = 22 + 40;
const PODS: usize = 0;
const WIRE: usize = 1;

/// The log that both ports share with the test, indexed by port.
#[derive(Default)]
struct Log {
    /// Batches that the port still has to deliver.
    waiting: [usize; 2],
    /// Memory ranges of the packets that the port has delivered.
    delivered: [Vec<Range<usize>>; 2],
    /// Bytes written to the port from where the other port had delivered them.
    kept: [usize; 2],
    /// Bytes written to the port from elsewhere.
    fresh: [usize; 2],
    /// Packets or datagrams written to the port.
    units: [usize; 2],
}

impl Log {
    fn note(&mut self, to: usize, arena: &[u8], spans: &[Range<u32>]) {
        for span in spans {
            let at = arena.as_ptr() as usize + span.start as usize;
            let len = span.len();
            // A header directly in front of a packet may be part of the same span.
            let shared = |s: &Range<usize>| s.end.min(at + len).saturating_sub(s.start.max(at));
            let kept: usize = self.delivered[1 - to].iter().map(shared).sum();
            self.kept[to] += kept;
            self.fresh[to] += len - kept;
        }
    }
}

struct Pods {
    packets: Vec<Vec<u8>>,
    next: usize,
    log: Arc<Mutex<Log>>,
    counters: PortCounters,
    /// Whether the port rejects super-packets, like a kernel without the offload.
    plain_only: bool,
}

struct Peers {
    /// Bytes and segment size of each receive.
    arrivals: Vec<(Vec<u8>, u16)>,
    log: Arc<Mutex<Log>>,
    counters: PortCounters,
}

impl Overlay for Pods {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut log = self.log.lock().unwrap();
        if log.waiting[PODS] == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.next == self.packets.len() {
            (self.next, log.waiting[PODS]) = (0, log.waiting[PODS] - 1);
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.next == 0 {
            log.delivered[PODS].clear();
        }
        let packet = &self.packets[self.next];
        self.next += 1;
        buffer[..packet.len()].copy_from_slice(packet);
        let at = buffer.as_ptr() as usize;
        log.delivered[PODS].push(at..at + packet.len());
        Ok(packet.len())
    }

    fn write(&mut self, arena: &[u8], spans: &[Range<u32>]) -> Result<()> {
        if self.plain_only && arena[spans[0].start as usize + 1] != 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut log = self.log.lock().unwrap();
        log.note(PODS, arena, spans);
        log.units[PODS] += 1;
        Ok(())
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, _: &mut Waiter, _: usize) -> Result<()> {
        Ok(())
    }
}

impl Underlay for Peers {
    fn shape(&self) -> Shape {
        Shape { slots: 16, len: 1 << 16 }
    }

    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> Result<()> {
        out.clear();
        let len = self.shape().len;
        let mut log = self.log.lock().unwrap();
        if log.waiting[WIRE] == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        log.waiting[WIRE] -= 1;
        log.delivered[WIRE].clear();
        for (slot, (bytes, segment_size)) in arena[at..].chunks_exact_mut(len).zip(&self.arrivals) {
            slot[..bytes.len()].copy_from_slice(bytes);
            let address = slot.as_ptr() as usize;
            log.delivered[WIRE].push(address..address + bytes.len());
            let at = (at + out.len() * len) as u32;
            let source = SocketAddr::from(([192, 0, 2, 2], 40_000));
            out.push(Received { at, len: bytes.len() as u32, segment_size: *segment_size, ecn: 0, source });
        }
        Ok(())
    }

    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        let mut log = self.log.lock().unwrap();
        let mut outcome = TransmitOutcome::default();
        for transmit in batch {
            let first = transmit.first_span as usize;
            log.note(WIRE, arena, &spans[first..first + transmit.span_count as usize]);
            log.units[WIRE] += usize::from(transmit.segments.max(1));
            outcome.sent += u32::from(transmit.segments.max(1));
        }
        outcome
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, _: &mut Waiter, _: usize) -> Result<()> {
        Ok(())
    }
}

/// Builds a TCP packet (if `seq` is given) or a UDP packet, with a valid or an open checksum.
fn packet(src: Ipv4Addr, dst: Ipv4Addr, seq: Option<u32>, id: u16, len: usize, open: bool) -> Vec<u8> {
    let transport_len = len + if seq.is_some() { 20 } else { 8 };
    let mut bytes = vec![0x5a; 20 + transport_len];
    let (protocol, field) = if seq.is_some() { (6, 16) } else { (17, 6) };
    let ip = ipv4::Header {
        header_len: 20,
        tos: 0,
        total_len: bytes.len() as u16,
        id,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol,
        checksum: 0,
        src,
        dst,
    };
    ip.emit(&mut bytes).unwrap();
    let (src_port, dst_port) = (40_000, 5201);
    if let Some(seq) = seq {
        let flags = tcp::ACK;
        let (ack, window, checksum, urgent) = (1, 500, 0, 0);
        let header =
            tcp::Header { src_port, dst_port, seq, ack, header_len: 20, flags, window, checksum, urgent };
        header.emit(&mut bytes[20..]).unwrap();
    } else {
        let len = transport_len as u16;
        udp::Header { src_port, dst_port, len, checksum: 0 }.emit(&mut bytes[20..]).unwrap();
    }
    let pseudo = pseudo_v4(src, dst, protocol, transport_len as u32);
    let check = if open { pseudo.fold() } else { pseudo.join(Sum::of(&bytes[20..])).finish() };
    bytes[20 + field..22 + field].copy_from_slice(&check.to_be_bytes());
    bytes
}

fn read(gso: virtio::Gso, gso_size: u16, packet: &[u8]) -> Vec<u8> {
    let flags = if gso == virtio::Gso::None { 0 } else { virtio::NEEDS_CSUM };
    let csum_offset = if gso == virtio::Gso::UdpL4 { 6 } else { 16 };
    let header = virtio::Header { flags, gso, ecn: false, hdr_len: 0, gso_size, csum_start: 20, csum_offset };
    let mut bytes = vec![0; virtio::HEADER_LEN];
    header.emit(&mut bytes).unwrap();
    bytes.extend(packet);
    bytes
}

fn framed(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; vxlan::HEADER_LEN];
    vxlan::Header { vni: Vni::new(1).unwrap(), policy: None }.emit(&mut bytes).unwrap();
    [&bytes[..], &OWN.octets(), &PEER.octets(), &[8, 0], packet].concat()
}

/// Returns every kind of packet that pods can send, and the payload bytes of those that are forwarded.
fn pod_packets() -> (Vec<Vec<u8>>, usize) {
    let mut reads = vec![
        read(virtio::Gso::Tcp4, 1410, &packet(NEAR, FAR, Some(1), 1, 60_000, true)),
        read(virtio::Gso::UdpL4, 1400, &packet(NEAR, FAR, None, 1, 40_000, true)),
    ];
    reads.extend((0..50).map(|id| read(virtio::Gso::None, 0, &packet(NEAR, FAR, None, id, 64, false))));
    // Two with ICMP errors (too big, no route), and two that are dropped (not IP, empty).
    reads.push(read(virtio::Gso::None, 0, &packet(NEAR, FAR, None, 1, 1500, false)));
    reads.push(read(virtio::Gso::None, 0, &packet(NEAR, Ipv4Addr::new(10, 9, 0, 1), None, 1, 64, false)));
    reads.push(vec![0; 40]);
    reads.push(vec![]);
    (reads, 60_000 + 40_000 + 50 * 64)
}

/// Returns every kind of receive: joined and single datagrams, uncut super-packets, noise; and the payload
/// bytes.
fn wire_arrivals() -> (Vec<(Vec<u8>, u16)>, usize) {
    let segment = |i: u16| framed(&packet(FAR, NEAR, Some(u32::from(i) * 1400), i, 1400, false));
    let datagram = |id: u16| framed(&packet(FAR, NEAR, None, id, 500, false));
    let mut arrivals =
        vec![((0..44).flat_map(segment).collect(), 1462), ((0..30).flat_map(datagram).collect(), 550)];
    arrivals.extend((30..34).map(|id| (datagram(id), 0)));
    arrivals.push((framed(&packet(FAR, NEAR, Some(1 << 20), 1, 50_000, true)), 0));
    arrivals.push((framed(&packet(FAR, NEAR, None, 40, 30_000, true)), 1000));
    arrivals.push((vec![0xff; 300], 0));
    arrivals.push((vec![], 0));
    (arrivals, 44 * 1400 + 34 * 500 + 50_000 + 30_000)
}

fn table() -> Fib {
    let format = Format::Vxlan(Vxlan { vni: Vni::new(1).unwrap(), local_mac: OWN });
    let mut builder = FibBuilder::new(format).reply_from(Some(Ipv4Addr::new(10, 1, 0, 0)), None);
    let remote = SocketAddr::from(([192, 0, 2, 2], 8472));
    builder.add("10.2.0.0/24".parse().unwrap(), PeerSpec { remote, mac: Some(PEER), mtu: MTU }).unwrap();
    builder.build().unwrap()
}

/// Sends batches in both directions through a worker and checks the log and the counters.
fn steady(switches: Switches, plain_only: bool) {
    const WARM_UP: usize = 10;
    const BATCHES: usize = 100;
    const ROUNDS: usize = 3;
    let log = Arc::new(Mutex::new(Log::default()));
    for ranges in &mut log.lock().unwrap().delivered {
        ranges.reserve(1 << 10);
    }
    let (packets, pod_payload) = pod_packets();
    let (arrivals, wire_payload) = wire_arrivals();
    let pods =
        Pods { packets, next: 0, log: Arc::clone(&log), counters: PortCounters::default(), plain_only };
    let peers = Peers { arrivals, log: Arc::clone(&log), counters: PortCounters::default() };
    let mut worker = ByHand::new(vec![pods], peers, table(), MTU, 4, switches).unwrap();
    let turn = |worker: &mut ByHand<Pods, Peers>| {
        log.lock().unwrap().waiting = [1, 1];
        worker.rouse();
        // ICMP errors about a flow are limited.
        worker.advance(Duration::from_secs(1));
        worker.turn().unwrap();
    };
    (0..WARM_UP).for_each(|_| turn(&mut worker));
    // The main thread of the harness may allocate too, once. What the worker allocates, it does each round.
    let mut allocated = Vec::new();
    for _ in 0..ROUNDS {
        {
            let mut log = log.lock().unwrap();
            (log.kept, log.fresh, log.units) = ([0; 2], [0; 2], [0; 2]);
        }
        let region = Region::new(ALLOCATOR);
        (0..BATCHES).for_each(|_| turn(&mut worker));
        let change = region.change();
        if (change.allocations, change.reallocations, change.deallocations) == (0, 0, 0) {
            allocated.clear();
            break;
        }
        allocated.push(change);
    }
    assert!(allocated.is_empty(), "{allocated:?}");

    let log = log.lock().unwrap();
    let per_batch = |counts: [usize; 2]| counts.map(|n| n / BATCHES);
    let [to_pods, to_wire] = per_batch(log.units);
    let (kept, fresh) = (per_batch(log.kept), per_batch(log.fresh));
    assert_eq!(log.waiting, [0, 0]);
    // To the wire: payload from where it was read, headers from elsewhere.
    assert_eq!(to_wire, 60_000_usize.div_ceil(1410) + 40_000_usize.div_ceil(1400) + 50);
    assert!(kept[WIRE] >= pod_payload, "{} of {pod_payload} bytes stayed where they were", kept[WIRE]);
    assert!(fresh[WIRE] <= to_wire * HEADERS, "{} bytes are not headers", fresh[WIRE]);
    // To the pods: the same, and two ICMP errors of at most 576 bytes.
    assert!(kept[PODS] >= wire_payload, "{} of {wire_payload} bytes stayed where they were", kept[PODS]);
    assert!(fresh[PODS] <= to_pods * HEADERS + 2 * 586, "{} bytes are not headers", fresh[PODS]);

    let rounds = (WARM_UP + BATCHES) as u64;
    assert_eq!(worker.counter("egress.replies"), 2 * rounds);
    assert_eq!(worker.counter("egress.drop.not_ip") + worker.counter("egress.drop.truncated"), 2 * rounds);
    // Each byte is summed once: to complete a checksum, or to verify that of a small packet.
    assert_eq!(worker.counter("egress.summed_bytes"), (100_000 + 50 * 72) * rounds);
    // Only packets with open checksums are not summed.
    let verified = (44 * 1420 + 34 * 508) * rounds;
    let summed = worker.counter("ingress.summed_bytes");
    if switches.tso && !plain_only {
        assert_eq!(summed, verified);
    } else {
        // Without offloads on the overlay, packets that are open or joined must be completed here.
        assert!((verified..=verified + wire_payload as u64 * rounds).contains(&summed), "{summed}");
    }
}

#[test]
fn a_batch_allocates_nothing_and_moves_no_payload() {
    steady(Switches::default(), false);
    steady(Switches { tso: false, uso: false, ..Switches::default() }, false);
    steady(Switches::default(), true);
}
