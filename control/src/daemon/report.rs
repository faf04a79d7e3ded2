//! What the log has said already, so that a state of affairs is reported once and not every few seconds.

use std::collections::BTreeSet;

use crate::apply::Applied;
use crate::plan::{Ignored, Plan, Route, Tunnel};

/// The last state that was reported.
#[derive(Default)]
pub(super) struct Report {
    ignored: BTreeSet<Ignored>,
    direct: BTreeSet<Route>,
    detours: BTreeSet<Ignored>,
    failures: BTreeSet<String>,
    peers: Option<Vec<usize>>,
    /// The counters file could not be written.
    pub(super) counters_failed: bool,
}

impl Report {
    /// Reports peers that are new among those left out, changed numbers of peers, and new failures.
    pub(super) fn tell(&mut self, plan: &Plan, applied: &Applied) {
        let ignored: BTreeSet<Ignored> = plan.ignored.iter().cloned().collect();
        for lease in ignored.difference(&self.ignored) {
            tracing::warn!(lease = %lease.subnet, "not a peer: {}", lease.reason);
        }
        self.ignored = ignored;
        self.tell_ways(plan);
        let tunnelled = plan.tunnels.iter().map(Tunnel::nodes);
        let direct = plan.direct.iter().map(|direct| direct.routes.len());
        let peers: Vec<usize> = tunnelled.chain(direct).collect();
        if self.peers.as_ref() != Some(&peers) {
            for (tunnel, peers) in plan.tunnels.iter().zip(&peers) {
                tracing::info!(device = %tunnel.link.device, peers, changes = applied.changes, "applied");
            }
            if let Some(direct) = &plan.direct {
                let (device, routes) = (&direct.interface, direct.routes.len());
                tracing::info!(%device, routes, changes = applied.changes, "applied without a tunnel");
            }
            self.peers = Some(peers);
        }
        self.tell_failures(applied.failures.iter().map(ToString::to_string).collect());
    }

    /// Reports which peers are reached without a tunnel, and why others are not.
    fn tell_ways(&mut self, plan: &Plan) {
        let Some(direct) = plan.direct.as_ref().filter(|_| !plan.tunnels.is_empty()) else { return };
        let routes: BTreeSet<Route> = direct.routes.iter().copied().collect();
        for route in routes.difference(&self.direct) {
            tracing::info!(subnet = %route.to, via = ?route.via, "on our link: reached without the tunnel");
        }
        let detours: BTreeSet<Ignored> = direct.detours.iter().cloned().collect();
        for detour in detours.difference(&self.detours) {
            tracing::info!(subnet = %detour.subnet, "takes the tunnel: {}", detour.reason);
        }
        (self.direct, self.detours) = (routes, detours);
    }

    /// Reports the failures that were not there the last time, and those that are gone.
    pub(super) fn tell_failures(&mut self, failures: BTreeSet<String>) {
        for failure in failures.difference(&self.failures) {
            tracing::warn!("{failure}; it is tried again and again");
        }
        for mended in self.failures.difference(&failures) {
            tracing::info!("no longer: {mended}");
        }
        self.failures = failures;
    }
}
