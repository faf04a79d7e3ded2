//! What the log has reported already, so that a state of affairs is reported once and not every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use engine::{Event, Notice};

use super::error::DaemonError;
use crate::plan::{Ignored, Plan, Route, Tunnel};
use store::Kind;

/// The last state that was reported.
#[derive(Default)]
pub(super) struct Report {
    ignored: BTreeSet<Ignored>,
    direct: BTreeSet<Route>,
    detours: BTreeSet<Ignored>,
    /// One text of each kind.
    failures: BTreeMap<Kind, String>,
    peers: Option<Vec<usize>>,
    /// The counters file could not be written.
    counters_failed: bool,
}

impl Report {
    /// Reports peers that are new among those left out, and changed numbers of peers, of a plan that was
    /// applied with this number of `changes`.
    pub(super) fn report_plan(&mut self, plan: &Plan, changes: usize) {
        let ignored: BTreeSet<Ignored> = plan.ignored.iter().cloned().collect();
        for lease in ignored.difference(&self.ignored) {
            tracing::warn!(lease = %lease.subnet, "not a peer: {}", lease.reason);
        }
        self.ignored = ignored;
        self.report_ways(plan);
        let tunnelled = plan.tunnels.iter().map(Tunnel::nodes);
        let direct = plan.direct.iter().map(|direct| direct.routes.len());
        let peers: Vec<usize> = tunnelled.chain(direct).collect();
        if self.peers.as_ref() != Some(&peers) {
            for (tunnel, peers) in plan.tunnels.iter().zip(&peers) {
                tracing::info!(device = %tunnel.link.device, peers, changes, "applied");
            }
            if let Some(direct) = &plan.direct {
                let (device, routes) = (&direct.interface, direct.routes.len());
                tracing::info!(%device, routes, changes, "applied without a tunnel");
            }
            self.peers = Some(peers);
        }
    }

    /// Reports which peers are reached without a tunnel, and why others are not.
    fn report_ways(&mut self, plan: &Plan) {
        let Some(direct) = plan.direct.as_ref().filter(|_| !plan.tunnels.is_empty()) else { return };
        let routes: BTreeSet<Route> = direct.routes.iter().copied().collect();
        for route in routes.difference(&self.direct) {
            let via = route.via.map(|gateway| gateway.to_string()).unwrap_or_default();
            tracing::info!(subnet = %route.to, via, "on our link: reached without the tunnel");
        }
        let detours: BTreeSet<Ignored> = direct.detours.iter().cloned().collect();
        for detour in detours.difference(&self.detours) {
            tracing::info!(subnet = %detour.subnet, "takes the tunnel: {}", detour.reason);
        }
        (self.direct, self.detours) = (routes, detours);
    }

    /// Reports the kinds of failures that were not there the last time, and those that are gone.
    pub(super) fn report_failures(&mut self, failures: impl Iterator<Item = (Kind, String)>) {
        let mut kinds: BTreeMap<Kind, (String, usize)> = BTreeMap::new();
        for (kind, failure) in failures {
            kinds.entry(kind).or_insert((failure, 0)).1 += 1;
        }
        for (kind, (failure, count)) in &kinds {
            if self.failures.contains_key(kind) {
                continue;
            }
            match count - 1 {
                0 => tracing::warn!("{failure}; retrying"),
                others => tracing::warn!("{failure}, and {others} like it; retrying"),
            }
        }
        for (_, resolved) in self.failures.iter().filter(|(kind, _)| !kinds.contains_key(*kind)) {
            tracing::info!("resolved: {resolved}");
        }
        self.failures = kinds.into_iter().map(|(kind, (failure, _))| (kind, failure)).collect();
    }

    /// Reports that the counters file could not be written, the first time.
    pub(super) fn report_counters(&mut self, path: &Path, error: &io::Error) {
        if !std::mem::replace(&mut self.counters_failed, true) {
            tracing::warn!(path = %path.display(), %error, "cannot write the counters");
        }
    }
}

/// Reports what a worker says besides its counters. A worker that has failed ends the daemon.
pub(super) fn report_notice(plan: &Plan, notice: Notice) -> Result<(), DaemonError> {
    let Notice { tunnel, worker, event, .. } = notice;
    let worker = worker.place();
    let device = plan.tunnels.get(tunnel).map_or("", |tunnel| tunnel.link.device.as_str());
    match event {
        Event::UnderlayDowngraded => {
            tracing::warn!(
                device,
                worker,
                "the kernel rejected batches of datagrams; sending some one by one"
            );
        }
        Event::OverlayDowngraded { tcp, udp } => {
            tracing::warn!(device, worker, tcp, udp, "the TUN rejected a super-packet; offloads reduced");
        }
        Event::PathLimited { peer, limit } => {
            tracing::info!(device, peer, limit, "path MTU learned; larger packets are refused or cut");
        }
        Event::SegmentationPaused { interface } => {
            tracing::warn!(
                device,
                interface,
                "this host translates the tunnel's source address towards an interface without checksum \
                 offload, where the kernel damages joined datagrams; gso paused, sending one by one; exempt \
                 the tunnel's port from SNAT or enable the interface's tx checksums"
            );
        }
        Event::SegmentationResumed => {
            tracing::info!(device, "the tunnel's source address is safe from translation; gso resumed");
        }
        Event::WorkerFailed(why) => return Err(DaemonError::WorkerFailed { worker, why }),
        Event::LearnerFailed(why) => return Err(DaemonError::LearnerFailed { why }),
        Event::KeeperFailed(why) => return Err(DaemonError::KeeperFailed { device: device.to_owned(), why }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::subnet_env::SubnetEnv;
    use path::WorkerIndex;

    use super::*;
    use crate::netlink::NetlinkError;

    #[test]
    fn failures_of_one_kind_are_one_failure() {
        let mut report = Report::default();
        let named = |error: NetlinkError| (error.kind(), error.to_string());
        let route = |to: &str, errno| {
            let what = format!("add the route {to} dev flannel.1");
            named(NetlinkError::Refused { what, source: io::Error::from_raw_os_error(errno) })
        };
        let other = || named(NetlinkError::Ended { what: "list the routes".into() });
        report.report_failures([route("10.244.1.0/24", 28), route("10.244.2.0/24", 28), other()].into_iter());
        assert_eq!(report.failures.len(), 2);
        let another_errno = route("fd00:244::/64", 17);
        report.report_failures([route("fd00:abcd::/64", 28), another_errno.clone(), other()].into_iter());
        assert_eq!(report.failures.len(), 3);
        report.report_failures([other()].into_iter());
        assert_eq!(report.failures.into_values().collect::<Vec<_>>(), [other().1]);
    }

    #[test]
    fn a_thread_that_has_failed_ends_the_daemon() {
        let subnet_env = SubnetEnv { ipv4: None, ipv6: None, mtu: 1450, ip_masq: false };
        let plan =
            Plan { tunnels: Vec::new(), direct: None, commands: None, subnet_env, ignored: Vec::new() };
        let notice = |event| Notice { tunnel: 0, worker: WorkerIndex(0), event };
        for failure in [Event::WorkerFailed, Event::KeeperFailed, Event::LearnerFailed] {
            let error = report_notice(&plan, notice(failure("panicked".into()))).unwrap_err().to_string();
            assert!(error.contains("panicked; restart the daemon"), "{error}");
        }
        let limited = Event::PathLimited { peer: "192.0.2.2".into(), limit: 1380 };
        assert!(report_notice(&plan, notice(limited)).is_ok());
    }
}
