//! Stores that are wiped, restored, changed, locked or replaced: traffic between nodes that live goes on, and
//! no two of them hold one subnet.

use std::fs;
use std::os::unix::fs::MetadataExt;

use lab::Wiring;
use nix::sys::signal::Signal;

use super::etcd::{etcdctl, join, start, start_etcd, subnets};
use crate::common::steady::Steady;
use crate::common::{self, Cluster, Daemon, VXLAN, await_until, ping};

/// Two daemons on the cluster's sqlite file, each with a pod.
fn pair(cluster: &mut Cluster) -> [Daemon; 2] {
    let daemons = [cluster.start(1, &[]), cluster.start(2, &[])];
    for number in [1, 2] {
        cluster.connect_pod(number);
        cluster.await_routes(number, 1);
    }
    ping(cluster, 1, 2, false);
    daemons
}

fn routes(cluster: &Cluster, number: usize) -> usize {
    cluster.shell(number, "ip route show dev flannel.1").lines().count()
}

fn set_config(cluster: &Cluster) {
    etcdctl(cluster, &format!("put /coreos.com/network/config '{VXLAN}'"));
}

/// The subnet in a host's subnet file.
fn subnet(cluster: &Cluster, number: usize) -> String {
    let text = fs::read_to_string(cluster.file(&format!("host{number}.env"))).expect("a subnet file");
    model::subnet_env::parse(&text).subnet().expect("a subnet").to_string()
}

/// Flows between the pods of the first two hosts.
struct Flows<'a> {
    cluster: &'a Cluster,
    flows: Vec<Steady>,
    /// The packets that were unread before.
    unread: u64,
}

impl Flows<'_> {
    fn start<'a>(cluster: &'a Cluster, ways: &[(usize, usize)]) -> Flows<'a> {
        let unread = cluster.unread(1) + cluster.unread(2);
        let flows = ways.iter().map(|(from, to)| Steady::start(cluster, *from, *to)).collect();
        Flows { cluster, flows, unread }
    }

    /// Nothing is lost but what the kernel has counted: on a machine that is busy with a starting etcd its
    /// queues may fill before a worker has its turn. A peer that is taken away, even for as long as its lease
    /// takes to come back, costs hundreds of datagrams, which no queue counts.
    fn assert_unbroken(self) {
        let outcomes: Vec<_> = self.flows.into_iter().map(Steady::finish).collect();
        let lost: usize = outcomes.iter().map(|outcome| outcome.lost.len()).sum();
        let unread = self.cluster.unread(1) + self.cluster.unread(2) - self.unread;
        assert!(lost as u64 <= unread, "{unread} unread, {outcomes:?}");
        assert!(outcomes.iter().all(|outcome| outcome.sent > 50), "{outcomes:?}");
    }
}

fn remove_sqlite(cluster: &Cluster) {
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", cluster.store().display()));
    }
}

/// Stock flannel forwards on while its etcd is empty, and so must a node that was restarted meanwhile.
#[test]
fn a_restart_while_the_store_is_empty_takes_no_peer_away() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("flt-empty", 2, Wiring::Switch, VXLAN);
    let etcd = start_etcd(&cluster);
    set_config(&cluster);
    let mut first = start(&cluster, 1);
    let mut second = join(&mut cluster, &mut first);
    let keys = subnets(&cluster);
    first.end(Signal::SIGTERM);
    drop(etcd);
    fs::remove_dir_all(cluster.file("etcd")).expect("etcd's data");
    let etcd = start_etcd(&cluster);
    first = start(&cluster, 1);
    await_until("the store's word", || first.logged("no network configuration in the store"));
    assert!(first.logged("forwarding from memory"), "{}", first.log_text());
    let flows = Flows::start(&cluster, &[(1, 2)]);
    let status = |what: &str| {
        let place = cluster.file("run");
        let line = format!("{} status --run-dir {}", env!("CARGO_BIN_EXE_loden"), place.display());
        cluster.shell(1, &line).contains(what)
    };
    assert!(status("leases unreadable for"), "blindness is shown");
    assert_eq!(routes(&cluster, 1), 1);
    set_config(&cluster);
    await_until("the store's word", || first.logged("the store has confirmed the remembered lease"));
    await_until("both leases", || subnets(&cluster) == keys);
    await_until("sight", || !status("leases unreadable for"));
    assert_eq!([routes(&cluster, 1), routes(&cluster, 2)], [1, 1]);
    flows.assert_unbroken();
    assert!(first.is_running() && second.is_running());
    drop(etcd);
}

/// etcd counts its revisions again from the start, or from the backup: a watch of those to come would be
/// deaf.
#[test]
fn a_wiped_etcd_and_a_restored_one_get_the_leases_back_under_traffic() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("flt-wipe", 3, Wiring::Switch, VXLAN);
    let mut etcd = start_etcd(&cluster);
    set_config(&cluster);
    let mut first = start(&cluster, 1);
    // Before the second node has a lease.
    first.await_ready();
    let data = cluster.file("etcd").display().to_string();
    cluster.shell(1, &format!("cp -a {data} {data}.old"));
    let mut second = join(&mut cluster, &mut first);
    // More than the wiped cluster will soon have.
    (0..20).for_each(|_| set_config(&cluster));
    let keys = subnets(&cluster);
    let flows = Flows::start(&cluster, &[(1, 2), (2, 1)]);
    for restored in [false, true] {
        drop(etcd);
        fs::remove_dir_all(&data).expect("etcd's data");
        if restored {
            cluster.shell(1, &format!("cp -a {data}.old {data}"));
        }
        etcd = start_etcd(&cluster);
        await_until("both leases", || subnets(&cluster) == keys);
        for daemon in [&mut first, &mut second] {
            assert!(daemon.is_running(), "{}", daemon.log_text());
        }
    }
    for daemon in [&first, &second] {
        assert!(daemon.logged("it was wiped or restored"), "{}", daemon.log_text());
    }
    flows.assert_unbroken();
    // Both see what comes now, and no subnet is given twice.
    set_config(&cluster);
    let mut third = start(&cluster, 3);
    third.await_ready();
    [1, 2, 3].iter().for_each(|number| cluster.await_routes(*number, 2));
    assert_eq!(subnets(&cluster).len(), 3);
    drop(etcd);
}

/// An administrator removes all leases; each node takes its own again.
#[test]
fn leases_that_are_removed_by_hand_come_back_under_traffic() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("flt-hand", 2, Wiring::Switch, VXLAN);
    let etcd = start_etcd(&cluster);
    set_config(&cluster);
    let mut first = start(&cluster, 1);
    let mut second = join(&mut cluster, &mut first);
    let keys = subnets(&cluster);
    let flows = Flows::start(&cluster, &[(1, 2)]);
    for _ in 0..3 {
        etcdctl(&cluster, "del --prefix /coreos.com/network");
        set_config(&cluster);
        await_until("both leases", || subnets(&cluster) == keys);
    }
    flows.assert_unbroken();
    assert!(first.is_running() && second.is_running());
    drop(etcd);
}

#[test]
fn a_removed_sqlite_file_and_a_replaced_one_get_the_leases_back_under_traffic() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-file", 2, Wiring::Switch, VXLAN);
    let mut daemons = pair(&mut cluster);
    let leases = |cluster: &Cluster| cluster.leases().iter().map(|lease| lease.key).collect::<Vec<_>>();
    let keys = leases(&cluster);
    let copy = cluster.file("backup.db");
    let backup = rusqlite::Connection::open(cluster.store()).expect("the store");
    backup.execute("VACUUM INTO ?1", [copy.to_str().expect("a path")]).expect("a backup");
    backup.close().expect("closed");
    let flows = Flows::start(&cluster, &[(1, 2), (2, 1)]);
    // Replaced by a file that knows the nodes, and after that by none, which the daemons create again.
    fs::rename(&copy, cluster.store()).expect("the backup");
    for daemon in &daemons {
        await_until("the notice", || daemon.logged("it was wiped or restored"));
    }
    await_until("both leases", || leases(&cluster) == keys);
    remove_sqlite(&cluster);
    await_until("the file", || cluster.store().exists());
    await_until("both leases", || leases(&cluster) == keys);
    flows.assert_unbroken();
    for (daemon, number) in daemons.iter_mut().zip(1..) {
        assert!(daemon.is_running(), "{}", daemon.log_text());
        assert_eq!(routes(&cluster, number), 1);
    }
}

/// A daemon that has not noticed yet that the file was replaced finds another one at work on the new file,
/// with the log that lies beside it.
#[test]
fn a_log_that_another_daemon_uses_stays() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-log", 2, Wiring::Switch, VXLAN);
    let mut first = cluster.start(1, &[]);
    first.process.signal(Signal::SIGSTOP).expect("a signal");
    let copy = cluster.file("copy.db");
    fs::copy(cluster.store(), &copy).expect("a copy");
    fs::rename(&copy, cluster.store()).expect("the copy");
    let mut second = cluster.start(2, &[]);
    let log = std::path::PathBuf::from(format!("{}-wal", cluster.store().display()));
    let before = fs::metadata(&log).expect("a log").ino();
    first.process.signal(Signal::SIGCONT).expect("a signal");
    await_until("the notice", || first.logged("it was wiped or restored"));
    [1, 2].iter().for_each(|number| cluster.await_routes(*number, 1));
    assert_eq!(fs::metadata(&log).expect("a log").ino(), before);
    assert_eq!(cluster.leases().len(), 2);
    [1, 2].iter().for_each(|number| cluster.connect_pod(*number));
    ping(&cluster, 1, 2, false);
    assert!(first.is_running() && second.is_running());
}

/// What is remembered belongs to the store that it is from.
#[test]
fn another_store_is_not_answered_for_by_the_memory_of_the_former() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-other", 2, Wiring::Switch, VXLAN);
    let mut daemons = pair(&mut cluster);
    let before = subnet(&cluster, 1);
    // An empty file: a network of its own, without the other node.
    daemons[0].end(Signal::SIGTERM);
    let empty = format!("sqlite:{}", cluster.file("other.db").display());
    let mut command = cluster.command(1);
    common::replace(&mut command, "--store", &empty);
    daemons[0] = cluster.spawn(1, &mut command);
    daemons[0].await_ready();
    assert!(!daemons[0].logged("forwarding from memory"), "{}", daemons[0].log_text());
    cluster.await_routes(1, 0);
    assert_eq!(subnet(&cluster, 1), before, "the subnet is free there as well");
    // An etcd that nobody runs.
    daemons[0].end(Signal::SIGKILL);
    let mut command = cluster.etcd_command(1, "http://127.0.0.1:1");
    common::replace(&mut command, "--run-dir", &cluster.place.path().display().to_string());
    daemons[0] = cluster.spawn(1, &mut command);
    await_until("the complaint", || daemons[0].logged("waiting for the lease store"));
    assert!(!daemons[0].logged("forwarding from memory") && !daemons[0].logged("ready lease="));
    // And back.
    daemons[0].end(Signal::SIGTERM);
    daemons[0] = cluster.start(1, &[]);
    assert_eq!(subnet(&cluster, 1), before);
    cluster.await_routes(1, 1);
    ping(&cluster, 1, 2, false);
}

/// The file is locked, no database or away, and the pods of a node that restarts do not care.
#[test]
fn a_restart_does_not_depend_on_a_sqlite_file_that_can_be_used() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-lock", 2, Wiring::Switch, VXLAN);
    let mut daemons = pair(&mut cluster);
    let restart = |daemons: &mut [Daemon; 2], signal, cluster: &Cluster| {
        daemons[0].end(signal);
        daemons[0] = cluster.start(1, &[]);
        assert!(daemons[0].logged("forwarding from memory"), "{}", daemons[0].log_text());
        ping(cluster, 1, 2, false);
        ping(cluster, 2, 1, false);
    };
    let confirmed = |daemon: &Daemon| {
        await_until("the store's word", || daemon.logged("the store has confirmed the remembered lease"));
    };
    let holder = rusqlite::Connection::open(cluster.store()).expect("the store");
    holder.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    restart(&mut daemons, Signal::SIGTERM, &cluster);
    await_until("the complaint", || daemons[0].logged("another process held its lock"));
    assert!(daemons[0].is_running());
    holder.execute_batch("ROLLBACK").expect("the lock");
    drop(holder);
    confirmed(&daemons[0]);

    let aside = cluster.file("aside.db");
    fs::rename(cluster.store(), &aside).expect("the file");
    fs::write(cluster.store(), "no database").expect("another file");
    restart(&mut daemons, Signal::SIGKILL, &cluster);
    await_until("the complaint", || daemons[0].logged("not a sqlite database"));
    assert!(daemons[0].is_running() && daemons[1].is_running());
    fs::rename(&aside, cluster.store()).expect("the file");
    confirmed(&daemons[0]);
    ping(&cluster, 1, 2, false);
    assert_eq!(cluster.leases().len(), 2);
}

/// The state file knows that the lease at the former address is ours.
#[test]
fn a_restart_with_another_address_keeps_the_subnet_and_leaves_no_ghost() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-move", 2, Wiring::Switch, VXLAN);
    let mut daemons = pair(&mut cluster);
    let before = cluster.lease(1);
    daemons[0].end(Signal::SIGTERM);
    let uplink = cluster.host(1).uplink().to_owned();
    cluster.shell(1, &format!("ip -4 addr flush dev {uplink}; ip addr add 198.18.0.101/24 dev {uplink}"));
    daemons[0] = cluster.start(1, &[]);
    let leases = cluster.leases();
    let own = leases.iter().find(|lease| lease.key == before.key).expect("the same subnet");
    assert_eq!((leases.len(), own.attrs.public_ip.octets()), (2, [198, 18, 0, 101]));
    ping(&cluster, 1, 2, false);
    ping(&cluster, 2, 1, false);
    assert!(daemons[1].is_running());
}

/// Stock flannel ran in between and has moved the node; the store is silent at our next start.
#[test]
fn a_subnet_file_of_another_program_is_newer_than_the_memory() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let mut cluster = Cluster::build("flt-stock", 2, Wiring::Switch, VXLAN);
    let mut etcd = start_etcd(&cluster);
    set_config(&cluster);
    let mut first = start(&cluster, 1);
    let _second = join(&mut cluster, &mut first);
    first.end(Signal::SIGTERM);
    let (file, former) = (cluster.file("host1.env"), subnet(&cluster, 1));
    let key = format!("/coreos.com/network/subnets/{}", former.replace('/', "-"));
    let moved = "10.244.250.0/24";
    let stored = etcdctl(&cluster, &format!("get --print-value-only {key}"));
    etcdctl(&cluster, &format!("del {key}"));
    etcdctl(&cluster, &format!("put /coreos.com/network/subnets/10.244.250.0-24 '{stored}'"));
    let ours = fs::read_to_string(&file).expect("a subnet file");
    let text = ours.replace(former.strip_suffix(".0/24").expect("a subnet"), "10.244.250");
    fs::write(&file, &text).expect("a subnet file");
    drop(etcd);
    first = start(&cluster, 1);
    await_until("the complaint", || first.logged("waiting for the lease store"));
    assert!(!first.logged("forwarding from memory") && !first.logged("ready lease="), "{}", first.log_text());
    assert_eq!(fs::read_to_string(&file).expect("a subnet file"), text);
    etcd = start_etcd(&cluster);
    first.await_ready();
    assert_eq!(subnet(&cluster, 1), moved);
    drop(etcd);
}

/// A pod's run directory is new at each start.
#[test]
fn a_lost_run_directory_costs_neither_the_link_address_nor_leaves_a_device_of_another_backend() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-run", 2, Wiring::Switch, VXLAN);
    let mut daemons = pair(&mut cluster);
    let before = cluster.lease(1);
    let lose = |cluster: &Cluster| {
        for file in fs::read_dir(cluster.place.path()).expect("files").flatten() {
            if file.file_name().to_string_lossy().starts_with("host1-") {
                fs::remove_file(file.path()).expect("a file");
            }
        }
    };
    daemons[0].end(Signal::SIGTERM);
    lose(&cluster);
    daemons[0] = cluster.start(1, &[]);
    assert_eq!((cluster.lease(1).key, cluster.lease(1).attrs), (before.key, before.attrs));
    for daemon in &mut daemons {
        daemon.end(Signal::SIGTERM);
    }
    lose(&cluster);
    cluster.config = common::UDP.to_owned();
    let daemons = [cluster.start(1, &[]), cluster.start(2, &[])];
    let links = cluster.shell(1, "ip -o link");
    assert!(links.contains("flannel0") && !links.contains("flannel.1"), "{links}");
    ping(&cluster, 1, 2, false);
    ping(&cluster, 2, 1, false);
    drop(daemons);
}

#[test]
fn a_node_is_not_ready_with_a_configuration_that_the_store_no_longer_has() {
    if !common::ready(&["etcd", "etcdctl"]) {
        return;
    }
    let cluster = Cluster::build("flt-conf", 1, Wiring::Switch, VXLAN);
    let etcd = start_etcd(&cluster);
    set_config(&cluster);
    let mut daemon = start(&cluster, 1);
    daemon.await_ready();
    daemon.end(Signal::SIGTERM);
    let other = VXLAN.replace("vxlan\"", "vxlan\",\"VNI\":7");
    etcdctl(&cluster, &format!("put /coreos.com/network/config '{other}'"));
    daemon = start(&cluster, 1);
    daemon.await_ready();
    let log = daemon.log_text();
    let changed = log.find("the network configuration has changed since the last run").expect("noticed");
    assert!(log.contains("forwarding from memory") && log.find("ready lease=") > Some(changed), "{log}");
    assert_eq!(log.matches("ready lease=").count(), 1, "{log}");
    drop(etcd);
}

/// Under a supervisor, two daemons with one address would take the lease from each other without end.
#[test]
fn a_daemon_that_was_evicted_by_its_twin_leaves_it_the_lease_for_a_while() {
    if !common::ready(&[]) {
        return;
    }
    let cluster = Cluster::build("flt-twin", 2, Wiring::Switch, VXLAN);
    let same = ["--public-ip", "198.18.0.9"];
    let mut first = cluster.start(1, &same);
    let mut second = cluster.start(2, &same);
    assert_eq!(first.await_end().code(), Some(1));
    assert!(first.logged("another daemon publishes the same address"), "{}", first.log_text());
    first = cluster.spawn(1, cluster.command(1).args(same));
    await_until("the wait", || first.logged("s before taking it back"));
    assert!(!first.logged("forwarding from memory") && !first.logged("ready lease="), "{}", first.log_text());
    assert!(second.is_running() && first.is_running());
    first.end(Signal::SIGTERM);
    // The wait is over only when its time is, or when nothing is contested any more.
    first = cluster.spawn(1, cluster.command(1).args(same));
    await_until("the wait", || first.logged("s before taking it back"));
    assert!(second.is_running());
    first.end(Signal::SIGTERM);
    let mut first = cluster.start(1, &["--public-ip", "198.18.0.10"]);
    assert!(!first.logged("s before taking it back"), "{}", first.log_text());
    let leases = cluster.leases();
    assert!(leases.len() == 2 && second.is_running(), "{leases:?}");
    first.end(Signal::SIGTERM);
    // The other one is given another address, and keeps its subnet.
    evicted_often(&cluster);
    first = cluster.spawn(1, cluster.command(1).args(same));
    await_until("the wait", || first.logged("s before taking it back"));
    second.end(Signal::SIGTERM);
    second = cluster.start(2, &["--public-ip", "198.18.0.11"]);
    first.await_ready();
    assert!(first.logged("no other daemon publishes our address any more"), "{}", first.log_text());
    assert!(second.is_running());
}

/// Makes the first host's memory one of ten evictions in a row, of which the last has just been.
fn evicted_often(cluster: &Cluster) {
    let files = fs::read_dir(cluster.place.path()).expect("files").flatten().map(|file| file.path());
    let is_state = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("host1-") && name.ends_with(".json")
    };
    let path = files.into_iter().find(is_state).expect("a state file");
    let text = fs::read_to_string(&path).expect("a state");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    assert_eq!(state["evicted"]["address"], "198.18.0.9", "{state}");
    state["evicted"]["times"] = 10.into();
    state["evicted"]["at"] = now.as_secs().into();
    fs::write(&path, state.to_string()).expect("a state");
}

/// A host with an address from DHCP becomes the master of a keepalived group.
#[test]
fn a_virtual_address_on_the_uplink_is_never_published() {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build("flt-vip", 2, Wiring::Switch, VXLAN);
    let uplink = cluster.host(1).uplink().to_owned();
    let dynamic = format!("ip addr change 198.18.0.1/24 dev {uplink} valid_lft 36000 preferred_lft 36000");
    cluster.shell(1, &dynamic);
    let mut daemons = pair(&mut cluster);
    let before = cluster.lease(1);
    cluster.shell(1, &format!("ip addr add 198.18.0.200/32 dev {uplink}"));
    let comparisons = |cluster: &Cluster| {
        let place = cluster.place.path().display();
        let instance = fs::read_dir(cluster.place.path()).expect("files").flatten().find_map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.strip_suffix(".sock").filter(|name| name.starts_with("host1-")).map(str::to_owned)
        });
        let line = format!(
            "{} status --json --instance {} --run-dir {place}",
            env!("CARGO_BIN_EXE_loden"),
            instance.expect("a socket")
        );
        let text = cluster.shell(1, &line);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json.pointer("/daemons/0/reconcile/runs").and_then(serde_json::Value::as_u64)
    };
    let seen = comparisons(&cluster).expect("a number");
    await_until("some looks at the uplink", || {
        cluster.shell(1, "ip addr add 203.0.113.7/32 dev lo; ip addr del 203.0.113.7/32 dev lo");
        comparisons(&cluster).expect("a number") >= seen + 3
    });
    assert!(!daemons[0].logged("the uplink has changed"), "{}", daemons[0].log_text());
    assert_eq!(cluster.lease(1).attrs, before.attrs);
    daemons[0].end(Signal::SIGTERM);
    daemons[0] = cluster.start(1, &[]);
    assert_eq!((cluster.lease(1).attrs, cluster.leases().len()), (before.attrs, 2));
    ping(&cluster, 1, 2, false);
}
