//! A steady one-way flow of small datagrams, with the arrival time of each.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::Namespace;

/// Interval between datagrams.
pub(super) const GAP: Duration = Duration::from_millis(1);
/// Interval at which a waiting thread checks for a stop.
const POLL: Duration = Duration::from_millis(50);
/// Time after the end of the flow until missing datagrams count as lost.
const LAST: Duration = Duration::from_millis(500);

/// A flow that runs until it is finished.
pub(super) struct Flow {
    sending: Arc<AtomicBool>,
    listening: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    listener: JoinHandle<Vec<(u64, Instant)>>,
}

/// The arrivals of a flow.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    sent: u64,
    /// Number and arrival time of each datagram, in order of arrival.
    arrived: Vec<(u64, Instant)>,
}

impl Flow {
    /// Starts a flow from one namespace to another.
    pub(super) fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<Flow> {
        let receiver =
            to.run(|| UdpSocket::bind(SocketAddr::new(address, 0)))?.context("cannot listen in a pod")?;
        receiver.set_read_timeout(Some(POLL)).context("cannot set a timeout")?;
        let target = receiver.local_addr().context("cannot read a socket's address")?;
        let sender = from.run(|| UdpSocket::bind("0.0.0.0:0"))?.context("cannot open a socket in a pod")?;
        let sending = Arc::new(AtomicBool::new(true));
        let listening = Arc::new(AtomicBool::new(true));
        let (send_on, listen_on) = (Arc::clone(&sending), Arc::clone(&listening));
        Ok(Flow {
            sending,
            listening,
            sender: thread::spawn(move || send(&sender, target, &send_on)),
            listener: thread::spawn(move || listen(&receiver, &listen_on)),
        })
    }

    /// Ends the flow and waits for the datagrams in flight.
    pub(super) fn finish(self) -> Arrivals {
        self.sending.store(false, Ordering::Relaxed);
        let sent = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        thread::sleep(LAST);
        self.listening.store(false, Ordering::Relaxed);
        let arrived = self.listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Arrivals { sent, arrived }
    }
}

impl Arrivals {
    /// Returns the longest time between two arrivals.
    pub(super) fn longest_gap(&self) -> Duration {
        let gaps = self.arrived.windows(2).map(|pair| pair[1].1.saturating_duration_since(pair[0].1));
        gaps.max().unwrap_or_default()
    }

    /// Returns the number of lost datagrams.
    pub(super) fn lost(&self) -> u64 {
        let mut numbers: Vec<u64> = self.arrived.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.sent.saturating_sub(numbers.len() as u64)
    }

    /// Returns the time from `moment` to the next arrival.
    pub(super) fn first_after(&self, moment: Instant) -> Option<Duration> {
        let next = self.arrived.iter().find(|(_, at)| *at > moment)?;
        Some(next.1 - moment)
    }
}

fn send(socket: &UdpSocket, target: SocketAddr, send_on: &AtomicBool) -> u64 {
    let (mut number, began) = (0u64, Instant::now());
    while send_on.load(Ordering::Relaxed) {
        // A datagram that the system rejects counts as lost.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        number += 1;
        // Follows the clock, so that a delayed thread catches up.
        let due = began + Duration::from_nanos(GAP.as_nanos() as u64 * number);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    number
}

fn listen(socket: &UdpSocket, listen_on: &AtomicBool) -> Vec<(u64, Instant)> {
    let (mut arrived, mut buffer) = (Vec::new(), [0; 8]);
    while listen_on.load(Ordering::Relaxed) {
        if let Ok(8) = socket.recv(&mut buffer) {
            arrived.push((u64::from_be_bytes(buffer), Instant::now()));
        }
    }
    arrived
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_losses_and_first_arrivals() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let arrived = vec![(0, at(0)), (1, at(1)), (4, at(41)), (3, at(42)), (4, at(43))];
        let arrivals = Arrivals { sent: 6, arrived };
        assert_eq!(arrivals.longest_gap(), Duration::from_millis(40));
        assert_eq!(arrivals.lost(), 2);
        assert_eq!(arrivals.first_after(at(30)), Some(Duration::from_millis(11)));
        assert_eq!(arrivals.first_after(at(43)), None);
        assert_eq!((Arrivals::default().longest_gap(), Arrivals::default().lost()), (Duration::ZERO, 0));
    }
}
