//! When a host that many peers have just become known to forwards to them.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::Host;

use super::others;

/// Port of the vxlan datapath.
const VXLAN: u16 = 8472;
/// Between two volleys of packets: the grain of the answer.
const GAP: Duration = Duration::from_millis(1);
/// How often a waiting thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(50);
/// VXLAN and Ethernet headers, then the destination in the IPv4 header (RFC 7348, RFC 791).
const DESTINATION: usize = 8 + 14 + 16;

/// A listener on the underlay, and a sender in the pod of another host.
pub(super) struct Probe {
    sender: UdpSocket,
    listener: UdpSocket,
    /// One of them to each of these nodes in a volley: as many flows, so that every worker gets some.
    targets: Vec<usize>,
}

impl Probe {
    /// Listens at `far`, where no tunnel may stand, for what comes from the pod of `near`.
    pub(super) fn new(near: &Host, far: &Host, targets: Vec<usize>) -> Result<Probe> {
        let bind = |address: SocketAddr| UdpSocket::bind(address);
        let sender = near.pod().run(|| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        let listener = far.namespace().run(|| bind((far.underlay(), VXLAN).into()))?;
        let listener = listener.context("cannot listen on the underlay")?;
        listener.set_read_timeout(Some(POLL)).context("cannot set a time limit")?;
        Ok(Probe { sender: sender.context("cannot open a socket in the pod")?, listener, targets })
    }

    /// Sends volleys while `step` runs and until one packet for each target has come by; the moment of the last
    /// of these, and what `step` returned.
    pub(super) fn watch<R>(
        &self,
        patience: Duration,
        step: impl FnOnce() -> Result<R>,
    ) -> Result<(Instant, R)> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.send(&done));
            let seen = scope.spawn(|| {
                let seen = self.listen(patience);
                done.store(true, Ordering::Relaxed);
                seen
            });
            let stepped = step();
            let seen = seen.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((seen?, stepped?))
        })
    }

    fn send(&self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            for target in &self.targets {
                let [a, b, c, _] = others::subnet(*target).octets();
                // Before there is a route, it comes to nothing.
                let _ = self.sender.send_to(b"probe", (Ipv4Addr::new(a, b, c, 2), VXLAN));
            }
            thread::sleep(GAP);
        }
    }

    fn listen(&self, patience: Duration) -> Result<Instant> {
        let end = Instant::now() + patience;
        let mut missing: BTreeSet<Ipv4Addr> =
            self.targets.iter().map(|target| others::subnet(*target)).collect();
        let mut buffer = [0; 256];
        while Instant::now() < end {
            let length = match self.listener.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => return Err(error).context("cannot read from the underlay"),
            };
            if let Some([a, b, c, _]) = buffer[..length].get(DESTINATION..DESTINATION + 4) {
                missing.remove(&Ipv4Addr::new(*a, *b, *c, 0));
            }
            if missing.is_empty() {
                return Ok(Instant::now());
            }
        }
        bail!("no packet for {} of {} subnets came by the underlay", missing.len(), self.targets.len())
    }
}
