//! The host's side of a node: the workers, and the kernel as it is brought to the plan.

use std::path::PathBuf;
use std::sync::Arc;

use engine::Engine;
use store::aside;

use super::datapath;
use super::reconciler::Inputs;
use crate::apply::engine::Numbers;
use crate::apply::{Applied, Applier, ApplyError};
use crate::netlink::Netlink;
use crate::persist::disk::Disk;
use crate::persist::remembered::Remembered;
use crate::plan::Plan;
use crate::settings::Settings;

/// The workers and the kernel.
pub(super) struct Host {
    engine: Arc<Engine>,
    applier: Applier,
    plan: Arc<Plan>,
}

impl Host {
    /// Brings the host to its first plan. `numbers` are those of the peers in the engine's tables.
    pub(super) async fn new(
        netlink: Netlink,
        disk: Disk,
        subnet_file: PathBuf,
        label: &str,
        engine: Arc<Engine>,
        numbers: Vec<Numbers>,
        plan: Arc<Plan>,
    ) -> Result<(Host, Applied), ApplyError> {
        let mut applier = Applier::new(netlink, disk, subnet_file, label);
        applier.begin_anew(numbers);
        let mut host = Host { engine, applier, plan: Arc::clone(&plan) };
        let applied = host.apply(plan).await?;
        Ok((host, applied))
    }

    /// Returns the workers.
    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Returns the connection to the kernel.
    pub(super) fn netlink(&self) -> &Netlink {
        self.applier.netlink()
    }

    /// Returns the plan that the host was brought to last.
    pub(super) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Brings the host to a plan.
    pub(super) async fn apply(&mut self, plan: Arc<Plan>) -> Result<Applied, ApplyError> {
        self.plan = plan;
        self.applier.apply(&self.plan, &*self.engine).await
    }

    /// Closes the tunnels and opens them as `inputs` outline them, with the tables of `plan`; says why that
    /// failed.
    pub(super) async fn reopen(
        &mut self,
        settings: &Settings,
        inputs: &Inputs,
        plan: &Plan,
        memory: &mut Remembered,
    ) -> Result<(), String> {
        self.stop().await;
        let opened = datapath::open(settings, inputs.context(), inputs.outline(), &plan.tunnels, memory);
        let (engine, numbers) = opened.map_err(|error| format!("cannot reopen the tunnels: {error}"))?;
        datapath::keep(&engine);
        self.engine = engine;
        self.applier.begin_anew(numbers);
        Ok(())
    }

    /// Stops the workers.
    pub(super) async fn stop(&self) {
        let engine = Arc::clone(&self.engine);
        // Joining threads blocks; probes must still be answered.
        if aside::run("loden-stop", move || engine.stop()).await.is_err() {
            self.engine.stop();
        }
    }
}
