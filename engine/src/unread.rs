//! Packets of a tunnel that the kernel dropped before a worker read them.

use std::sync::{Mutex, PoisonError};

use io::overflow::{self, Overflow};

use crate::port::Port;

/// The counts of one tunnel. `None` stands for a count that the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Packets from pods for which the device's queues had no room.
    pub egress: Option<u64>,
    /// Datagrams from the underlay for which the sockets' receive buffers had no room.
    pub ingress: Option<u64>,
}

/// Reads the counts of one tunnel.
pub(crate) struct Meter {
    device: String,
    /// What the device had dropped before the start: a persistent one has counted in earlier runs.
    before: u64,
    state: Mutex<State>,
}

enum State {
    Running(Overflow),
    Stopped(Unread),
}

impl Meter {
    /// Creates a meter for the device and the ports of a tunnel.
    pub(crate) fn new(device: &str, ports: &[Port]) -> Result<Option<Meter>, io::Error> {
        let mut each = ports.iter().map(Port::overflow);
        let Some(first) = each.next() else { return Ok(None) };
        let mut all = first?;
        for one in each {
            all.join(one?);
        }
        let before = overflow::dropped_by_device(device).unwrap_or(0);
        Ok(Some(Meter { device: device.to_owned(), before, state: Mutex::new(State::Running(all)) }))
    }

    pub(crate) fn read(&self) -> Unread {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Running(sockets) => self.measure(sockets),
            State::Stopped(last) => *last,
        }
    }

    /// Closes the meter's descriptors and keeps the last counts.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Running(sockets) = &*state {
            *state = State::Stopped(self.measure(sockets));
        }
    }

    fn measure(&self, sockets: &Overflow) -> Unread {
        // Another program may have created the device again, which then counts from zero.
        let egress = overflow::dropped_by_device(&self.device).map(|now| now.saturating_sub(self.before));
        Unread { egress, ingress: sockets.dropped() }
    }
}
