//! The steady-state cost of a packet: no heap allocation and few system calls.
#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use io::{Overlay, PeerId, Received, Shape, Transmit, Underlay, Waiter, memory, udp};

/// Counts the calling thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller upholds the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SEGMENT: usize = 1450;
const SEGMENTS: usize = 45;
const SHAPE: Shape = Shape { slots: 64, len: 65_535 };
/// A datagram that has not arrived by then is lost.
const PATIENCE: Duration = Duration::from_secs(20);

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

fn super_packet(to: std::net::SocketAddr) -> (Vec<u8>, Vec<Range<u32>>, Transmit) {
    let arena = vec![7; SEGMENT * SEGMENTS];
    let spans = (0..SEGMENTS as u32)
        .map(|index| index * SEGMENT as u32)
        .flat_map(|at| [at..at + 50, at + 50..at + SEGMENT as u32])
        .collect();
    let transmit = Transmit {
        to,
        peer: PeerId(0),
        lane: 3,
        first_span: 0,
        span_count: 2 * SEGMENTS as u32,
        segment_size: SEGMENT as u16,
        segments: SEGMENTS as u16,
        ecn: 2,
    };
    (arena, spans, transmit)
}

/// Sends and receives `rounds` super-packets; all must arrive.
fn exchange(sender: &mut impl Underlay, receiver: &mut impl Underlay, work: &mut Exchange, rounds: usize) {
    for _ in 0..rounds {
        // Nothing waits, so each report is of what this round sends.
        while !work.waiter.wait(Some(Duration::ZERO)).unwrap().is_empty() {}
        let outcome = sender.transmit(&work.arena, &work.spans, &[work.transmit]);
        assert_eq!(outcome.sent, SEGMENTS as u32);
        let mut bytes = 0;
        while bytes < SEGMENT * SEGMENTS {
            // A busy kernel may deliver late. A call that finds nothing counts, so none is made before.
            assert!(!work.waiter.wait(Some(PATIENCE)).unwrap().is_empty(), "{bytes} bytes arrived");
            if receiver.receive(&mut work.slots, 0, &mut work.out).is_err() {
                // The report was of datagrams that are read already.
                continue;
            }
            bytes += work.out.iter().map(|received| received.len as usize).sum::<usize>();
        }
        // The last call of a turn finds nothing.
        assert!(receiver.receive(&mut work.slots, 0, &mut work.out).is_err());
    }
}

struct Exchange {
    arena: Vec<u8>,
    spans: Vec<Range<u32>>,
    transmit: Transmit,
    slots: Vec<u8>,
    out: Vec<Received>,
    waiter: Waiter,
}

fn exchange_with(receiver: &impl Underlay, to: std::net::SocketAddr) -> Exchange {
    let (arena, spans, transmit) = super_packet(to);
    let mut waiter = Waiter::new().unwrap();
    receiver.register(&mut waiter, 0).unwrap();
    let (slots, out) = (vec![0; SHAPE.bytes()], Vec::with_capacity(SHAPE.slots));
    Exchange { arena, spans, transmit, slots, out, waiter }
}

fn open(segment: bool, gro: bool, mmsg: bool) -> udp::UdpPort {
    let config = udp::UdpConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        send_from: Some("127.0.0.1".parse().unwrap()),
        fan: 4,
        shape: SHAPE,
        segment,
        gro,
        mmsg,
        own_path_mtu: true,
        receive_buffer: 8 << 20,
        send_buffer: 8 << 20,
    };
    udp::open(&config, 1).unwrap().pop().unwrap()
}

#[test]
fn sockets_allocate_nothing_per_packet() {
    for (segment, gro, mmsg) in [(true, true, true), (false, false, true), (false, false, false)] {
        let (mut sender, mut receiver) = (open(segment, gro, mmsg), open(segment, gro, mmsg));
        let mut work = exchange_with(&receiver, receiver.local_addr().unwrap());
        exchange(&mut sender, &mut receiver, &mut work, 2);
        let count = allocations(|| exchange(&mut sender, &mut receiver, &mut work, 100));
        assert_eq!(count, 0, "segment {segment}, gro {gro}, mmsg {mmsg}");
    }
}

#[test]
fn memory_ports_allocate_nothing_once_warm() {
    let to = "192.0.2.2:1".parse().unwrap();
    let options = memory::MemoryConfig { shape: SHAPE, ..memory::MemoryConfig::default() };
    let (mut a, mut b) = memory::underlay_pair("192.0.2.1:1".parse().unwrap(), to, options);
    let mut work = exchange_with(&b, to);
    exchange(&mut a, &mut b, &mut work, 2);
    assert_eq!(allocations(|| exchange(&mut a, &mut b, &mut work, 100)), 0);

    let (mut port, pod) = memory::overlay();
    let mut buffer = vec![0; 2000];
    let mut turn = || {
        pod.inject(&[1; 1500]);
        port.read(&mut buffer).unwrap();
    };
    turn();
    assert_eq!(allocations(|| (0..100).for_each(|_| turn())), 0);
}

/// Bounds the underlay's part of the 50,000 calls per GiB and host, including one empty receive after every
/// super-packet.
#[test]
fn a_gibibyte_costs_few_calls_on_the_socket_side() {
    let (mut sender, mut receiver) = (open(true, true, true), open(true, true, true));
    if !(sender.features().segment && receiver.features().gro) {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI requires UDP_SEGMENT and UDP_GRO");
        eprintln!("skipped: {:?} {:?}", sender.notes(), receiver.notes());
        return;
    }
    let mut work = exchange_with(&receiver, receiver.local_addr().unwrap());
    let rounds = 200;
    exchange(&mut sender, &mut receiver, &mut work, rounds);
    let bytes = sender.counters().write_bytes;
    assert_eq!(bytes, (rounds * SEGMENT * SEGMENTS) as u64);
    let per_gib = |calls: u64| calls * (1 << 30) / bytes;
    assert!(per_gib(sender.counters().calls()) <= 17_000, "{:?}", sender.counters());
    assert!(per_gib(receiver.counters().calls()) <= 34_000, "{:?}", receiver.counters());
}
