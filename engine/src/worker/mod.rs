//! One core's worker loop. A turn always has this order: newest tables, ingress, egress, counters, wait by
//! policy.
//!
//! Every step is bounded, so a turn is bounded. A worker owns everything it touches: the wire, and a share of
//! each tunnel. The wire receives and passes each tunnel its datagrams; the tunnels pass it messages to send.
//! A worker shares only the mailboxes of its tables, the counter pages and one stop flag, none of which can
//! block it.

mod flood;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io::{Overlay, Underlay, Waiter};

use self::flood::Flood;
pub(crate) use self::wire::{Outlet, Wire};
use crate::config::WaitPolicy;
use crate::status::{LoopCounters, Page};
use crate::tunnel::Tunnel;

/// Minimum bytes moved in a bulk turn: about one super-packet.
const BULK: u64 = 60_000;

/// One core's loop.
pub(crate) struct Worker<O, U> {
    wire: Wire<U>,
    tunnels: Vec<Tunnel<O>>,
    pages: Vec<Arc<Page>>,
    waiter: Waiter,
    policy: WaitPolicy,
    stop: Arc<AtomicBool>,
    looped: LoopCounters,
    /// When the worker became idle; `None` while it is busy.
    idle_since: Option<Instant>,
    flood: Flood,
}

impl<O: Overlay, U: Underlay> Worker<O, U> {
    /// Creates a worker and registers all ports and queues with the waiter. Each tunnel has a page.
    pub(crate) fn new(
        mut wire: Wire<U>,
        mut tunnels: Vec<Tunnel<O>>,
        pages: Vec<Arc<Page>>,
        mut waiter: Waiter,
        policy: WaitPolicy,
        stop: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let mut token = wire.register(&mut waiter, 0)?;
        for tunnel in &mut tunnels {
            token = tunnel.register(&mut waiter, token)?;
        }
        let looped = LoopCounters::default();
        Ok(Worker {
            wire,
            tunnels,
            pages,
            waiter,
            policy,
            stop,
            looped,
            idle_since: None,
            flood: Flood::new(),
        })
    }

    /// Runs turns until the stop flag is set. Fails only if waiting fails.
    pub(crate) fn run(&mut self) -> std::io::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.turn()?;
        }
        self.publish();
        Ok(())
    }

    /// Runs one turn.
    pub(crate) fn turn(&mut self) -> std::io::Result<()> {
        self.looped.turns += 1;
        let mut worked = false;
        let before = self.moved();
        let Worker { wire, tunnels, .. } = self;
        for (index, tunnel) in tunnels.iter_mut().enumerate() {
            worked |= tunnel.refresh(wire.outlet(index));
        }
        worked |= wire.receive(|index, arena, received| {
            if let Some(tunnel) = tunnels.get_mut(index) {
                tunnel.ingress(arena, received);
            }
        });
        for (index, tunnel) in tunnels.iter_mut().enumerate() {
            worked |= tunnel.egress(wire.outlet(index));
        }
        if worked {
            self.idle_since = None;
            self.publish();
        }
        let pending = self.wire.is_ready() || self.tunnels.iter().any(Tunnel::is_ready);
        let bulk = self.moved() - before >= BULK;
        // Pause only if nothing is waiting to be read.
        if !pending && worked && !self.policy.moderate.is_zero() && (bulk || self.is_flooded()) {
            return self.moderate();
        }
        self.wait(pending, bulk)
    }

    /// Lets more of a bulk stream or of a flood accumulate before the next turn, as a network card moderates
    /// its interrupts: each turn costs some system calls and a wake-up, however much it moves.
    fn moderate(&mut self) -> std::io::Result<()> {
        self.looped.waits += 1;
        self.looped.moderated += 1;
        std::thread::sleep(self.policy.moderate);
        self.ask(Some(Duration::ZERO))
    }

    /// Whether small packets come so fast that the worker would be woken for every few of them.
    fn is_flooded(&mut self) -> bool {
        let (mut egress, mut ingress) = (0, 0);
        for tunnel in &self.tunnels {
            egress += tunnel.counters.egress.packets;
            ingress += tunnel.counters.ingress.packets;
        }
        self.flood.check(Instant::now(), (egress, ingress))
    }

    fn moved(&self) -> u64 {
        self.tunnels.iter().map(|tunnel| tunnel.counters.egress.bytes + tunnel.counters.ingress.bytes).sum()
    }

    /// Checks the waiter, and sleeps unless something is left to read or the policy spins.
    fn wait(&mut self, pending: bool, bulk: bool) -> std::io::Result<()> {
        let timeout = if pending || self.spins() { Some(Duration::ZERO) } else { None };
        if pending && !bulk && !self.looped.turns.is_multiple_of(8) {
            // In a burst the ports report when they are empty, so asking the waiter every time would waste a
            // system call. It is still asked every few turns, for the ports that are not pending.
            return Ok(());
        }
        self.ask(timeout)
    }

    /// Marks the ports and queues that the waiter reports.
    fn ask(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.looped.waits += 1;
        self.looped.sleeps += u64::from(timeout.is_none());
        let ready = self.waiter.wait(timeout)?;
        self.wire.note(ready);
        self.tunnels.iter_mut().for_each(|tunnel| tunnel.note(ready));
        Ok(())
    }

    /// Sets how long the worker pauses, see [`WaitPolicy::moderate`].
    pub(crate) fn set_moderation(&mut self, pause: Duration) {
        self.policy.moderate = pause;
    }

    /// Makes the next turn read every port and queue, as if the waiter had reported them all.
    pub(crate) fn rouse(&mut self) {
        self.wire.rouse();
        self.tunnels.iter_mut().for_each(Tunnel::rouse);
    }

    fn spins(&mut self) -> bool {
        if self.policy.spin.is_zero() {
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        since.elapsed() < self.policy.spin
    }

    fn publish(&mut self) {
        let Worker { wire, tunnels, pages, looped, .. } = self;
        for (index, (tunnel, page)) in tunnels.iter_mut().zip(pages).enumerate() {
            let Some(underlay) = wire.counters(index) else { continue };
            tunnel.report_downgrades(underlay);
            page.store(&tunnel.counters, &tunnel.overlay_counters(), underlay, *looped);
        }
    }
}
