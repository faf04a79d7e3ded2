//! `loden cleanup`: takes from this host what a daemon has made and left.
//!
//! What that is the state file says; each thing is looked at again before it goes, and only what still is as the
//! daemon made it is removed: a device only if it is a TUN, a route only if it leads the same way, the subnet
//! file only if nobody has changed it.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::InfoKind;

use crate::apply::routes::{self, Scope, Share};
use crate::netlink;
use crate::options::RUN_DIRECTORY;
use crate::persist::instance::{InstanceError, Places};
use crate::persist::state_file::{self, FileRecord, RouteRecord, State};
use crate::plan::Route;
use crate::traffic::cleanup::cleanup;
use crate::traffic::program::Programs;

/// `loden cleanup`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Only what the daemon of this name has made.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Where the daemons' state files are.
    #[arg(long, value_name = "PATH", default_value = RUN_DIRECTORY)]
    pub run_dir: PathBuf,
    /// Say what would go, and leave it.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although a daemon runs.
    #[arg(long)]
    pub force: bool,
}

/// Removes, or lists, what each instance has left. Needs the network namespace of the daemon.
pub async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let all = match &options.instance {
        Some(name) => vec![Places::new(name, &options.run_dir)?],
        None => Places::all(&options.run_dir),
    };
    let netlink = netlink::connect()?;
    let mut found = 0;
    let mut failed = false;
    for places in all.iter().filter(|places| has_any(places)) {
        let lock = match places.lock() {
            Ok(lock) => lock.ok(),
            Err(error @ InstanceError::Taken { .. }) if !options.force && !options.dry_run => {
                bail!("{error}\nStop the daemon first; --force goes on while it runs")
            }
            Err(_) => None,
        };
        let work = Work { netlink: &netlink, dry_run: options.dry_run };
        let report = work.clean(places).await?;
        found += report.lines.len();
        report.lines.iter().for_each(|line| println!("{}: {line}", places.name()));
        report.failures.iter().for_each(|failure| eprintln!("{}: {failure}", places.name()));
        failed |= !report.failures.is_empty();
        drop(lock);
    }
    if found == 0 {
        println!("nothing to remove");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Work<'a> {
    netlink: &'a Handle,
    dry_run: bool,
}

#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failures: Vec<String>,
}

impl Work<'_> {
    async fn clean(&self, places: &Places) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let state = state_file::read(&places.state())
            .with_context(|| {
                format!(
                    "cannot read {}, and without it nothing is known to be ours",
                    places.state().display()
                )
            })?
            .unwrap_or_default();
        let interfaces: BTreeSet<&str> = state.routes.iter().map(|route| route.interface.as_str()).collect();
        for interface in interfaces {
            match self.routes(interface, &state.routes).await {
                Ok(routes) => report.lines.extend(routes),
                Err(error) => report.failures.push(format!("{error:#}")),
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
        self.firewall(&state, &mut report).await;
        // What a failed step has left must still be known to be ours the next time.
        if report.failures.is_empty() {
            for path in [places.socket(), places.state(), places.lock_file()] {
                let result = self.file(&path);
                report.take(format!("file {}", path.display()), result);
            }
        }
        Ok(report)
    }

    /// Removes the recorded routes by one interface, and names those that were there.
    async fn routes(&self, interface: &str, records: &[RouteRecord]) -> anyhow::Result<Vec<String>> {
        let Some(link) = netlink::find_link(self.netlink, interface).await? else { return Ok(Vec::new()) };
        let ours = records.iter().filter(|record| record.interface == interface).filter_map(route);
        let put: BTreeSet<Route> = ours.collect();
        let scope = Scope::Underlay { places: &[], put: &put };
        let shares = [Share { device: interface, index: link.header.index, scope, routes: &[] }];
        let there = routes::observe(self.netlink, &shares).await?;
        let mut failures = Vec::new();
        if !self.dry_run {
            failures = routes::apply(self.netlink, &shares).await?.failures;
        }
        match failures.pop() {
            Some(failure) => Err(failure.into()),
            None => {
                Ok(there.iter().map(|(_, route)| format!("route {} dev {interface}", route.to)).collect())
            }
        }
    }

    async fn device(&self, name: &str) -> anyhow::Result<bool> {
        let found = netlink::find_link(self.netlink, name).await?;
        let Some(link) = found.filter(|link| netlink::is_kind(link, InfoKind::Tun)) else { return Ok(false) };
        if !self.dry_run {
            netlink::remove_link(self.netlink, name, &link).await?;
        }
        Ok(true)
    }

    fn subnet_file(&self, record: &FileRecord) -> anyhow::Result<bool> {
        match fs::read(&record.path) {
            Ok(text) if text == record.text.as_bytes() => self.file(&record.path),
            _ => Ok(false),
        }
    }

    fn file(&self, path: &Path) -> anyhow::Result<bool> {
        if self.dry_run {
            return Ok(path.symlink_metadata().is_ok());
        }
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }

    async fn firewall(&self, state: &State, report: &mut Report) {
        if !state.firewall {
            return;
        }
        if self.dry_run {
            report.lines.push("the firewall rules in flannel's chains".to_owned());
            return;
        }
        let recorded = state.subnet_file.as_ref().map(|file| model::subnet_env::parse(&file.text));
        let programs = Programs::from_env();
        let cleaned = cleanup(&programs, self.netlink, recorded.as_ref()).await;
        report.lines.extend(cleaned.removed.iter().map(|rule| format!("firewall: {rule}")));
        report.failures.extend(cleaned.failures.iter().map(ToString::to_string));
    }
}

impl Report {
    fn take(&mut self, what: String, result: anyhow::Result<bool>) {
        match result {
            Ok(true) => self.lines.push(what),
            Ok(false) => {}
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }
}

/// Whether the instance has left anything; taking the lock of one that has not would make a file.
fn has_any(places: &Places) -> bool {
    [places.socket(), places.state(), places.lock_file()].iter().any(|path| path.symlink_metadata().is_ok())
}

fn route(record: &RouteRecord) -> Option<Route> {
    let to = record.to.parse().ok()?;
    let via = record.via.as_deref().and_then(|via| via.parse().ok());
    Some(Route { via, ..Route::into_device(to) })
}
