//! A worker's wire side: its ports, the arena that they fill, and whose each datagram is.

use std::io::Result;
use std::ops::Range;

use io::{PortCounters, Ready, Received, Transmit, TransmitOutcome, Underlay, Waiter};

use crate::tunnel::ARENA_HEADERS;

/// Receive calls of one port in one turn at most.
const BUDGET: usize = 4;

/// The ports of one worker.
///
/// One arena serves them all: what one port has filled is written to the pods before the next one fills it. The
/// tunnels' headers come first in it, see [`ARENA_HEADERS`], and the slots of the port behind them.
pub(crate) struct Wire<U> {
    ports: Vec<Berth<U>>,
    arena: Box<[u8]>,
    received: Vec<Received>,
}

/// A port and what the worker knows of it.
struct Berth<U> {
    port: U,
    /// The tunnel that sends by this port, and whose datagrams arrive at it.
    tunnel: usize,
    /// May have something to read: set by the waiter, cleared when a receive call finds less than it asked for.
    ready: bool,
    token: usize,
}

/// The way to the wire for one tunnel.
pub(crate) struct Outlet<'w, U> {
    wire: &'w mut Wire<U>,
    tunnel: usize,
}

impl<U: Underlay> Wire<U> {
    /// A wire of these ports, each with the tunnel that it serves.
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

    /// Registers all ports under the tokens from `token` on. Returns the first one that is left.
    pub(crate) fn register(&mut self, waiter: &mut Waiter, token: usize) -> Result<usize> {
        for (berth, token) in self.ports.iter_mut().zip(token..) {
            berth.token = token;
            berth.port.register(waiter, token)?;
        }
        Ok(token + self.ports.len())
    }

    /// Receives at each port that may have something, and hands each tunnel its datagrams with the arena that they are
    /// in. Returns whether anything came.
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
                    // Empty, or an error that the port has counted: either way the next arrival is reported.
                    berth.ready = false;
                    break;
                }
                worked = true;
                // Fewer than asked for: the queue was empty at that moment, and what comes later is reported.
                berth.ready = received.len() == berth.port.shape().slots;
                // A socket is one tunnel's, so what arrives at it needs no look.
                hand(berth.tunnel, arena, received);
            }
        }
        worked
    }

    /// The way to the wire for one tunnel.
    #[inline]
    pub(crate) fn outlet(&mut self, tunnel: usize) -> Outlet<'_, U> {
        Outlet { wire: self, tunnel }
    }

    /// Whether a port may have something to read.
    pub(crate) fn is_ready(&self) -> bool {
        self.ports.iter().any(|berth| berth.ready)
    }

    /// Notes what the waiter has reported.
    pub(crate) fn note(&mut self, ready: Ready) {
        for berth in &mut self.ports {
            berth.ready |= ready.contains(berth.token);
        }
    }

    /// Makes the next turn look at every port.
    pub(crate) fn rouse(&mut self) {
        self.ports.iter_mut().for_each(|berth| berth.ready = true);
    }

    /// The counters of a tunnel's port.
    pub(crate) fn counters(&self, tunnel: usize) -> Option<&PortCounters> {
        self.ports.iter().find(|berth| berth.tunnel == tunnel).map(|berth| berth.port.counters())
    }
}

impl<U: Underlay> Outlet<'_, U> {
    /// Sends all of `batch`, as [`Underlay::transmit`] does.
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

    /// The receive arena, which nothing uses between two receives.
    pub(crate) fn arena(&mut self) -> &mut [u8] {
        &mut self.wire.arena
    }
}
