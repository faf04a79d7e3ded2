//! Hosts with daemons of either kind, and their etcd.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::Wiring;
use nix::sys::signal::Signal;
use store::testing::etcd::{Security, Server};

use crate::common::{self, Cluster, Daemon, await_until, stock};

pub(super) const PREFIX: &str = "/coreos.com/network";
/// IPv4 only.
pub(super) const HOST_GW_V4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
/// Both families.
pub(super) const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}"#;

/// Where both kinds answer probes.
const PROBES: &str = "10256";

/// The kinds of daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Loden,
    Stock,
}

/// Returns whether a test of this suite can run.
pub(super) fn ready() -> bool {
    let needs = common::needs(&["etcd", "etcdctl", "setpriv", "nsenter", "bash", "bridge", "iptables"]);
    stock::needs(needs.and("the kernel's vxlan", common::has_vxlan())).are_met()
}

/// A cluster on one etcd, which runs on the first host.
pub(super) struct World {
    pub(super) daemons: BTreeMap<usize, Daemon>,
    pub(super) etcd: Server,
    pub(super) cluster: Cluster,
}

impl World {
    /// Builds hosts without daemons, and an etcd with the configuration.
    pub(super) fn new(name: &str, hosts: usize, config: &str) -> World {
        let cluster = Cluster::build(name, hosts, Wiring::Switch, config);
        let first = cluster.host(1);
        let etcd = Server::start_in(Security::None, first.namespace().path(), first.underlay());
        let world = World { daemons: BTreeMap::new(), etcd, cluster };
        world.configure(config);
        world
    }

    /// Starts these kinds on the hosts from the first one on, and connects a pod to each.
    pub(super) fn with(name: &str, kinds: &[Kind], config: &str) -> World {
        let mut world = World::new(name, kinds.len(), config);
        for (kind, host) in kinds.iter().zip(1..) {
            world.start(host, *kind);
            world.cluster.connect_pod(host);
        }
        world
    }

    pub(super) fn configure(&self, config: &str) {
        self.etcd.etcdctl(&["put", &format!("{PREFIX}/config"), config]);
    }

    /// Returns the command of a daemon.
    pub(super) fn command(&self, host: usize, kind: Kind) -> Command {
        let endpoint = self.etcd.endpoint();
        let mut command = match kind {
            Kind::Loden => self.cluster.etcd_command(host, &endpoint),
            Kind::Stock => stock::command(&self.cluster, host, &endpoint),
        };
        command.args(["--healthz-ip", "127.0.0.1", "--healthz-port", PROBES]);
        command
    }

    /// Starts a daemon and waits until it is ready.
    pub(super) fn start(&mut self, host: usize, kind: Kind) {
        let mut command = self.command(host, kind);
        self.start_command(host, &mut command);
    }

    pub(super) fn start_command(&mut self, host: usize, command: &mut Command) {
        self.spawn(host, command);
        self.await_ready(host);
    }

    /// Starts a daemon and does not wait.
    pub(super) fn spawn(&mut self, host: usize, command: &mut Command) {
        let daemon = self.cluster.spawn(host, command);
        self.daemons.insert(host, daemon);
    }

    /// Waits until the daemon of a host answers that it is ready.
    pub(super) fn await_ready(&mut self, host: usize) {
        let daemon = self.daemons.get_mut(&host).expect("a daemon");
        await_until("readiness", || {
            assert!(daemon.is_running(), "the daemon of host {host} ended:\n{}", daemon.log_text());
            common::get(&self.cluster, host, PROBES, "/readyz").is_some_and(|(code, _)| code == "200")
        });
    }

    /// Sends a signal to the daemon of a host and waits for its end.
    pub(super) fn end(&mut self, host: usize, signal: Signal) {
        self.daemons.remove(&host).expect("a daemon").end(signal);
    }

    /// Returns the value of each key below `subnets`, with the public address as its owner.
    pub(super) fn published(&self) -> BTreeMap<String, String> {
        let text = self.etcd.etcdctl(&["get", "--prefix", &format!("{PREFIX}/subnets/")]);
        let lines: Vec<&str> = text.lines().collect();
        lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
    }

    /// Returns the key and the value that a host publishes.
    pub(super) fn lease(&self, host: usize) -> (String, String) {
        let own = format!(r#"{{"PublicIP":"{}","#, self.cluster.host(host).underlay());
        let leases: Vec<_> =
            self.published().into_iter().filter(|(_, value)| value.starts_with(&own)).collect();
        let [lease] = leases.as_slice() else { panic!("host {host} publishes {leases:?}") };
        lease.clone()
    }

    /// Returns the identity of the etcd lease that a host's key has.
    pub(super) fn etcd_lease(&self, host: usize) -> String {
        let answer = self.etcd.etcdctl(&["get", "--write-out=json", &self.lease(host).0]);
        let json: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        json["kvs"][0]["lease"].to_string()
    }

    /// Returns the subnet file of a host.
    pub(super) fn subnet_env(&self, host: usize) -> String {
        fs::read_to_string(self.cluster.file(&format!("host{host}.env"))).expect("a subnet file")
    }

    /// Waits until the pod of one host reaches the pod of another.
    pub(super) fn await_path(&self, from: usize, to: usize, ipv6: bool) {
        let (pod, address) = (self.cluster.host(from).pod(), self.cluster.pod(to, ipv6));
        await_until("a path", || pod.ping(address, 56, Duration::from_millis(200)).is_ok());
    }

    /// Waits for paths between all pods in both directions.
    pub(super) fn await_paths(&self, ipv6: bool) {
        let hosts: Vec<usize> = self.daemons.keys().copied().collect();
        for from in &hosts {
            for to in hosts.iter().filter(|to| *to != from) {
                self.await_path(*from, *to, ipv6);
            }
        }
    }

    /// Returns the device by which a host's own packets leave for the pod of another host.
    pub(super) fn device_to(&self, from: usize, to: usize, ipv6: bool) -> String {
        let route = self.cluster.shell(from, &format!("ip route get {}", self.cluster.pod(to, ipv6)));
        route.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a device").to_owned()
    }
}

/// Returns the link addresses in what a host publishes, IPv4 first.
pub(super) fn macs(value: &str) -> Vec<&str> {
    value.split(r#""VtepMAC":""#).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}
