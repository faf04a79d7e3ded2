//! `loden run` as nodes of a cluster on a real etcd, which comes late, crashes and forgets.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::{Command, Stdio};

use common::{Cluster, Daemon, VXLAN, await_until, ping};
use lab::{Process, Wiring};

#[test]
fn nodes_join_and_outlive_their_etcd() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("etcd", 2, Wiring::Switch, VXLAN);
    // Before etcd is there, and before there is a configuration: it waits and says why.
    let mut first = start(&cluster, 1);
    await_until("the complaint", || first.said("waiting for the lease store: etcd: cannot read"));
    let etcd = start_etcd(&cluster);
    await_until("the other complaint", || first.said("no network configuration in the store"));
    etcdctl(&cluster, &format!("put /coreos.com/network/config '{VXLAN}'"));
    first.await_ready();
    let mut second = start(&cluster, 2);
    second.await_ready();
    for number in [1, 2] {
        cluster.connect_pod(number);
        cluster.await_routes(number, 1);
    }
    ping(&cluster, 1, 2, false);
    let keys = subnets(&cluster);
    assert_eq!(keys.len(), 2, "{keys:?}");

    // Without etcd traffic goes on; when it is back, so do leases.
    drop(etcd);
    await_until("the watch's complaint", || second.said("watching leases: etcd"));
    ping(&cluster, 2, 1, false);
    let _etcd = start_etcd(&cluster);
    await_until("the watch", || second.said("lease store: readable again"));
    assert_eq!(subnets(&cluster), keys);

    // A lease that is taken away is taken again, and the peer follows.
    etcdctl(&cluster, &format!("del {}", keys[0]));
    await_until("the same key", || subnets(&cluster) == keys);
    for number in [1, 2] {
        cluster.await_routes(number, 1);
    }
    ping(&cluster, 1, 2, false);
    assert!(first.is_running() && second.is_running());
}

fn start(cluster: &Cluster, number: usize) -> Daemon {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    let iface = cluster.host(number).uplink();
    command.args(["run", "--iface", iface, "--etcd-endpoints", &endpoint(cluster), "--subnet-file"]);
    command.arg(cluster.file(&format!("host{number}.env"))).stdout(Stdio::null());
    command.arg("--run-dir").arg(cluster.file("run"));
    cluster.spawn(number, &mut command)
}

/// On the first host, for all.
fn start_etcd(cluster: &Cluster) -> Process {
    let mut command = Command::new("etcd");
    command.args(["--listen-client-urls", &endpoint(cluster), "--advertise-client-urls", &endpoint(cluster)]);
    command.args(["--log-level", "error", "--data-dir"]).arg(cluster.file("etcd")).stdout(Stdio::null());
    let process = Process::spawn(cluster.host(1).namespace(), &mut command).expect("etcd");
    let health = format!(
        "etcdctl --endpoints {} endpoint health >/dev/null 2>&1 && echo up || true",
        endpoint(cluster)
    );
    await_until("etcd", || cluster.shell(1, &health) == "up");
    process
}

fn endpoint(cluster: &Cluster) -> String {
    format!("http://{}:2379", cluster.host(1).underlay())
}

fn etcdctl(cluster: &Cluster, line: &str) -> String {
    cluster.shell(1, &format!("ETCDCTL_API=3 etcdctl --endpoints {} {line}", endpoint(cluster)))
}

/// The keys of all leases.
fn subnets(cluster: &Cluster) -> Vec<String> {
    let keys = etcdctl(cluster, "get --prefix --keys-only /coreos.com/network/subnets/");
    keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
