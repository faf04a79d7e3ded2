//! `loden run` on both hosts with a shared store, like an installation on two nodes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{Host, Lab, PodNetwork, Process};
use model::subnet_env;
use tempfile::TempDir;

use super::Context;

/// Time limit for a daemon to write its `subnet.env`.
const READY: Duration = Duration::from_secs(30);

/// Polling interval of a waiting harness.
const POLL: Duration = Duration::from_millis(20);

/// The measured backends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backend {
    /// VXLAN, VNI 1, port 8472.
    Vxlan,
    /// Plain IP in UDP, port 8285.
    Udp,
    /// WireGuard, port 51820.
    Wireguard,
}

/// The size of the cluster network.
#[derive(Clone, Copy, Debug)]
pub(super) enum Network {
    /// The size of flannel's example.
    Ordinary,
    /// With room for ten thousand nodes and more.
    Large,
}

/// The daemons of one subject with their files. Dropping it stops them, then removes the files.
pub(super) struct Daemons {
    // Fields drop in this order: processes before the directory that they write to.
    hosts: Vec<Daemon>,
    directory: Option<TempDir>,
    /// The settings that the daemons were started with.
    settings: (Backend, Network),
}

struct Daemon {
    host: String,
    process: Process,
    /// The counters file; `None` for a program without one.
    counters: Option<PathBuf>,
}

/// Starts a daemon on each host and waits until each has a subnet. Daemons started before an error are in
/// `daemons` and stop when it is dropped.
pub(super) fn start(
    settings: (Backend, Network),
    lab: &Lab,
    daemons: &mut Daemons,
    context: &Context,
) -> Result<Vec<PodNetwork>> {
    let directory = tempfile::Builder::new().prefix("loden-bench-").tempdir();
    let directory = directory.context("cannot create a temporary directory")?;
    let place = directory.path().to_path_buf();
    daemons.directory = Some(directory);
    daemons.settings = settings;
    for host in lab.hosts() {
        let process = spawn(settings, host, &place, context)?;
        let name = name(host);
        let counters = place.join(format!("{name}.counters.json"));
        daemons.hosts.push(Daemon { host: name, process, counters: Some(counters) });
    }
    lab.hosts().iter().map(|host| daemons.await_subnet(&subnet_file(host, &place), context)).collect()
}

impl Daemons {
    /// Returns an empty set, for subjects without daemons.
    pub(super) fn none() -> Self {
        Daemons { hosts: Vec::new(), directory: None, settings: (Backend::Vxlan, Network::Ordinary) }
    }

    /// Returns the directory of the daemons' files; `None` for subjects without a daemon.
    pub(super) fn place(&self) -> Option<&Path> {
        self.directory.as_ref().map(TempDir::path)
    }

    /// Returns the process of the daemon with this number, from 1.
    pub(super) fn process(&mut self, number: usize) -> Result<&mut Process> {
        let daemon = number.checked_sub(1).and_then(|index| self.hosts.get_mut(index));
        daemon.map(|daemon| &mut daemon.process).context("no such daemon")
    }

    /// Restarts the daemon of `host`, which has exited, without waiting for it.
    pub(super) fn restart(&mut self, host: &Host, context: &Context) -> Result<()> {
        let place = self.place().context("no daemons")?.to_path_buf();
        let process = spawn(self.settings, host, &place, context)?;
        *self.process(host.number())? = process;
        Ok(())
    }

    /// Returns the counters files by host.
    pub(super) fn counters_files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.hosts.iter().filter_map(|daemon| Some((daemon.host.as_str(), daemon.counters.as_deref()?)))
    }

    /// Adds another project's program.
    pub(super) fn push(&mut self, host: String, process: Process) {
        self.hosts.push(Daemon { host, process, counters: None });
    }

    /// Returns an error if a daemon has exited.
    pub(super) fn check(&mut self) -> Result<()> {
        for daemon in &mut self.hosts {
            if let Some(status) = daemon.process.try_wait()? {
                bail!(
                    "the program on host {} exited ({status}): {}",
                    daemon.host,
                    daemon.process.stderr_tail()
                );
            }
        }
        Ok(())
    }

    fn await_subnet(&mut self, file: &Path, context: &Context) -> Result<PodNetwork> {
        let deadline = Instant::now() + READY;
        loop {
            context.interrupt.check()?;
            self.check()?;
            if let Ok(text) = std::fs::read_to_string(file) {
                return pod_network(&text)
                    .with_context(|| format!("{} lacks a subnet or an MTU: {text}", file.display()));
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = self.hosts.iter().map(|daemon| daemon.process.stderr_tail()).collect();
                bail!("loden run wrote no subnet file within {} s: {}", READY.as_secs(), logs.join("\n"));
            }
            thread::sleep(POLL);
        }
    }
}

fn spawn(settings: (Backend, Network), host: &Host, place: &Path, context: &Context) -> Result<Process> {
    let mut command = Command::new(&context.loden);
    command.args(arguments(settings, host, place)).args(&context.loden_args).stdout(Stdio::null());
    command.env("WIREGUARD_KEY_FILE", place.join(format!("{}.key", name(host))));
    Process::spawn(host.namespace(), &mut command)
        .with_context(|| format!("cannot start {}; set its path with --loden", context.loden.display()))
}

fn arguments(settings: (Backend, Network), host: &Host, place: &Path) -> Vec<OsString> {
    let mut store = OsString::from("sqlite:");
    store.push(store_file(place));
    let mut arguments: Vec<OsString> =
        ["run", "--iface", host.uplink(), "--net-config-json"].map(Into::into).into();
    arguments.push(net_config(settings).into());
    // The other subjects have no firewall either.
    arguments.extend(["--iptables-forward-rules=false", "--require-br-netfilter=false"].map(OsString::from));
    let files = [
        ("--store", store),
        ("--subnet-file", subnet_file(host, place).into()),
        ("--run-dir", run_directory(place).into()),
        ("--counters-file", place.join(format!("{}.counters.json", name(host))).into()),
    ];
    arguments.extend(files.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
    arguments
}

/// Returns flannel's net-conf.json with only the backend's type, so that every default is flannel's.
fn net_config((backend, network): (Backend, Network)) -> String {
    let network = match network {
        Network::Ordinary => r#""Network":"10.5.0.0/16""#,
        Network::Large => r#""Network":"10.0.0.0/8","SubnetLen":24"#,
    };
    let backend = match backend {
        Backend::Vxlan => "vxlan",
        Backend::Udp => "udp",
        Backend::Wireguard => "wireguard",
    };
    format!(r#"{{{network},"Backend":{{"Type":"{backend}"}}}}"#)
}

fn pod_network(text: &str) -> Option<PodNetwork> {
    let recorded = subnet_env::parse(text);
    Some(PodNetwork { ipv4: Some(recorded.subnet()?), ipv6: None, mtu: recorded.mtu? })
}

fn name(host: &Host) -> String {
    format!("h{}", host.number())
}

/// Returns the path of the shared store.
pub(super) fn store_file(place: &Path) -> PathBuf {
    place.join("leases.db")
}

/// Returns the directory in which `loden status` finds the daemons.
pub(super) fn run_directory(place: &Path) -> PathBuf {
    place.join("run")
}

fn subnet_file(host: &Host, place: &Path) -> PathBuf {
    place.join(format!("{}.subnet.env", name(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_configuration_is_in_flannels_json() {
        let udp = net_config((Backend::Udp, Network::Ordinary));
        assert_eq!(udp, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#);
        let vxlan = net_config((Backend::Vxlan, Network::Large));
        let vxlan: serde_json::Value = serde_json::from_str(&vxlan).unwrap();
        assert_eq!((&vxlan["Backend"]["Type"], &vxlan["SubnetLen"]), (&"vxlan".into(), &24.into()));
    }

    #[test]
    fn a_subnet_file_becomes_a_pod_network() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let network = pod_network(text).unwrap();
        assert_eq!(network.ipv4.unwrap().network().to_string(), "10.5.34.0");
        assert_eq!(network.mtu, 1450);
        assert!(pod_network("FLANNEL_MTU=1450\n").is_none());
        assert!(pod_network("").is_none());
    }
}
