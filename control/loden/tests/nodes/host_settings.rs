//! Settings, limits, routes and addresses of the host that are in the way.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lab::Wiring;
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, DUAL, VXLAN};

const DEVICE: &str = "flannel-v6.1";

#[test]
fn ipv6_works_on_a_host_that_has_it_off_for_new_devices() {
    let Some(mut cluster) = hosts("hs-off") else { return };
    for host in [1, 2] {
        let namespace = cluster.host(host).namespace();
        namespace.set_sysctl("net.ipv6.conf.default.disable_ipv6", "1").expect("a setting");
        // The network's router has a route for all pods, as in many a data centre.
        cluster.shell(host, "ip -6 route add fd00:244::/32 via fd00:10de::99 dev eth0");
    }
    let daemons = [1, 2].map(|host| cluster.start(host, &[]));
    for host in [1, 2] {
        // The pod's device is somebody else's.
        let namespace = cluster.host(host).namespace();
        namespace.set_sysctl("net.ipv6.conf.default.disable_ipv6", "0").expect("a setting");
        cluster.connect_pod(host);
        await_peer(&cluster, host);
    }
    common::every_size(&cluster, 1, 2, true, 100..=130);

    // Somebody turns IPv6 off on the device; the kernel removes its addresses and routes.
    let name = format!("net.ipv6.conf.{}.disable_ipv6", DEVICE.replace('.', "/"));
    cluster.host(1).namespace().set_sysctl(&name, "1").expect("a setting");
    await_peer(&cluster, 1);
    common::every_size(&cluster, 1, 2, true, 100..=130);

    cluster.shell(1, &format!("ip -6 addr add 2001:db8::5/64 dev {DEVICE}"));
    let addresses = || cluster.shell(1, &format!("ip -6 -o addr show dev {DEVICE}"));
    common::await_until("the foreign address to go", || !addresses().contains("2001:db8::5"));
    assert_eq!(addresses().lines().count(), 1, "{}", addresses());
    for daemon in daemons {
        assert!(!daemon.logged(" WARN "), "{}", daemon.log_text());
        daemon.finish();
    }
}

#[test]
fn where_ipv6_cannot_be_turned_on_the_error_names_the_setting() {
    let Some(cluster) = hosts("hs-fixed") else { return };
    let namespace = cluster.host(1).namespace();
    namespace.set_sysctl("net.ipv6.conf.default.disable_ipv6", "1").expect("a setting");
    // As in a container that is not privileged.
    let given = cluster.command(1);
    let mut command = Command::new("unshare");
    let script =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(given.get_program()).args(given.get_args());
    let mut daemon = cluster.spawn(1, &mut command);
    let key = format!("net/ipv6/conf/{DEVICE}/disable_ipv6=0");
    common::await_until("the error", || daemon.logged(&key));
    assert!(!daemon.logged("CAP_NET_ADMIN"), "{}", daemon.log_text());
    if daemon.is_running() {
        daemon.end(Signal::SIGTERM);
    }
}

#[test]
fn more_workers_than_the_limit_of_open_files_allows_are_fewer_and_named() {
    for (config, device, few) in [(VXLAN, "flannel.1", 64), (DUAL, "flannel-v6.1", 28)] {
        if !common::ready(&["prlimit"]) {
            return;
        }
        let cluster = Cluster::build("hs-files", 1, Wiring::Switch, config);
        let start = |limits: &str, workers: usize| {
            let given = cluster.command(1);
            let mut command = Command::new("prlimit");
            command.arg(format!("--nofile={limits}")).arg(given.get_program()).args(given.get_args());
            command.args(["--workers", &workers.to_string()]);
            let mut daemon = cluster.spawn(1, &mut command);
            daemon.await_ready();
            let log = daemon.log_text();
            let threads = format!("/proc/{}/task", daemon.process.id());
            let tasks = fs::read_dir(threads).expect("tasks").flatten();
            let is_worker = |path: PathBuf| {
                fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("loden-w"))
            };
            let running = tasks.filter(|task| is_worker(task.path())).count();
            assert!(common::leftovers(&cluster, 1).contains(device));
            daemon.finish();
            (running, log)
        };
        // The usual soft limit: the hard one is what counts.
        let (running, log) = start("1024:8192", few);
        assert_eq!(running, few, "{log}");
        assert!(!log.contains("open files"), "{log}");
        let (running, log) = start("1024:1024", few);
        assert!(running >= few / 4 && running < few, "{running}: {log}");
        let named = format!("{running} workers instead of {few}: the limit of open files is 1024");
        assert!(log.contains(" WARN ") && log.contains(&named) && log.contains("--workers"), "{log}");
    }
}

fn hosts(name: &str) -> Option<Cluster> {
    common::ready(&["unshare", "mount"]).then(|| Cluster::build(name, 2, Wiring::Direct, DUAL))
}

fn await_peer(cluster: &Cluster, host: usize) {
    let routes = || cluster.shell(host, &format!("ip -6 route show dev {DEVICE} proto boot"));
    common::await_until("the peer's route", || routes().lines().count() == 1);
}
