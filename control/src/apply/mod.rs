//! Makes the host match the plan: observe, compare, change what differs.
//!
//! Level-triggered: [`Applier::apply`] runs with every new plan, and again with the current plan whenever the
//! host changes, so that anything another program removes comes back and no lost event stays lost. The order
//! is fixed: devices, the workers' tables, the routes that send packets into the devices, and `subnet.env`
//! last, because it announces that the rest is in place.

pub mod commands;
mod cover;
pub mod engine;
pub mod links;
pub mod routes;
pub mod share;
pub mod subnet_file;
pub mod takeover;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use path::fib::FibError;
use store::Kind;

use self::commands::Runner;
use self::engine::{Numbers, Tables};
use self::routes::Outcome;
use self::share::{Scope, Share};
use self::subnet_file::SubnetFileError;
use crate::netlink::{Netlink, NetlinkError};
use crate::persist::disk::Disk;
use crate::plan::{Direct, Plan, Route, Tunnel};

/// Reasons why the host could not be made to match the plan.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The tunnel device is gone. Only the engine can create another.
    #[error("the device {0} has disappeared: another program removed it")]
    DeviceGone(String),
    /// The kernel rejected a change that everything else depends on.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The peers do not form a valid forwarding table.
    #[error("cannot build the forwarding table of {device}: {source}")]
    Table {
        /// The tunnel device.
        device: String,
        /// What is wrong with the peers.
        #[source]
        source: FibError,
    },
    /// `subnet.env` could not be written.
    #[error(transparent)]
    SubnetFile(#[from] SubnetFileError),
}

impl ApplyError {
    /// Returns the kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            ApplyError::DeviceGone(device) => Kind::new("device gone").of(device),
            ApplyError::Netlink(error) => error.kind(),
            ApplyError::Table { device, .. } => Kind::new("table").of(device),
            ApplyError::SubnetFile(error) => error.kind(),
        }
    }
}

/// The outcome of one round.
#[derive(Debug, Default)]
pub struct Applied {
    /// Devices and routes changed, tables published, files written; 0 if the host matched the plan.
    pub changes: usize,
    /// Routes that the kernel rejected, or a failed write of `subnet.env`; the next round retries them.
    pub failures: Vec<ApplyError>,
}

impl Applied {
    /// Returns true if `subnet.env` matches the plan.
    pub fn is_promised(&self) -> bool {
        !self.failures.iter().any(|failure| matches!(failure, ApplyError::SubnetFile(_)))
    }
}

/// Applies plans. Remembers only what cannot be observed: which tables the workers have, with which addresses
/// of the host, and which routes on its interface are ours.
#[derive(Debug)]
pub struct Applier {
    netlink: Netlink,
    disk: Disk,
    subnet_file: PathBuf,
    label: String,
    published: Vec<Tunnel>,
    numbers: Vec<Numbers>,
    host: BTreeSet<IpAddr>,
    direct: BTreeSet<Route>,
    commands: Runner,
}

impl Applier {
    /// Creates an applier for the network namespace of `netlink` and for the file `subnet_file`, which `disk`
    /// writes. Devices get the alias `label`.
    pub fn new(netlink: Netlink, disk: Disk, subnet_file: PathBuf, label: &str) -> Applier {
        Applier {
            netlink,
            disk,
            subnet_file,
            label: label.to_owned(),
            published: Vec::new(),
            numbers: Vec::new(),
            host: BTreeSet::new(),
            direct: BTreeSet::new(),
            commands: Runner::default(),
        }
    }

    /// Forgets the published tables after the workers were started: their first tables use these numbers, one
    /// set for each tunnel.
    pub fn begin_anew(&mut self, numbers: Vec<Numbers>) {
        self.published.clear();
        self.numbers = numbers;
    }

    /// Returns the connection to the kernel.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Compares the host with the plan and changes what differs.
    pub async fn apply(&mut self, plan: &Plan, tables: &impl Tables) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        let mut indexes = Vec::with_capacity(plan.tunnels.len());
        for (number, tunnel) in plan.tunnels.iter().enumerate() {
            let queue_length = tables.queue_length(number);
            let configured = links::apply(&self.netlink, &tunnel.link, queue_length, &self.label).await;
            let (index, changes) = configured.map_err(|error| match error.errno() {
                Some(nix::libc::ENODEV) => ApplyError::DeviceGone(tunnel.link.device.clone()),
                _ => error.into(),
            })?;
            indexes.push(index);
            applied.changes += changes;
        }
        let host = links::host_addresses(&self.netlink).await?;
        applied.changes += self.publish(plan, host, tables)?;
        let outcome = self.routes(plan, &indexes).await?;
        applied.changes += outcome.changed;
        applied.failures.extend(outcome.failures.into_iter().map(ApplyError::from));
        if let Some(commands) = &plan.commands {
            applied.changes += self.commands.apply(commands);
        }
        let (path, content) = (self.subnet_file.clone(), plan.subnet_env.clone());
        let written = self.disk.run(move || subnet_file::apply(&path, &content)).await;
        match written.unwrap_or_else(|error| Err(subnet_file::unanswered(&self.subnet_file, error))) {
            Ok(written) => applied.changes += usize::from(written),
            // Packets flow without the file; only new pods have to wait.
            Err(error) => applied.failures.push(error.into()),
        }
        Ok(applied)
    }

    async fn routes(&mut self, plan: &Plan, indexes: &[u32]) -> Result<Outcome, NetlinkError> {
        let tunnels = plan.tunnels.iter().zip(indexes).map(|(tunnel, index)| Share {
            device: &tunnel.link.device,
            index: *index,
            scope: Scope::Tunnel(&tunnel.link.places),
            routes: &tunnel.routes,
        });
        let mut shares: Vec<Share<'_>> = tunnels.collect();
        let mut missing = None;
        if let Some(Direct { interface, places, routes, .. }) = &plan.direct {
            match links::index(&self.netlink, interface).await? {
                Some(index) => {
                    let scope = Scope::Underlay { places, installed: &self.direct };
                    shares.push(Share { device: interface, index, scope, routes });
                }
                // The interface may come back; the kernel has removed its routes along with it.
                None => missing = Some(links::gone(format!("route by {interface}"))),
            }
        }
        let mut outcome = routes::apply(&self.netlink, &shares).await?;
        outcome.failures.extend(missing);
        self.direct = plan.direct.iter().flat_map(|direct| direct.routes.iter().copied()).collect();
        Ok(outcome)
    }

    fn publish(
        &mut self,
        plan: &Plan,
        host: BTreeSet<IpAddr>,
        tables: &impl Tables,
    ) -> Result<usize, ApplyError> {
        let mut published = 0;
        for (number, tunnel) in plan.tunnels.iter().enumerate() {
            let same = self.published.get(number).is_some_and(|before| {
                (&before.peers, &before.format, &before.link, &before.secrets)
                    == (&tunnel.peers, &tunnel.format, &tunnel.link, &tunnel.secrets)
            });
            self.numbers.resize_with(plan.tunnels.len(), Numbers::default);
            let numbers = &mut self.numbers[number];
            if !same {
                tables.set_peers(number, engine::sealed_peers(tunnel, numbers));
            }
            if !same || host != self.host {
                let fib = engine::build(tunnel, numbers, &host)
                    .map_err(|source| ApplyError::Table { device: tunnel.link.device.clone(), source })?;
                tables.publish(number, Arc::new(fib));
                published += 1;
            }
        }
        if published > 0 {
            self.published.clone_from(&plan.tunnels);
            self.host = host;
        }
        Ok(published)
    }
}

#[cfg(test)]
mod tests;
