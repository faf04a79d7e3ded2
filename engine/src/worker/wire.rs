//! A worker's wire: its ports, the arena that they fill, and the tunnel that each port serves.

use std::io::Result;
use std::ops::Range;

use io::{PortCounters, Ready, Received, Transmit, TransmitOutcome, Underlay, Waiter};

use crate::tunnel::ARENA_HEADERS;

/// Maximum receive calls of one port per turn.
const BUDGET: usize = 4;

/// The ports of one worker.
///
/// All ports share one arena: what one port has received is written to the pods before the next port
/// receives. The arena begins with space for the tunnels' headers, see [`ARENA_HEADERS`], followed by the
/// port's slots.
pub(crate) struct Wire<U> {
    ports: Vec<Berth<U>>,
    arena: Box<[u8]>,
    received: Vec<Received>,
}

/// A port and its state.
struct Berth<U> {
    port: U,
    /// The tunnel that sends and receives through this port.
    tunnel: usize,
    /// Whether there may be something to read. The waiter sets it; a receive call that fills fewer slots than
    /// offered clears it.
    ready: bool,
    token: usize,
}

/// One tunnel's access to the wire.
pub(crate) struct Outlet<'w, U> {
    wire: &'w mut Wire<U>,
    tunnel: usize,
}

impl<U: Underlay> Wire<U> {
    /// Creates a wire of these ports, each with the tunnel that it serves.
    pub(crate) fn new(ports: Vec<(usize, U)>) -> Self {
        let shapes = || ports.iter().map(|(_, port)| port.shape());
        let room = shapes().map(|shape| shape.bytes()).max().unwrap_or(0);
        let slots = shapes().map(|shape| shape.slots).max().unwrap_or(0);
        Wire {
            arena: vec![0; ARENA_HEADERS + room].into_boxed_slice(),
            received: Vec::with_capacity(slots),
            ports: ports
                .into_iter()
                .map(|(tunnel, port)| Berth { port, tunnel, ready: true, token: 0 })
                .collect(),
        }
    }

    /// Registers all ports under consecutive tokens from `token` on. Returns the next free token.
    pub(crate) fn register(&mut self, waiter: &mut Waiter, token: usize) -> Result<usize> {
        for (berth, token) in self.ports.iter_mut().zip(token..) {
            berth.token = token;
            berth.port.register(waiter, token)?;
        }
        Ok(token + self.ports.len())
    }

    /// Receives from each port that may have datagrams, and calls `hand` with the tunnel, the arena and the
    /// datagrams. Returns whether there were any.
    #[inline]
    pub(crate) fn receive(&mut self, mut hand: impl FnMut(usize, &mut [u8], &[Received])) -> bool {
        let Wire { ports, arena, received } = self;
        let mut worked = false;
        for berth in ports {
            for _ in 0..BUDGET {
                if !berth.ready {
                    break;
                }
                if berth.port.receive(arena, ARENA_HEADERS, received).is_err() {
                    // The port is empty, or has counted an error. In both cases the next arrival is reported.
                    berth.ready = false;
                    break;
                }
                worked = true;
                // With fewer datagrams than slots the queue was empty at that moment, and later arrivals are
                // reported.
                berth.ready = received.len() == berth.port.shape().slots;
                // A socket belongs to one tunnel, so its datagrams need no classification.
                hand(berth.tunnel, arena, received);
            }
        }
        worked
    }

    /// Returns one tunnel's access to the wire.
    #[inline]
    pub(crate) fn outlet(&mut self, tunnel: usize) -> Outlet<'_, U> {
        Outlet { wire: self, tunnel }
    }

    /// Whether a port may have something to read.
    pub(crate) fn is_ready(&self) -> bool {
        self.ports.iter().any(|berth| berth.ready)
    }

    /// Marks the ports that the waiter has reported.
    pub(crate) fn note(&mut self, ready: Ready) {
        for berth in &mut self.ports {
            berth.ready |= ready.contains(berth.token);
        }
    }

    /// Makes the next turn read every port.
    pub(crate) fn rouse(&mut self) {
        self.ports.iter_mut().for_each(|berth| berth.ready = true);
    }

    /// Returns the counters of a tunnel's port.
    pub(crate) fn counters(&self, tunnel: usize) -> Option<&PortCounters> {
        self.ports.iter().find(|berth| berth.tunnel == tunnel).map(|berth| berth.port.counters())
    }
}

impl<U: Underlay> Outlet<'_, U> {
    /// Sends `batch` through the tunnel's port; see [`Underlay::transmit`].
    #[inline]
    pub(crate) fn transmit(
        &mut self,
        arena: &[u8],
        spans: &[Range<u32>],
        batch: &[Transmit],
    ) -> TransmitOutcome {
        let berth = self.wire.ports.iter_mut().find(|berth| berth.tunnel == self.tunnel);
        berth.map(|berth| berth.port.transmit(arena, spans, batch)).unwrap_or_default()
    }

    /// Returns the receive arena, which is unused between receive calls.
    pub(crate) fn arena(&mut self) -> &mut [u8] {
        &mut self.wire.arena
    }
}

#[cfg(test)]
mod tests {
    use io::memory::{self, Datagram, MemoryConfig, MemoryUnderlay, UnderlayHandle};
    use io::{PeerId, Shape};

    use super::*;

    fn port(host: u8, shape: Shape) -> (MemoryUnderlay, UnderlayHandle) {
        let local = ([192, 0, 2, host], 8472).into();
        memory::underlay(local, MemoryConfig { shape, gro: false, ..MemoryConfig::default() })
    }

    fn datagram(byte: u8) -> Datagram {
        let (from, to) = (([192, 0, 2, 9], 8472).into(), ([192, 0, 2, 1], 8472).into());
        Datagram { from, to, lane: 0, ecn: 0, bytes: vec![byte; 4] }
    }

    /// What each tunnel was handed in one turn.
    fn turn(wire: &mut Wire<MemoryUnderlay>) -> Vec<(usize, Vec<Vec<u8>>)> {
        let mut handed = Vec::new();
        wire.receive(|tunnel, arena, received| {
            assert!(received.iter().all(|one| one.at as usize >= ARENA_HEADERS), "room for headers");
            let bytes = |one: &Received| arena[one.at as usize..(one.at + one.len) as usize].to_vec();
            handed.push((tunnel, received.iter().map(bytes).collect()));
        });
        handed
    }

    #[test]
    fn each_tunnel_gets_what_its_port_brings_and_sends_by_it() {
        let (first, first_peer) = port(1, Shape { slots: 2, len: 8 });
        let (second, second_peer) = port(2, Shape { slots: 5, len: 100 });
        let mut wire = Wire::new(vec![(1, first), (0, second)]);
        (0..3).for_each(|byte| first_peer.inject(datagram(byte)));
        (10..13).for_each(|byte| second_peer.inject(datagram(byte)));
        let handed = turn(&mut wire);
        let of = |bytes: Range<u8>| bytes.map(|byte| vec![byte; 4]).collect::<Vec<_>>();
        assert_eq!(handed, [(1, of(0..2)), (1, of(2..3)), (0, of(10..13))], "each by its own shape");

        for (tunnel, peer) in [(0, &second_peer), (1, &first_peer)] {
            let transmit = Transmit {
                to: ([192, 0, 2, 9], 8472).into(),
                peer: PeerId(0),
                lane: 0,
                first_span: 0,
                span_count: 1,
                segment_size: 3,
                segments: 1,
                ecn: 0,
            };
            let span = 0..3;
            let sent = wire.outlet(tunnel).transmit(b"one", std::slice::from_ref(&span), &[transmit]).sent;
            let arrived: Vec<_> = peer.collect().into_iter().map(|datagram| datagram.bytes).collect();
            assert_eq!((sent, arrived), (1, vec![b"one".to_vec()]));
            assert_eq!(wire.counters(tunnel).map(|counters| counters.writes), Some(1));
        }
        assert_eq!(wire.counters(2), None);
    }

    #[test]
    fn a_port_is_left_alone_once_it_is_empty_and_asked_a_bounded_number_of_times() {
        let (port, peer) = port(1, Shape { slots: 2, len: 8 });
        let mut wire = Wire::new(vec![(0, port)]);
        (0..9).for_each(|byte| peer.inject(datagram(byte)));
        assert_eq!(turn(&mut wire).len(), BUDGET);
        assert!(wire.is_ready(), "all slots were full");
        assert_eq!(turn(&mut wire).len(), 1);
        assert!(!wire.is_ready());
        let calls = wire.counters(0).map(|counters| counters.read_calls);
        peer.inject(datagram(9));
        assert_eq!(turn(&mut wire), []);
        assert_eq!(wire.counters(0).map(|counters| counters.read_calls), calls, "nothing was reported");
        wire.rouse();
        assert_eq!(turn(&mut wire).len(), 1);
    }
}
