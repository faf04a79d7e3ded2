//! Detects when a host forwards to many peers that have just joined.

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
/// Interval between volleys of packets: the resolution of the result.
const GAP: Duration = Duration::from_millis(1);
/// Interval at which a waiting thread checks for a stop.
const POLL: Duration = Duration::from_millis(50);
/// Offset of the inner destination: after VXLAN and Ethernet headers, in the IPv4 header (RFC 7348, RFC 791).
const DESTINATION: usize = 8 + 14 + 16;

/// A listener on the underlay, and a sender in the pod of another host.
pub(super) struct Probe {
    sender: UdpSocket,
    listener: UdpSocket,
    /// The nodes that each volley has a packet for: that many flows, so that every worker gets some.
    targets: Vec<usize>,
}

impl Probe {
    /// Listens on host `far`, which must have no tunnel, for packets from the pod of `near`.
    pub(super) fn new(near: &Host, far: &Host, targets: Vec<usize>) -> Result<Probe> {
        let bind = |address: SocketAddr| UdpSocket::bind(address);
        let sender = near.pod().run(|| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        let listener = far.namespace().run(|| bind((far.underlay(), VXLAN).into()))?;
        let listener = listener.context("cannot listen on the underlay")?;
        listener.set_read_timeout(Some(POLL)).context("cannot set a timeout")?;
        Ok(Probe { sender: sender.context("cannot open a socket in the pod")?, listener, targets })
    }

    /// Sends volleys while `step` runs and until a packet for each target has arrived. Returns the arrival
    /// time of the last of those, and the result of `step`.
    pub(super) fn watch<R>(
        &self,
        timeout: Duration,
        step: impl FnOnce() -> Result<R>,
    ) -> Result<(Instant, R)> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.send(&done));
            let seen = scope.spawn(|| {
                let seen = self.listen(timeout);
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
                // Fails as long as there is no route.
                let _ = self.sender.send_to(b"probe", (Ipv4Addr::new(a, b, c, 2), VXLAN));
            }
            thread::sleep(GAP);
        }
    }

    fn listen(&self, timeout: Duration) -> Result<Instant> {
        let end = Instant::now() + timeout;
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
        bail!("no packet for {} of {} subnets arrived on the underlay", missing.len(), self.targets.len())
    }
}
