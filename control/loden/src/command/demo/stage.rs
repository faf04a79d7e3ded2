//! The demo's cluster: hosts, pods and one real `loden run` per host.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lab::{Host, Lab, PodNetwork, Process, Topology};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::interrupt::Interrupt;
use super::kept::{self, Kept, Member};
use super::progress::Progress;
use crate::options::DemoOptions;

/// How long the daemons together may take to write their subnet files.
const READY: Duration = Duration::from_secs(30);

/// How often the files are checked for.
const POLL: Duration = Duration::from_millis(20);

/// The extension of the file that a daemon writes once it is ready.
const SUBNET_FILE: &str = "subnet.env";

/// The cluster networks: flannel's own example, and a unique local prefix.
const NETWORK: &str = "10.244.0.0/16";
const IPV6_NETWORK: &str = "fd00:10:244::/56";

/// Everything that a demo creates. Dropping it stops the daemons, removes the namespaces and deletes the
/// files, in this order.
pub(crate) struct Stage {
    daemons: Vec<Process>,
    lab: Lab,
    place: TempDir,
    name: String,
    networks: Vec<PodNetwork>,
}

impl Stage {
    /// Creates the hosts and a directory for their files, both with the demo's name.
    pub(crate) fn build(
        options: &DemoOptions,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        progress.step(format!("building {} hosts, a switch and {0} pods", options.hosts));
        let topology = Topology::new(kept::PREFIX, options.hosts.into());
        let name = topology.prefix.clone();
        // The directory has exactly the demo's name, so that `--remove NAME` finds it.
        let place = tempfile::Builder::new()
            .prefix(&name)
            .rand_bytes(0)
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot create a directory for the demo's files")?;
        let lab = Lab::build(&topology)?;
        interrupt.check()?;
        Ok(Stage { daemons: Vec::new(), lab, place, name, networks: Vec::new() })
    }

    /// Starts `loden run` on every host and waits until each has written its subnet file.
    pub(crate) fn start_daemons(
        &mut self,
        options: &DemoOptions,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        progress.step(format!("starting loden run on {} hosts", options.hosts));
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("cannot find this program's own path")?,
        };
        let config = net_config(options);
        for host in self.lab.hosts() {
            let mut command = Command::new(&program);
            command
                .args(["run", "--iface", host.uplink(), "--net-config-json", &config, "--store"])
                .arg(format!("sqlite:{}", self.place.path().join("leases.db").display()))
                .args(["--public-ip", &host.underlay().to_string()])
                // Hosts without a firewall need no rules, and therefore no iptables.
                .args(["--iptables-forward-rules=false", "--require-br-netfilter=false"])
                .arg("--subnet-file")
                .arg(self.file(host, SUBNET_FILE))
                .arg("--run-dir")
                .arg(self.place.path())
                // With the default path, all daemons would share one key and be one peer.
                .env("WIREGUARD_KEY_FILE", self.file(host, "key"))
                .stdout(Stdio::null());
            if options.ipv6 {
                command.args(["--public-ipv6", &host.underlay6().to_string()]);
            }
            let log = self.file(host, "log");
            self.daemons.push(Process::spawn_logged(host.namespace(), &mut command, &log)?);
        }
        self.await_subnets(progress, interrupt)
    }

    /// Gives every pod the address and the MTU from its host's subnet file.
    pub(crate) fn connect_pods(&mut self, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<()> {
        progress.step("connecting the pods");
        for (host, network) in self.lab.hosts_mut().iter_mut().zip(&self.networks) {
            interrupt.check()?;
            host.connect_pod(network)?;
        }
        Ok(())
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Returns the networks from the subnet files, in the order of the hosts.
    pub(crate) fn networks(&self) -> &[PodNetwork] {
        &self.networks
    }

    /// Returns the end of the log of the daemons on the `failed` hosts, and of every daemon that has exited.
    pub(crate) fn log_ends(&mut self, failed: &BTreeSet<usize>) -> Vec<String> {
        let mut texts = Vec::new();
        for (index, daemon) in self.daemons.iter_mut().enumerate() {
            let number = index + 1;
            let ended = daemon.try_wait().ok().flatten();
            if ended.is_none() && !failed.contains(&number) {
                continue;
            }
            let state = ended.map_or("is running".to_owned(), |status| format!("ended, {status}"));
            let log_end = daemon.stderr_tail();
            let log_end = if log_end.is_empty() { "(empty)" } else { log_end.as_str() };
            texts.push(format!("host {number}: loden run {state}; end of its log:\n{log_end}"));
        }
        texts
    }

    /// Records what to remove, for `loden demo --remove`.
    pub(crate) fn describe(&self, own_user_namespace: bool) -> anyhow::Result<()> {
        self.description(own_user_namespace).write(self.place.path())
    }

    /// Leaves everything running.
    pub(crate) fn keep(mut self, own_user_namespace: bool) -> Kept {
        let kept = self.description(own_user_namespace);
        for daemon in std::mem::take(&mut self.daemons) {
            daemon.detach();
        }
        self.lab.keep();
        self.place.disable_cleanup(true);
        kept
    }

    fn description(&self, own_user_namespace: bool) -> Kept {
        Kept {
            name: self.name.clone(),
            own_user_namespace,
            namespaces: self.lab.namespaces().map(|namespace| namespace.name().to_owned()).collect(),
            processes: self.daemons.iter().filter_map(|daemon| Member::of(daemon.id())).collect(),
        }
    }

    /// Returns the path of a host's file with this extension.
    fn file(&self, host: &Host, kind: &str) -> PathBuf {
        self.place.path().join(format!("host{}.{kind}", host.number()))
    }

    fn await_subnets(&mut self, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<()> {
        let total = self.daemons.len();
        let deadline = Instant::now() + READY;
        while let Some(host) = self.lab.hosts().get(self.networks.len()) {
            let number = host.number();
            let file = self.file(host, SUBNET_FILE);
            if let Ok(text) = fs::read_to_string(&file) {
                let network = pod_network(&text)
                    .with_context(|| format!("host {number}: {} is incomplete:\n{text}", file.display()))?;
                self.networks.push(network);
                progress.detail(format!("waiting for subnets: {} of {total}", self.networks.len()));
                continue;
            }
            interrupt.sleep(POLL)?;
            let late = Instant::now() > deadline;
            if let Some(daemon) = self.daemons.get_mut(number - 1) {
                let ended = daemon.try_wait()?;
                if let Some(status) = ended {
                    bail!("host {number}: loden run ended, {status}:\n{}", daemon.stderr_tail());
                }
                if late {
                    bail!(
                        "host {number}: loden run wrote no {} within {} s; end of its log:\n{}",
                        file.display(),
                        READY.as_secs(),
                        daemon.stderr_tail()
                    );
                }
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Signals all daemons first; their guards then wait for them one by one.
        for daemon in &mut self.daemons {
            let _ = daemon.signal(Signal::SIGTERM);
        }
    }
}

fn net_config(options: &DemoOptions) -> String {
    let mut config = serde_json::json!({ "Network": NETWORK, "Backend": { "Type": options.backend.name() } });
    if options.ipv6 {
        config["EnableIPv6"] = true.into();
        config["IPv6Network"] = IPV6_NETWORK.into();
    }
    config.to_string()
}

/// Parses what a pod on this host gets; `None` unless the file has an MTU and a subnet.
fn pod_network(text: &str) -> Option<PodNetwork> {
    let recorded = model::subnet_env::parse(text);
    let network = PodNetwork { ipv4: recorded.subnet(), ipv6: recorded.ipv6_subnet(), mtu: recorded.mtu? };
    (network.ipv4.is_some() || network.ipv6.is_some()).then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_taken_from_the_file() {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n\
                    FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";
        let network = pod_network(text).unwrap();
        assert_eq!(network.ipv4.unwrap().to_string(), "10.244.7.0/24");
        assert_eq!(network.ipv6.unwrap().to_string(), "fd00:0:0:7::/64");
        assert_eq!(network.mtu, 1430);
        assert!(pod_network("FLANNEL_MTU=1430\n").is_none());
        assert!(pod_network("FLANNEL_SUBNET=10.244.7.1/24\n").is_none());
    }
}
