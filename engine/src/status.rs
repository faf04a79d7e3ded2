//! Counter pages, one per worker and tunnel, which the worker writes and anyone can read at any time.
//!
//! A page is an array of atomics with one writer. The worker copies its plain counters there after each batch
//! with relaxed stores, so reading never stops the worker and counting costs nothing per packet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use io::PortCounters;
use path::{Counters, Direction, DropReason};

use crate::unread::Unread;

/// The names of one direction's counters, except the drops.
const FLOW: [&str; 7] =
    ["packets", "bytes", "delivered", "segments", "summed_bytes", "replies", "suppressed_replies"];
const DIRECTIONS: [&str; 2] = ["egress", "ingress"];
const PORTS: [&str; 2] = ["overlay", "underlay"];
const LOOP: [&str; 4] = ["turns", "waits", "sleeps", "moderated"];

/// The counters of the worker loop itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopCounters {
    /// Turns.
    pub turns: u64,
    /// Waits and pauses, each of which is a system call.
    pub waits: u64,
    /// Waits that could sleep.
    pub sleeps: u64,
    /// Pauses after bulk turns and during floods.
    pub moderated: u64,
}

/// The public counters of one worker and tunnel.
#[derive(Debug)]
pub struct Page {
    values: Box<[AtomicU64]>,
}

impl Page {
    /// Creates a page of zeros.
    pub fn new() -> Arc<Page> {
        let count = names().count();
        Arc::new(Page { values: (0..count).map(|_| AtomicU64::new(0)).collect() })
    }

    /// Stores the current values. Only one thread may call this.
    pub fn store(
        &self,
        counters: &Counters,
        overlay: &PortCounters,
        underlay: &PortCounters,
        looped: LoopCounters,
    ) {
        let mut cells = self.values.iter();
        let mut put = |value: u64| {
            if let Some(cell) = cells.next() {
                cell.store(value, Ordering::Relaxed);
            }
        };
        for d in [&counters.egress, &counters.ingress] {
            flow_values(d).into_iter().for_each(&mut put);
            DropReason::ALL.iter().for_each(|reason| put(d.dropped(*reason)));
        }
        for port in [overlay, underlay] {
            port.named().into_iter().for_each(|(_, value)| put(value));
        }
        [looped.turns, looped.waits, looped.sleeps, looped.moderated].into_iter().for_each(put);
    }

    /// Returns the current values in the order of [`names`].
    pub fn load(&self) -> Vec<u64> {
        self.values.iter().map(|cell| cell.load(Ordering::Relaxed)).collect()
    }
}

/// Returns the names of all counters, for instance `egress.drop.no_route`, `underlay.read_calls` and
/// `loop.turns`.
pub fn names() -> impl Iterator<Item = String> {
    let flows = DIRECTIONS.into_iter().flat_map(|direction| {
        let plain = FLOW.into_iter().map(move |name| format!("{direction}.{name}"));
        plain.chain(DropReason::ALL.iter().map(move |reason| format!("{direction}.drop.{}", reason.name())))
    });
    let ports = PORTS.into_iter().flat_map(|port| {
        PortCounters::default().named().into_iter().map(move |(name, _)| format!("{port}.{name}"))
    });
    flows.chain(ports).chain(LOOP.into_iter().map(|name| format!("loop.{name}")))
}

fn flow_values(d: &Direction) -> [u64; 7] {
    [d.packets, d.bytes, d.delivered, d.segments, d.summed_bytes, d.replies, d.suppressed_replies]
}

/// All counters of a running engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// One entry per tunnel.
    pub tunnels: Vec<TunnelStatus>,
}

/// The counters of one tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStatus {
    /// Name of the TUN device.
    pub device: String,
    /// Each worker's counters by name, in the order of [`names`].
    pub workers: Vec<Vec<(String, u64)>>,
    /// The peers' path MTUs.
    pub paths: PathStatus,
    /// Packets that the kernel dropped before a worker read them.
    pub unread: Unread,
}

/// What a tunnel has learned about the paths to its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathStatus {
    /// Peers whose path carries only smaller packets than the tunnel, and the largest inner packet that fits.
    pub limits: Vec<(String, u16)>,
    /// ICMP messages that quoted a packet of this tunnel.
    pub believed: u64,
    /// ICMP messages that did not, and were ignored.
    pub ignored: u64,
}

impl TunnelStatus {
    /// Reads the pages of a tunnel, one per worker.
    pub fn read(device: &str, pages: &[Arc<Page>], paths: PathStatus, unread: Unread) -> TunnelStatus {
        let workers = pages.iter().map(|page| names().zip(page.load()).collect()).collect();
        TunnelStatus { device: device.to_owned(), workers, paths, unread }
    }

    /// Returns the sums over all workers, by name.
    pub fn totals(&self) -> Vec<(String, u64)> {
        let sum = |i: usize| self.workers.iter().filter_map(|w| w.get(i)).map(|(_, v)| v).sum();
        names().enumerate().map(|(i, name)| (name, sum(i))).collect()
    }

    /// Returns one counter's sum over all workers, or 0 for an unknown name.
    pub fn total(&self, name: &str) -> u64 {
        self.workers.iter().flatten().filter(|(n, _)| n == name).map(|(_, v)| v).sum()
    }

    /// Returns the number of system calls of all workers.
    pub fn syscalls(&self) -> u64 {
        [
            "overlay.read_calls",
            "overlay.write_calls",
            "underlay.read_calls",
            "underlay.write_calls",
            "loop.waits",
        ]
        .into_iter()
        .map(|name| self.total(name))
        .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_read_under_its_name() {
        let page = Page::new();
        let mut counters = Counters::default();
        counters.egress.packets = 1;
        counters.ingress.replies = 2;
        counters.ingress.drop(DropReason::WrongVni, 3);
        let overlay = PortCounters { read_calls: 4, ..PortCounters::default() };
        let underlay = PortCounters { errors: 5, ..PortCounters::default() };
        page.store(
            &counters,
            &overlay,
            &underlay,
            LoopCounters { turns: 6, waits: 7, sleeps: 8, moderated: 0 },
        );
        let status = TunnelStatus::read(
            "flannel.1",
            &[Arc::clone(&page), page],
            PathStatus::default(),
            Unread::default(),
        );
        let nonzero: Vec<_> = status.totals().into_iter().filter(|(_, v)| *v != 0).collect();
        let expected = [
            ("egress.packets", 2),
            ("ingress.replies", 4),
            ("ingress.drop.wrong_vni", 6),
            ("overlay.read_calls", 8),
            ("underlay.errors", 10),
            ("loop.turns", 12),
            ("loop.waits", 14),
            ("loop.sleeps", 16),
        ];
        assert_eq!(nonzero, expected.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(status.syscalls(), 8 + 14);
        assert_eq!(status.total("ingress.drop.wrong_vni"), 6);
    }
}
