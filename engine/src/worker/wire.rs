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
