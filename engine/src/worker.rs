//! One core's turn. Always in this order: newest tables, ingress, egress, counters, wait by policy.
//!
//! Every step is bounded, so a turn is bounded. A worker owns everything it touches; what it shares are the
//! mailbox of its tables, the counter pages and one stop flag, none of which can make it wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io::{Overlay, Underlay, Waiter};

use crate::config::WaitPolicy;
use crate::status::{LoopCounters, Page};
use crate::tunnel::Tunnel;

/// Bytes moved in one turn that make it a bulk turn: about one super-packet.
const BULK: u64 = 60_000;

/// One core's loop.
pub(crate) struct Worker<O, U> {
    tunnels: Vec<Tunnel<O, U>>,
    pages: Vec<Arc<Page>>,
    waiter: Waiter,
    policy: WaitPolicy,
    stop: Arc<AtomicBool>,
    looped: LoopCounters,
    /// When the worker last found something to do; `None` while it is busy.
    idle_since: Option<Instant>,
}

impl<O: Overlay, U: Underlay> Worker<O, U> {
    /// Registers all ports with the waiter: token 2*i* is tunnel *i*'s overlay, 2*i* + 1 its underlay.
    pub(crate) fn new(
        tunnels: Vec<Tunnel<O, U>>,
        pages: Vec<Arc<Page>>,
        mut waiter: Waiter,
        policy: WaitPolicy,
        stop: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        for (i, tunnel) in tunnels.iter().enumerate() {
            tunnel.overlay().register(&mut waiter, 2 * i)?;
            tunnel.underlay().register(&mut waiter, 2 * i + 1)?;
        }
        Ok(Worker { tunnels, pages, waiter, policy, stop, looped: LoopCounters::default(), idle_since: None })
    }

    /// Turns until it is told to stop. Fails only when waiting does.
    pub(crate) fn run(&mut self) -> std::io::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.turn()?;
        }
        self.publish();
        Ok(())
    }

    /// One turn.
    pub(crate) fn turn(&mut self) -> std::io::Result<()> {
        self.looped.turns += 1;
        let mut worked = false;
        let before = self.moved();
        for tunnel in &mut self.tunnels {
            worked |= tunnel.refresh();
            worked |= tunnel.ingress_batch();
            worked |= tunnel.egress_batch();
        }
        if worked {
            self.idle_since = None;
            self.publish();
        }
        // While something waits to be read there is nothing to gather.
        let pending = self.tunnels.iter().any(|t| t.overlay_ready || t.underlay_ready || t.has_strays());
        if !pending && !self.policy.moderate.is_zero() && self.moved() - before >= BULK {
            self.moderate();
            return Ok(());
        }
        self.wait(pending)
    }

    /// Lets more of a bulk stream gather before the next turn, as a network card moderates its interrupts:
    /// each turn costs some calls, whatever it moves. The ports are then asked without asking the waiter.
    fn moderate(&mut self) {
        self.looped.waits += 1;
        self.looped.moderated += 1;
        std::thread::sleep(self.policy.moderate);
        self.rouse();
    }

    fn moved(&self) -> u64 {
        self.tunnels.iter().map(|tunnel| tunnel.counters.egress.bytes + tunnel.counters.ingress.bytes).sum()
    }

    /// Looks without sleeping while there is something left to read or the policy says so; else sleeps.
    fn wait(&mut self, pending: bool) -> std::io::Result<()> {
        let timeout = if pending || self.spins() { Some(Duration::ZERO) } else { None };
        if pending && !self.looped.turns.is_multiple_of(8) {
            // Mid-burst the ports themselves say when they are empty; asking the kernel each time is a
            // call for nothing. Every few turns it is asked all the same, for the ports not pending.
            return Ok(());
        }
        self.looped.waits += 1;
        self.looped.sleeps += u64::from(timeout.is_none());
        let ready = self.waiter.wait(timeout)?;
        for (i, tunnel) in self.tunnels.iter_mut().enumerate() {
            tunnel.overlay_ready |= ready.contains(2 * i);
            tunnel.underlay_ready |= ready.contains(2 * i + 1);
        }
        Ok(())
    }

    /// As if the waiter had reported every port.
    pub(crate) fn rouse(&mut self) {
        for tunnel in &mut self.tunnels {
            (tunnel.overlay_ready, tunnel.underlay_ready) = (true, true);
        }
    }

    fn spins(&mut self) -> bool {
        if self.policy.spin.is_zero() {
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        since.elapsed() < self.policy.spin
    }

    fn publish(&mut self) {
        for (tunnel, page) in self.tunnels.iter_mut().zip(&self.pages) {
            tunnel.report_downgrades();
            page.store(
                &tunnel.counters,
                tunnel.overlay().counters(),
                tunnel.underlay().counters(),
                self.looped,
            );
        }
    }
}
