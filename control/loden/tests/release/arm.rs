//! A node of 64-bit ARM, run by QEMU, in a cluster with a node of this machine: packets that one architecture
//! has made, the other reads.

use std::process::Stdio;

use lab::Wiring;
use serde_json::Value;

use crate::common::{self, Cluster, DUAL, Daemon, UDP, await_until, ping, verified};
use crate::{ARCHS, Release, and_emulators};

const IPIP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;
const WIREGUARD: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"wireguard"}}"#;
/// An emulated node carries some ten megabits in a second.
const BYTES: u64 = 3_000_000;

#[test]
fn vxlan_carries_both_families_between_the_architectures() {
    talk("arm-vx", DUAL, &[false, true]);
}

#[test]
fn udp_carries_traffic_between_the_architectures() {
    talk("arm-udp", UDP, &[false]);
}

#[test]
fn ipip_carries_traffic_between_the_architectures() {
    talk("arm-ipip", IPIP, &[false]);
}

#[test]
fn wireguard_carries_both_families_between_the_architectures() {
    talk("arm-wg", WIREGUARD, &[false, true]);
}

#[test]
fn the_self_tests_pass_under_the_emulator() {
    let Some(release) = Release::find(and_emulators(common::needs(&[]))) else { return };
    let cluster = Cluster::build("arm-doc", 1, Wiring::Switch, DUAL);
    for arch in ARCHS {
        let mut command = release.command(arch, "loden");
        let output = cluster.host(1).namespace().output(command.args(["doctor", "--json"])).expect("loden");
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(told["can_run"], true, "{arch}: {told:#}");
        let findings = told["findings"].as_array().expect("findings");
        let tested: Vec<&Value> = findings
            .iter()
            .filter(|finding| finding["group"].as_str().is_some_and(|group| group.starts_with("Self-test")))
            .collect();
        assert!(tested.len() >= 3, "{arch}: {told:#}");
        assert!(tested.iter().all(|finding| finding["verdict"] == "yes"), "{arch}: {tested:#?}");
    }
}

/// Runs a node of each architecture, and sends traffic both ways.
fn talk(name: &str, config: &str, families: &[bool]) {
    let Some(release) = Release::find(and_emulators(common::needs(&[]))) else { return };
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, config);
    let mut daemons = [1, 2].map(|number| start(&release, &cluster, number, ARCHS[number - 1]));
    for (daemon, number) in daemons.iter_mut().zip(1..) {
        daemon.await_ready();
        await_until("the peer", || daemon.logged("peers=1"));
        cluster.connect_pod(number);
    }
    for &ipv6 in families {
        for (from, to) in [(1, 2), (2, 1)] {
            ping(&cluster, from, to, ipv6);
            verified(&cluster, from, to, ipv6, BYTES);
        }
    }
    for daemon in daemons {
        assert!(!daemon.logged("ERROR") && !daemon.logged("panicked"), "{}", daemon.log_text());
        for counters in daemon.finish() {
            assert!(counters.unexplained_drops().is_empty(), "{config}: {:?}", counters.drops());
        }
    }
}

/// Starts the release's program for an architecture on a host.
fn start(release: &Release, cluster: &Cluster, number: usize, arch: &str) -> Daemon {
    let usual = cluster.command(number);
    let mut command = release.command(arch, "loden");
    command.args(usual.get_args()).stdout(Stdio::null());
    command.env("WIREGUARD_KEY_FILE", cluster.file(&format!("key{number}")));
    cluster.spawn(number, &mut command)
}
