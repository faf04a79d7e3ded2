//! A system under test on its own testbed: two hosts, each with a pod, and whatever carries packets between
//! them.

mod kernel;
mod loden;
mod routes;
mod wireguard;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lab::{Host, Lab, Namespace, PodNetwork, Process, Topology, Wiring};
use serde_json::Value;

use self::loden::{Backend, Network};
use self::wireguard::Program;
use crate::ethtool;
use crate::interrupt::Interrupt;
use crate::scenario::{Subject, Testbed};

/// MTU of the underlay in bytes, as on ordinary Ethernet.
const UNDERLAY_MTU: u32 = 1500;

/// The context in which every subject starts.
#[derive(Clone, Debug)]
pub struct Context {
    /// The `loden` program.
    pub loden: PathBuf,
    /// Extra flags for `loden run`.
    pub loden_args: Vec<String>,
    /// Raised when the user interrupts the run; every wait checks it.
    pub interrupt: Interrupt,
}

/// A running subject. Dropping it stops its processes, then removes its namespaces.
pub struct Standing {
    // Fields drop in this order: daemons before the namespaces that they run in.
    daemons: loden::Daemons,
    lab: Lab,
}

impl Standing {
    /// Builds the testbed, starts the subject and connects the pods. `slot` distinguishes subjects that run
    /// at the same time.
    pub fn start(subject: Subject, testbed: Testbed, slot: usize, context: &Context) -> Result<Self> {
        let ordinary = |backend| (backend, Network::Ordinary);
        Self::build(testbed, slot, |lab, daemons| match subject {
            Subject::KernelVxlan => kernel::start(lab),
            Subject::NoneRoutes => routes::start(lab),
            Subject::LodenVxlan => loden::start(ordinary(Backend::Vxlan), lab, daemons, context),
            Subject::LodenUdp => loden::start(ordinary(Backend::Udp), lab, daemons, context),
            Subject::LodenWireguard => loden::start(ordinary(Backend::Wireguard), lab, daemons, context),
            Subject::WireguardGo => wireguard::start(Program::WireguardGo, lab, daemons, context),
            Subject::Boringtun => wireguard::start(Program::Boringtun, lab, daemons, context),
            Subject::Gotatun => wireguard::start(Program::Gotatun, lab, daemons, context),
        })
    }

    /// Starts loden's vxlan backend in a network with room for ten thousand nodes.
    pub fn start_large(testbed: Testbed, slot: usize, context: &Context) -> Result<Self> {
        let settings = (Backend::Vxlan, Network::Large);
        Self::build(testbed, slot, |lab, daemons| loden::start(settings, lab, daemons, context))
    }

    fn build(
        testbed: Testbed,
        slot: usize,
        start: impl FnOnce(&Lab, &mut loden::Daemons) -> Result<Vec<PodNetwork>>,
    ) -> Result<Self> {
        let mut topology = Topology::new(&format!("bench{slot}-"), 2);
        topology.wiring = Wiring::Direct;
        topology.underlay_mtu = UNDERLAY_MTU;
        let mut lab = Lab::build(&topology)?;
        if testbed == Testbed::WireLike {
            make_wire_like(&lab)?;
        }
        let mut daemons = loden::Daemons::none();
        let networks = start(&lab, &mut daemons)?;
        for (host, network) in lab.hosts_mut().iter_mut().zip(&networks) {
            host.connect_pod(network)?;
        }
        Ok(Standing { daemons, lab })
    }

    /// Returns the host with this number, from 1.
    pub fn host(&self, number: usize) -> Result<&Host> {
        self.lab.hosts().iter().find(|host| host.number() == number).context("no such host")
    }

    /// Returns the path of the shared store.
    pub fn store(&self) -> Result<PathBuf> {
        Ok(loden::store_file(self.daemons.place().context("no daemons")?))
    }

    /// Returns the process of a host's daemon.
    pub fn daemon(&mut self, number: usize) -> Result<&mut Process> {
        self.daemons.process(number)
    }

    /// Returns the status of a host's daemon, from `loden status --json`.
    pub fn status(&mut self, number: usize, context: &Context) -> Result<Value> {
        let pid = self.daemon(number)?.id();
        let place = self.daemons.place().context("no daemons")?;
        let mut command = Command::new(&context.loden);
        command.args(["status", "--json", "--run-dir"]).arg(loden::run_directory(place));
        let output = command.output().context("cannot run loden status")?;
        let mut status: Value =
            serde_json::from_slice(&output.stdout).context("loden status printed no JSON")?;
        let daemons = status["daemons"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let own = daemons.into_iter().find(|daemon| daemon["pid"] == pid);
        own.with_context(|| format!("loden status does not list process {pid}"))
    }

    /// Restarts a host's daemon, which has exited, without waiting for it.
    pub fn restart(&mut self, number: usize, context: &Context) -> Result<()> {
        let host = self.lab.hosts().iter().find(|host| host.number() == number).context("no such host")?;
        self.daemons.restart(host, context)
    }

    /// Returns the namespace of pod A, the client.
    pub fn client(&self) -> &Namespace {
        self.lab.hosts()[0].pod()
    }

    /// Returns the namespace and address of pod B, the server.
    pub fn server(&self) -> Result<(&Namespace, IpAddr)> {
        let host = &self.lab.hosts()[1];
        let address = host.pod_addresses().first().context("pod B has no address")?;
        Ok((host.pod(), *address))
    }

    /// Returns the counters files of the daemons by host; empty for subjects without a daemon.
    pub fn counters_files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.daemons.counters_files()
    }

    /// Returns an error with the last lines of a daemon's log if it has exited.
    pub fn check(&mut self) -> Result<()> {
        self.daemons.check()
    }
}

fn make_wire_like(lab: &Lab) -> Result<()> {
    let ethtool = ethtool::find().map_err(anyhow::Error::msg)?;
    for host in lab.hosts() {
        let arguments = ethtool::set_features(host.uplink(), &ethtool::WIRE_LIKE);
        let output = host.namespace().output(Command::new(&ethtool).args(&arguments))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("ethtool {}: {}", arguments.join(" "), stderr.trim());
        }
    }
    Ok(())
}

/// Returns the pod networks of subjects without an allocator: 10.5.N.0/24 for host N.
fn fixed_networks(lab: &Lab, mtu: u32) -> Result<Vec<PodNetwork>> {
    let subnet = |number: usize| format!("10.5.{number}.0/24").parse();
    let network = |number| Ok(PodNetwork { ipv4: Some(subnet(number)?), ipv6: None, mtu });
    lab.hosts().iter().map(|host| network(host.number())).collect()
}
