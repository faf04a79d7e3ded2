//! Removes what a daemon created on this host and left behind.
//!
//! The state file lists it. Everything is checked again before it is removed, and only what is still as the
//! daemon created it is removed: a device only if it is a TUN, a route only if it leads the same way, the
//! subnet file only if its text is unchanged.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rtnetlink::packet_route::link::InfoKind;

use store::regular;

use crate::apply::routes;
use crate::apply::share::{Scope, Share};
use crate::netlink::{self, Netlink, NetlinkError};
use crate::persist::instance::Instance;
use crate::persist::state_file::{self, FileRecord, RouteRecord, State};
use crate::plan::Route;
use crate::traffic::cleanup::cleanup;
use crate::traffic::program::Programs;

/// A state file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}, which lists what to remove: {source}", .path.display())]
pub struct UnreadableState {
    path: PathBuf,
    source: io::Error,
}

/// The outcome of a cleanup of one instance.
#[derive(Debug, Default)]
pub struct Report {
    /// What was removed, or would be without the dry run, one line each.
    pub removed: Vec<String>,
    /// What could not be removed and why, one line each.
    pub failures: Vec<String>,
}

/// Removes what the instance left behind; a dry run only lists it. Must run in the daemon's network
/// namespace.
pub async fn clean(netlink: &Netlink, instance: &Instance, dry_run: bool) -> Result<Report, UnreadableState> {
    let path = instance.state();
    let state = state_file::read(&path).map_err(|source| UnreadableState { path, source })?;
    let mut report = Report::default();
    Work { netlink, dry_run }.clean(instance, &state.unwrap_or_default(), &mut report).await;
    Ok(report)
}

/// Reasons why one thing could not be removed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("cannot remove {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
}

struct Work<'a> {
    netlink: &'a Netlink,
    dry_run: bool,
}

impl Work<'_> {
    async fn clean(&self, instance: &Instance, state: &State, report: &mut Report) {
        let interfaces: BTreeSet<&str> = state.routes.iter().map(|route| route.interface.as_str()).collect();
        for interface in interfaces {
            match self.routes(interface, &state.routes).await {
                Ok(routes) => report.removed.extend(routes),
                Err(error) => report.failures.push(error.to_string()),
            }
        }
        for device in &state.devices {
            let result = self.device(device).await;
            report.take(format!("device {device}"), result);
        }
        if let Some(file) = &state.subnet_file {
            let result = self.subnet_file(file);
            report.take(format!("file {}", file.path.display()), result);
        }
        self.firewall(state, report).await;
        // After a failure the state file stays, so that the next cleanup knows what is left.
        if report.failures.is_empty() {
            for path in [instance.socket(), instance.state(), instance.lock_file()] {
                let result = self.file(&path);
                report.take(format!("file {}", path.display()), result);
            }
        }
    }

    /// Removes the recorded routes through one interface. Returns those that existed.
    async fn routes(&self, interface: &str, records: &[RouteRecord]) -> Result<Vec<String>, NetlinkError> {
        let Some(link) = netlink::find_link(self.netlink, interface).await? else { return Ok(Vec::new()) };
        let ours = records.iter().filter(|record| record.interface == interface).filter_map(route);
        let put: BTreeSet<Route> = ours.collect();
        let scope = Scope::Underlay { places: &[], installed: &put };
        let shares = [Share { device: interface, index: link.header.index, scope, routes: &[] }];
        let there = routes::observe(self.netlink, &shares).await?;
        let mut failures = Vec::new();
        if !self.dry_run {
            failures = routes::apply(self.netlink, &shares).await?.failures;
        }
        match failures.pop() {
            Some(failure) => Err(failure),
            None => {
                Ok(there.iter().map(|(_, route)| format!("route {} dev {interface}", route.to)).collect())
            }
        }
    }

    async fn device(&self, name: &str) -> Result<bool, StepError> {
        let found = netlink::find_link(self.netlink, name).await?;
        let Some(link) = found.filter(|link| netlink::is_kind(link, InfoKind::Tun)) else { return Ok(false) };
        if !self.dry_run {
            netlink::remove_link(self.netlink, name, &link).await?;
        }
        Ok(true)
    }

    fn subnet_file(&self, record: &FileRecord) -> Result<bool, StepError> {
        match regular::read(&record.path, record.text.len() as u64) {
            Ok(text) if text == record.text.as_bytes() => self.file(&record.path),
            _ => Ok(false),
        }
    }

    fn file(&self, path: &Path) -> Result<bool, StepError> {
        if self.dry_run {
            return Ok(path.symlink_metadata().is_ok());
        }
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StepError::File { path: path.to_owned(), source }),
        }
    }

    async fn firewall(&self, state: &State, report: &mut Report) {
        if !state.firewall {
            return;
        }
        if self.dry_run {
            report.removed.push("the firewall rules in flannel's chains".to_owned());
            return;
        }
        let recorded = state.subnet_file.as_ref().map(|file| model::subnet_env::parse(&file.text));
        let programs = Programs::from_env();
        let cleaned = cleanup(&programs, self.netlink, recorded.as_ref()).await;
        report.removed.extend(cleaned.removed.iter().map(|rule| format!("firewall: {rule}")));
        report.failures.extend(cleaned.failures.iter().map(ToString::to_string));
    }
}

impl Report {
    fn take(&mut self, what: String, result: Result<bool, StepError>) {
        match result {
            Ok(true) => self.removed.push(what),
            Ok(false) => {}
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}

fn route(record: &RouteRecord) -> Option<Route> {
    let to = record.to.parse().ok()?;
    let via = record.via.as_deref().and_then(|via| via.parse().ok());
    Some(Route { via, ..Route::into_device(to) })
}
