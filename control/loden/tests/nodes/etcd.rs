//! Nodes of a cluster on a real etcd, which starts late, crashes and loses data.

use std::process::{Command, Stdio};

use lab::{Process, Wiring};
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, Daemon, VXLAN, await_until, ping};

#[test]
fn nodes_join_and_outlive_their_etcd() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("etcd", 2, Wiring::Switch, VXLAN);
    // Without etcd, then without a configuration: the daemon waits and logs why.
    let mut first = start(&cluster, 1);
    await_until("the complaint", || first.logged("waiting for the lease store: etcd: cannot read"));
    let etcd = start_etcd(&cluster);
    await_until("the other complaint", || first.logged("no network configuration in the store"));
    // An invalid configuration does not end it either, whether flannel would wait or not: the operator can
    // correct it.
    for (config, why) in [
        ("{\"Network\":", "not a JSON object"),
        ("{}", "Network = (absent)"),
        (r#"{"Network":"10.244.0.0/16","EnableIPv4":false}"#, "no address family would be left"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlna"}}"#, "Backend.Type = \"vxlna\""),
    ] {
        etcdctl(&cluster, &format!("put /coreos.com/network/config '{config}'"));
        let said = || first.log_text().lines().any(|line| line.contains("waiting for") && line.contains(why));
        await_until(why, said);
        assert!(first.is_running());
    }
    etcdctl(&cluster, &format!("put /coreos.com/network/config '{VXLAN}'"));
    let mut second = join(&mut cluster, &mut first);
    let keys = subnets(&cluster);
    assert_eq!(keys.len(), 2, "{keys:?}");

    // Traffic continues without etcd, and leases when etcd is back.
    drop(etcd);
    await_until("the watch's complaint", || second.logged("watching leases: etcd"));
    ping(&cluster, 2, 1, false);
    let _etcd = start_etcd(&cluster);
    await_until("the watch", || second.logged("lease store: readable again"));
    assert_eq!(subnets(&cluster), keys);

    // A deleted lease is acquired again, and the peer follows.
    etcdctl(&cluster, &format!("del {}", keys[0]));
    await_until("the same key", || subnets(&cluster) == keys);
    // A lease that comes after it: once its route exists, the nodes have seen the others go and come.
    let last = r#"{"PublicIP":"198.18.0.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;
    etcdctl(&cluster, &format!("put /coreos.com/network/subnets/10.244.250.0-24 '{last}'"));
    for number in [1, 2] {
        cluster.await_routes(number, 2);
    }
    ping(&cluster, 1, 2, false);
    assert!(first.is_running() && second.is_running());
}

/// Restarts a daemon after a crash and after a stop while etcd is down, then brings etcd back with other
/// data.
#[test]
fn a_restart_forwards_from_memory_before_etcd_answers() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("etcd-mem", 2, Wiring::Switch, VXLAN);
    let etcd = start_etcd(&cluster);
    etcdctl(&cluster, &format!("put /coreos.com/network/config '{VXLAN}'"));
    let mut first = start(&cluster, 1);
    let _second = join(&mut cluster, &mut first);
    // The first daemon has recorded its peer, which it does every ten seconds.
    await_until("the record", || state(&cluster, 1).contains("198.18.0.2"));
    let values = etcdctl(&cluster, "get --prefix /coreos.com/network/subnets/");
    let keys = subnets(&cluster);
    drop(etcd);

    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        first.end(signal);
        first = start(&cluster, 1);
        await_until("forwarding", || first.logged("forwarding from memory"));
        first.await_ready();
        ping(&cluster, 1, 2, false);
        ping(&cluster, 2, 1, false);
        assert!(!first.logged("the store has confirmed"), "{}", first.log_text());
    }
    let status = cluster.shell(1, &format!("{LODEN} status --run-dir {}", cluster.file("run").display()));
    assert!(status.contains("from memory, not yet confirmed by the store"), "{status}");
    assert!(status.contains("leases unreadable for"), "{status}");

    let etcd = start_etcd(&cluster);
    await_until("the store's word", || first.logged("the store has confirmed the remembered lease"));
    assert_eq!(etcdctl(&cluster, "get --prefix /coreos.com/network/subnets/"), values);
    ping(&cluster, 1, 2, false);

    // While the daemon is down its subnet goes to another node: it starts again with another one.
    first.end(Signal::SIGTERM);
    let own = keys.iter().find(|key| values.contains(&format!("{key}\n{{\"PublicIP\":\"198.18.0.1\"")));
    let own = own.expect("its key").clone();
    etcdctl(
        &cluster,
        &format!(
            "put {own} '{}'",
            r#"{"PublicIP":"198.18.0.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#
        ),
    );
    first = start(&cluster, 1);
    await_until("another subnet", || {
        first.logged("the store gave us another subnet; restarting from the store")
    });
    await_until("a lease", || subnets(&cluster).len() == 3);
    // What it remembered was wrong, so it was not ready with it.
    await_until("readiness", || first.log_text().matches("ready lease=").count() == 1);
    cluster.await_routes(1, 2);

    // With another configuration the old device is removed.
    first.end(Signal::SIGKILL);
    etcdctl(
        &cluster,
        &format!("put /coreos.com/network/config '{}'", VXLAN.replace("vxlan\"", "vxlan\",\"VNI\":7")),
    );
    first = start(&cluster, 1);
    await_until("the other device", || cluster.shell(1, "ip -o link").contains("flannel.7"));
    await_until("the end of the first", || !cluster.shell(1, "ip -o link").contains("flannel.1:"));
    assert!(first.logged("the network configuration has changed since the last run"), "{}", first.log_text());
    drop(etcd);
}

const LODEN: &str = env!("CARGO_BIN_EXE_loden");
/// The defaults of `etcdctl` are 2 s and 5 s, which a busy machine can exceed.
pub(super) const ETCD_PATIENCE: &str = "--dial-timeout 60s --command-timeout 60s";

/// Returns the state file of a host's daemon.
fn state(cluster: &Cluster, number: usize) -> String {
    let files = std::fs::read_dir(cluster.file("run")).into_iter().flatten().flatten();
    let texts = files.filter(|file| file.path().extension().is_some_and(|end| end == "json"));
    let mut texts = texts.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let own = format!("host{number}.env");
    texts.find(|text| text.contains(&own)).unwrap_or_default()
}

pub(super) fn start(cluster: &Cluster, number: usize) -> Daemon {
    cluster.spawn(number, &mut cluster.etcd_command(number, &endpoint(cluster)))
}

/// Waits for the first daemon, starts the second, and connects a pod to each.
pub(super) fn join(cluster: &mut Cluster, first: &mut Daemon) -> Daemon {
    first.await_ready();
    let mut second = start(cluster, 2);
    second.await_ready();
    for number in [1, 2] {
        cluster.connect_pod(number);
        cluster.await_routes(number, 1);
    }
    ping(cluster, 1, 2, false);
    second
}

/// Starts etcd on the first host.
pub(super) fn start_etcd(cluster: &Cluster) -> Process {
    let mut command = Command::new("etcd");
    command.args(["--listen-client-urls", &endpoint(cluster), "--advertise-client-urls", &endpoint(cluster)]);
    command.args(["--log-level", "error", "--data-dir"]).arg(cluster.file("etcd")).stdout(Stdio::null());
    let process = Process::spawn(cluster.host(1).namespace(), &mut command).expect("etcd");
    let health = format!(
        "etcdctl {ETCD_PATIENCE} --endpoints {} endpoint health >/dev/null 2>&1 && echo up || true",
        endpoint(cluster)
    );
    await_until("etcd", || cluster.shell(1, &health) == "up");
    process
}

pub(super) fn endpoint(cluster: &Cluster) -> String {
    format!("http://{}:2379", cluster.host(1).underlay())
}

pub(super) fn etcdctl(cluster: &Cluster, line: &str) -> String {
    let endpoint = endpoint(cluster);
    cluster.shell(1, &format!("ETCDCTL_API=3 etcdctl {ETCD_PATIENCE} --endpoints {endpoint} {line}"))
}

/// Returns the keys of all leases.
pub(super) fn subnets(cluster: &Cluster) -> Vec<String> {
    let keys = etcdctl(cluster, "get --prefix --keys-only /coreos.com/network/subnets/");
    keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
