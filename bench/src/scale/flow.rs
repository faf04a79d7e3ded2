//! A steady flow of small datagrams one way, and when each of them came.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::Namespace;

/// Between two datagrams.
pub(super) const GAP: Duration = Duration::from_millis(1);
/// How often a waiting thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(50);
/// What is not there by then is lost.
const LAST: Duration = Duration::from_millis(500);

/// A flow that goes on until it is asked what came of it.
pub(super) struct Flow {
    sending: Arc<AtomicBool>,
    listening: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    listener: JoinHandle<Vec<(u64, Instant)>>,
}

/// What came of a flow.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    sent: u64,
    /// Number and moment, in the order they came.
    came: Vec<(u64, Instant)>,
}

impl Flow {
    /// Starts one from namespace to namespace.
    pub(super) fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<Flow> {
        let receiver =
            to.run(|| UdpSocket::bind(SocketAddr::new(address, 0)))?.context("cannot listen in a pod")?;
        receiver.set_read_timeout(Some(POLL)).context("cannot set a time limit")?;
        let target = receiver.local_addr().context("a socket without an address")?;
        let sender = from.run(|| UdpSocket::bind("0.0.0.0:0"))?.context("cannot open a socket in a pod")?;
        let sending = Arc::new(AtomicBool::new(true));
        let listening = Arc::new(AtomicBool::new(true));
        let (go, hear) = (Arc::clone(&sending), Arc::clone(&listening));
        Ok(Flow {
            sending,
            listening,
            sender: thread::spawn(move || send(&sender, target, &go)),
            listener: thread::spawn(move || listen(&receiver, &hear)),
        })
    }

    /// Ends it and waits for what is under way.
    pub(super) fn finish(self) -> Arrivals {
        self.sending.store(false, Ordering::Relaxed);
        let sent = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        thread::sleep(LAST);
        self.listening.store(false, Ordering::Relaxed);
        let came = self.listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Arrivals { sent, came }
    }
}

impl Arrivals {
    /// The longest time in which none came.
    pub(super) fn longest_gap(&self) -> Duration {
        let gaps = self.came.windows(2).map(|pair| pair[1].1.saturating_duration_since(pair[0].1));
        gaps.max().unwrap_or_default()
    }

    /// How many did not come.
    pub(super) fn lost(&self) -> u64 {
        let mut numbers: Vec<u64> = self.came.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.sent.saturating_sub(numbers.len() as u64)
    }

    /// How long after `moment` the next one came.
    pub(super) fn first_after(&self, moment: Instant) -> Option<Duration> {
        let next = self.came.iter().find(|(_, at)| *at > moment)?;
        Some(next.1 - moment)
    }
}

fn send(socket: &UdpSocket, target: SocketAddr, go: &AtomicBool) -> u64 {
    let (mut number, began) = (0u64, Instant::now());
    while go.load(Ordering::Relaxed) {
        // One that the system refuses is lost like any other.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        number += 1;
        // By the clock, so that a thread that was held up makes up for it.
        let due = began + Duration::from_nanos(GAP.as_nanos() as u64 * number);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    number
}

fn listen(socket: &UdpSocket, hear: &AtomicBool) -> Vec<(u64, Instant)> {
    let (mut came, mut buffer) = (Vec::new(), [0; 8]);
    while hear.load(Ordering::Relaxed) {
        if let Ok(8) = socket.recv(&mut buffer) {
            came.push((u64::from_be_bytes(buffer), Instant::now()));
        }
    }
    came
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_losses_and_firsts() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let came = vec![(0, at(0)), (1, at(1)), (4, at(41)), (3, at(42)), (4, at(43))];
        let arrivals = Arrivals { sent: 6, came };
        assert_eq!(arrivals.longest_gap(), Duration::from_millis(40));
        assert_eq!(arrivals.lost(), 2);
        assert_eq!(arrivals.first_after(at(30)), Some(Duration::from_millis(11)));
        assert_eq!(arrivals.first_after(at(43)), None);
        assert_eq!((Arrivals::default().longest_gap(), Arrivals::default().lost()), (Duration::ZERO, 0));
    }
}
