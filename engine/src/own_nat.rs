//! Watches for hosts that translate the source of their own tunnel packets on the way to an interface that
//! computes no checksums. Joined datagrams would leave there with wrong checksums: since Linux 6.11 the
//! kernel joins them for such an interface too, and translation changes a checksum that is not complete yet.
//! See docs/decisions/0027-own-nat.md.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io::nat::{self, Tracking};
use path::quote::Own;

use crate::event::{Event, Notifier};
use crate::path_mtu::Paths;

/// Interval between looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Maximum peers of a tunnel at one look.
const PEERS: usize = 16;

/// A tunnel whose ports may join datagrams.
pub(crate) struct Guard {
    pub(crate) paths: Arc<Paths>,
    pub(crate) own: Own,
    /// Set while the tunnel's ports must not join datagrams.
    pub(crate) paused: Arc<AtomicBool>,
    pub(crate) notifier: Notifier,
    pub(crate) progress: Progress,
}

/// How far a series of looks at all peers is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The position of the next peer.
    at: usize,
    /// The interface of the last flow that is in danger.
    found: Option<String>,
}

/// Looks after the guarded tunnels from time to time.
pub(crate) struct Watch {
    guards: Vec<Guard>,
    next: Instant,
}

impl Watch {
    pub(crate) fn new(guards: Vec<Guard>) -> Watch {
        Watch { guards, next: Instant::now() }
    }

    /// Looks after all tunnels if it is time. Returns when the next time is, if there is anything to watch.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Instant> {
        if self.guards.is_empty() {
            return None;
        }
        if now >= self.next {
            self.next = now + INTERVAL;
            self.guards.iter_mut().for_each(Guard::look);
        }
        Some(self.next)
    }
}

impl Guard {
    /// Looks at the next peers.
    fn look(&mut self) {
        let table = self.paths.table();
        let peers = table.peers();
        let first = self.progress.at.min(peers.len());
        let some = &peers[first..peers.len().min(first + PEERS)];
        let mut tracking = None;
        let found =
            some.iter().find_map(|peer| self.is_endangered(peer.remote, &mut tracking).ok().flatten());
        let ended = first + some.len() == peers.len();
        let paused = self.paused.load(Ordering::Relaxed);
        match self.progress.step(found, some.len(), ended, paused) {
            Some(Change::Pause(interface)) => {
                self.paused.store(true, Ordering::Relaxed);
                self.notifier.send(Event::SegmentationPaused { interface });
            }
            Some(Change::Resume) => {
                self.paused.store(false, Ordering::Relaxed);
                self.notifier.send(Event::SegmentationResumed);
            }
            None => {}
        }
    }

    /// Returns the interface without checksums by which translated packets leave for this peer.
    fn is_endangered(
        &self,
        to: SocketAddr,
        tracking: &mut Option<Tracking>,
    ) -> std::io::Result<Option<String>> {
        let devices = io::route::devices(to.ip())?;
        let unsummed = |device: &String| nat::sums(device, to.is_ipv6()).is_ok_and(|sums| !sums);
        let Some(device) = devices.into_iter().find(unsummed) else { return Ok(None) };
        let from = match self.own.address {
            Some(address) if address.is_ipv4() == to.is_ipv4() => address,
            _ => nat::source_for(to)?,
        };
        let tracking = match tracking {
            Some(tracking) => tracking,
            None => tracking.insert(Tracking::open()?),
        };
        for port in &self.own.ports {
            if tracking.is_source_translated((from, *port).into(), to)? {
                return Ok(Some(device));
            }
        }
        Ok(None)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// Datagrams must not be joined, because of this interface.
    Pause(String),
    Resume,
}

impl Progress {
    /// Takes the result of a look at `looked` peers, which ended the series if `ended`.
    fn step(&mut self, found: Option<String>, looked: usize, ended: bool, paused: bool) -> Option<Change> {
        self.at = if ended { 0 } else { self.at + looked };
        self.found = found.or(self.found.take());
        let in_danger = self.found.clone();
        if ended {
            self.found = None;
        }
        match in_danger {
            Some(interface) if !paused => Some(Change::Pause(interface)),
            None if paused && ended => Some(Change::Resume),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flow_pauses_at_once_and_only_a_look_at_all_peers_resumes() {
        let mut progress = Progress::default();
        let eth0 = || Some("eth0".to_owned());
        assert_eq!(progress.step(None, 16, false, false), None);
        assert_eq!(progress.step(eth0(), 16, false, false), Some(Change::Pause("eth0".into())));
        assert_eq!(progress.step(None, 3, true, true), None, "found in this series");
        assert_eq!(progress.at, 0);
        assert_eq!(progress.step(None, 16, false, true), None);
        assert_eq!(progress.at, 16);
        assert_eq!(progress.step(eth0(), 16, false, true), None, "still");
        assert_eq!(progress.step(None, 3, true, true), None);
        assert_eq!(progress.step(None, 16, false, true), None);
        assert_eq!(progress.step(None, 3, true, true), Some(Change::Resume));
        assert_eq!(progress.step(None, 0, true, false), None);
    }
}
