//! How a restart, a change from stock flannel to loden, and a removed device affect pods, peers and the host.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use lab::{Process, Wiring, mounts};
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, DUAL, UDP, VXLAN, await_until, ping, ready};

const IPIP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;

#[test]
fn pods_meet_no_error_while_the_daemon_restarts() {
    if !ready(&["ip", "ping"]) {
        return;
    }
    let mut cluster = Cluster::build("rst-pods", 2, Wiring::Switch, DUAL);
    let mut daemons = vec![cluster.start(1, &[]), cluster.start(2, &[])];
    for number in [1, 2] {
        cluster.connect_pod(number);
        cluster.await_routes(number, 1);
    }
    ping(&cluster, 1, 2, true);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // A hundred pings a second in each family, during the restart.
        let flows = [false, true].map(|ipv6| {
            let log = cluster.file(if ipv6 { "ping6" } else { "ping4" });
            let mut ping = Command::new("ping");
            ping.args(["-n", "-i", "0.01", &cluster.pod(2, ipv6).to_string()]);
            ping.stdout(File::create(&log).expect("a file"));
            (Process::spawn(cluster.host(1).pod(), &mut ping).expect("ping"), log)
        });
        let answers = |log: &Path| fs::read_to_string(log).unwrap_or_default().matches("bytes from").count();
        for (_, log) in &flows {
            await_until("answers", || answers(log) > 20);
        }
        daemons[0].end(signal);
        daemons[0] = cluster.start(1, &[]);
        assert!(daemons[0].logged("forwarding from memory"), "{}", daemons[0].log_text());
        for (mut flow, log) in flows {
            let before = answers(&log);
            await_until("more answers", || answers(&log) > before + 20);
            flow.signal(Signal::SIGINT).expect("a signal");
            let _ = flow.wait(common::LIMIT);
            let text = fs::read_to_string(&log).expect("its words");
            assert!(!text.to_lowercase().contains("unreachable"), "{text}");
        }
    }
    for daemon in daemons {
        for counters in daemon.finish() {
            assert_eq!(counters.unexplained_drops().len(), 0, "{:?}", counters.drops());
        }
    }
}

/// In flannel the device of udp ends with its daemon.
#[test]
fn the_device_of_udp_stays_for_the_next_daemon() {
    if !ready(&["ip", "ping"]) {
        return;
    }
    let mut cluster = Cluster::build("rst-udp", 2, Wiring::Switch, UDP);
    let mut daemons = [cluster.start(1, &[]), cluster.start(2, &[])];
    [1, 2].iter().for_each(|number| cluster.connect_pod(*number));
    let device = |cluster: &Cluster| cluster.shell(1, "ip -o link show flannel0 | cut -d: -f1,2");
    let route = |cluster: &Cluster| cluster.shell(1, "ip route show 10.244.0.0/16 | cut -d' ' -f1-3");
    let before = (device(&cluster), route(&cluster));
    assert_eq!(before.1, "10.244.0.0/16 dev flannel0");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemons[0].end(signal);
        assert_eq!((device(&cluster), route(&cluster)), before, "{signal}");
        daemons[0] = cluster.start(1, &[]);
        assert_eq!((device(&cluster), route(&cluster)), before, "the very device, after {signal}");
        ping(&cluster, 1, 2, false);
    }
}

/// A host that ran stock flannel still has its kernel device. loden replaces the device and keeps its MAC
/// address, so that stock peers need not learn anything.
#[test]
fn stock_flannels_device_makes_room_and_its_address_goes_on() {
    if !common::needs(&[]).and("the kernel's vxlan", common::has_vxlan()).are_met() {
        return;
    }
    let cluster = Cluster::build("rst-swap", 2, Wiring::Switch, DUAL);
    let kernel = [("flannel.1", "02:00:00:00:01:01"), ("flannel-v6.1", "02:00:00:00:01:02")];
    for (device, mac) in kernel {
        let local = if device.contains("v6") { "fd00:10de::1" } else { "198.18.0.1" };
        cluster.shell(
            1,
            &format!(
                "ip link add {device} address {mac} type vxlan id 1 dstport 8472 local {local} \
                 dev eth0 nolearning"
            ),
        );
        cluster.shell(1, &format!("ip link set {device} up"));
    }
    let daemon = cluster.start(1, &[]);
    let attrs = cluster.lease(1).attrs.to_json();
    assert!(kernel.iter().all(|(_, mac)| attrs.contains(mac)), "{attrs}");
    for (device, _) in kernel {
        assert!(
            daemon.logged(&format!("replacing the kernel's tunnel device device={device}")),
            "{}",
            daemon.log_text()
        );
        assert!(cluster.shell(1, &format!("ip -d link show {device}")).contains("tun type tun"));
    }
    drop(daemon);
    // A device with flannel's name and another VNI is not flannel's.
    let cluster = Cluster::build("rst-other", 1, Wiring::Switch, VXLAN);
    cluster.shell(1, "ip link add flannel.1 type vxlan id 5 dstport 4789 dev eth0");
    let mut daemon = cluster.spawn(1, &mut cluster.command(1));
    assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
    assert!(cluster.shell(1, "ip -d link show flannel.1").contains("vxlan id 5"));
}

#[test]
fn a_device_that_somebody_removes_comes_back_with_its_routes() {
    if !ready(&["ip", "ping"]) {
        return;
    }
    for (config, device) in [(DUAL, "flannel.1"), (UDP, "flannel0"), (IPIP, "flannel.ipip")] {
        let mut cluster = Cluster::build("rst-gone", 2, Wiring::Switch, config);
        let mut daemons = [cluster.start(1, &[]), cluster.start(2, &[])];
        for number in [1, 2] {
            cluster.connect_pod(number);
            await_until("routes", || {
                !cluster.shell(number, &format!("ip route show dev {device}")).is_empty()
            });
            if config == DUAL {
                cluster.await_routes(number, 1);
            }
        }
        ping(&cluster, 1, 2, false);
        let routes = cluster.shell(1, "ip route; ip -6 route | grep flannel || true");
        cluster.shell(1, &format!("ip link del {device}"));
        await_until("the same routes", || {
            cluster.shell(1, "ip route; ip -6 route | grep flannel || true") == routes
        });
        ping(&cluster, 1, 2, false);
        ping(&cluster, 2, 1, false);
        assert!(daemons[0].is_running());
        assert_eq!(daemons[0].log_text().matches("the device was removed").count(), 1);
    }
}

#[test]
fn cleanup_takes_devices_and_firewall_rules_and_leaves_others() {
    if !ready(&["ip", "iptables-save", "nft"]) {
        return;
    }
    let options = ["--ip-masq", "--ip-blackhole-route", "--instance", "one"];
    for (config, rules) in [
        (DUAL.to_owned(), "iptables-save; ip6tables-save"),
        (DUAL.replace("{\"Network", "{\"EnableNFTables\":true,\"Network"), "nft list ruleset"),
    ] {
        let cluster = Cluster::build("rst-clean", 1, Wiring::Switch, &config);
        // iptables leaves empty chains behind when it lists rules, so only rules and flannel's names count.
        let plain = "grep -E '^-A|addr|flannel' || true";
        cluster.shell(1, "iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE");
        cluster.shell(1, "ip6tables -A FORWARD -s 2001:db8::/32 -j ACCEPT");
        let ruled = || cluster.shell(1, &format!("({rules}) | {plain}"));
        let linked = || cluster.shell(1, "ip -o link | cut -d: -f2; ip route; ip -6 route | grep -v fe80");
        let before = (ruled(), linked());
        let mut daemon = cluster.start(1, &options);
        await_until("the blackhole", || linked().contains("blackhole 10.244."));
        assert!(ruled().to_lowercase().contains("flannel"), "{}", ruled());
        daemon.end(Signal::SIGKILL);
        assert!(linked().contains("flannel.1") && linked().contains("flannel-v6.1"));
        let clean = format!(
            "{} cleanup --instance one --run-dir {}",
            env!("CARGO_BIN_EXE_loden"),
            cluster.place.path().display()
        );
        let listed = cluster.shell(1, &format!("{clean} --dry-run"));
        assert!(listed.contains("device flannel.1") && listed.contains("device flannel-v6.1"), "{listed}");
        let done = cluster.shell(1, &clean);
        assert!(done.contains("firewall: "), "{done}");
        assert_eq!((ruled(), linked()), before, "{done}");
        assert_eq!(cluster.shell(1, &clean), "nothing to remove");
    }
}

/// Stock flannel cannot start while these devices exist, so cleanup must remove them.
#[test]
fn cleanup_makes_room_for_stock_flannel() {
    if !ready(&["ip"]) {
        return;
    }
    for (config, device) in [(UDP, "flannel0"), (IPIP, "flannel.ipip")] {
        let cluster = Cluster::build("rst-back", 1, Wiring::Switch, config);
        let mut daemon = cluster.start(1, &["--instance", "one"]);
        daemon.end(Signal::SIGTERM);
        assert!(common::leftovers(&cluster, 1).contains(device));
        let place = cluster.place.path().display();
        cluster
            .shell(1, &format!("{} cleanup --instance one --run-dir {place}", env!("CARGO_BIN_EXE_loden")));
        assert_eq!(common::leftovers(&cluster, 1), "", "{device}");
        assert_eq!(cluster.leases().len(), 1, "flannel takes the same subnet");
    }
}

/// A start that cannot succeed leaves no device behind.
#[test]
fn a_failed_start_leaves_no_device() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("rst-fail", 1, Wiring::Switch, VXLAN);
    // Masquerading is set up after the device, and there is no program for it.
    let status = mounts::private(|| {
        for place in ["/usr/sbin", "/sbin"] {
            mounts::tmpfs(Path::new(place), "4k").expect("a tmpfs");
        }
        let mut daemon = cluster.spawn(1, cluster.command(1).env("PATH", "/nowhere").arg("--ip-masq"));
        let status = daemon.await_end();
        assert!(daemon.logged("datapath device=flannel.1"), "{}", daemon.log_text());
        status
    })
    .expect("private mounts");
    assert_eq!(status.code(), Some(1));
    assert_eq!(common::leftovers(&cluster, 1), "");
}
