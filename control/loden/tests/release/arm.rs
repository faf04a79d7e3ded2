//! A node of 64-bit ARM, run by QEMU, in a cluster with a node of this machine: packets that one architecture
//! has made, the other reads.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lab::{Namespace, Needs, Wiring};
use serde_json::{Value, json};

use crate::common::{self, Cluster, DUAL, Daemon, UDP, await_until, ping, verified};
use crate::{ARCHS, Release, and_emulators};

const IPIP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;
const WIREGUARD: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"wireguard"}}"#;
const ARM: &str = "aarch64";
/// An emulated node carries some ten megabits in a second.
const BYTES: u64 = 3_000_000;
const PLUGINS: &str = "/usr/lib/cni";

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

#[test]
fn each_verb_of_the_plugin_works_under_the_emulator() {
    let are_there = ["bridge", "host-local"].iter().all(|name| Path::new(PLUGINS).join(name).is_file());
    let plugins = format!("bridge and host-local in {PLUGINS} (Debian's containernetworking-plugins)");
    let Some(release) = Release::find(and_emulators(Needs::root().and(plugins, are_there))) else { return };
    let name = |end: &str| format!("armcni-{}-{end}", std::process::id());
    let [host, pod] = ["h", "p"].map(|end| Namespace::create(&name(end)).expect("a namespace"));
    let place = tempfile::tempdir().expect("a directory");
    let subnet_file = place.path().join("subnet.env");
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\n\
               FLANNEL_IPMASQ=true\n";
    fs::write(&subnet_file, env).expect("a file");
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
        "subnetFile": subnet_file, "dataDir": place.path().join("state"),
        "ipam": { "dataDir": place.path().join("addresses") },
        "delegate": { "isDefaultGateway": true, "bridge": "cni0" },
    });
    let call = |verb: &str, config: &Value| -> Value {
        let text = place.path().join("config");
        fs::write(&text, config.to_string()).expect("a file");
        let mut command = release.command(ARM, "loden-cni");
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", PLUGINS)
            .stdin(fs::File::open(text).expect("a file"));
        if !matches!(verb, "STATUS" | "GC" | "VERSION") {
            command.env("CNI_CONTAINERID", "pod-1").env("CNI_NETNS", pod.path()).env("CNI_IFNAME", "eth0");
        }
        let output = host.output(&mut command).expect("loden-cni");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{verb}: {text}{}", String::from_utf8_lossy(&output.stderr));
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") }
    };
    let shown = || {
        let output = pod.output(Command::new("ip").args(["-4", "-o", "addr", "show", "dev", "eth0"]));
        String::from_utf8_lossy(&output.expect("ip").stdout).into_owned()
    };
    let versions = call("VERSION", &config);
    assert!(versions["supportedVersions"].as_array().is_some_and(|list| list.contains(&json!("1.1.0"))));
    let result = call("ADD", &config);
    assert_eq!(result["ips"][0]["address"], "10.244.7.2/24", "{result:#}");
    assert!(shown().contains("10.244.7.2/24"), "{}", shown());
    config["prevResult"] = result;
    call("CHECK", &config);
    config.as_object_mut().expect("an object").remove("prevResult");
    call("DEL", &config);
    assert_eq!(shown(), "");
    call("ADD", &config);
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    call("GC", &config);
    assert_eq!(shown(), "");
    let states = fs::read_dir(place.path().join("state")).expect("a directory").count();
    assert_eq!(states, 0);
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
