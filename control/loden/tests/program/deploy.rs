//! The files in `deploy/`: systemd accepts the units, and the daemon works with the capabilities that they
//! grant.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::{Needs, Wiring};

use crate::common::{self, Cluster, await_until, ping};

const UNIT: &str = include_str!("../../../../deploy/systemd/loden.service");
const DROP_IN: &str = include_str!("../../../../deploy/systemd/docker.service.d/loden.conf");
const INSTALLED: &str = "/usr/local/bin/loden";

/// systemd's exposure level in tenths: 0 is fully confined, 100 unconfined.
const EXPOSURE: &str = "--threshold=30";

#[test]
fn systemd_understands_the_units_and_finds_them_hardened() {
    if !Needs::default().programs(&["systemd-analyze", "dockerd"]).are_met() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let unit = put(place.path(), "loden.service", UNIT);
    let output = analyze(place.path(), ["security", "--offline=yes", EXPOSURE], &unit);
    assert!(output.status.success(), "{}", text(&output));
    put(place.path(), "docker.service.d/loden.conf", DROP_IN);
    put(place.path(), "docker.service", "[Service]\nType=notify\nExecStart=dockerd -H fd://\n");
    let docker = place.path().join("docker.service");
    for unit in [&unit, &docker] {
        let said = text(&analyze(place.path(), ["verify", "--man=no"], unit));
        let ours: Vec<&str> =
            said.lines().filter(|line| line.contains("loden") || line.contains("docker")).collect();
        assert!(ours.is_empty(), "{ours:#?}");
    }
    // What systemd would report.
    let broken = put(
        place.path(),
        "loden-broken.service",
        &UNIT.replace("Type=", "Kind=").replace(INSTALLED, "/nowhere/loden"),
    );
    let said = text(&analyze(place.path(), ["verify", "--man=no"], &broken));
    assert!(said.contains("'Kind'") && said.contains("/nowhere/loden"), "{said}");
}

#[test]
fn the_capabilities_of_the_unit_are_enough() {
    if !common::ready(&["setpriv", "iptables", "ip"]) {
        return;
    }
    let granted =
        UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let kept =
        granted.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_ascii_lowercase()));
    let bounds = format!("--bounding-set=-all{}", kept.collect::<String>());
    for backend in ["vxlan", "ipip"] {
        let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
        let mut cluster = Cluster::build("unit", 2, Wiring::Direct, &config);
        let daemons = [1, 2].map(|number| {
            let usual = cluster.command(number);
            let mut command = Command::new("setpriv");
            command.args([&bounds, "--"]).arg(usual.get_program()).args(usual.get_args()).arg("--ip-masq");
            let mut daemon = cluster.spawn(number, &mut command);
            daemon.await_ready();
            daemon
        });
        let status = fs::read_to_string(format!("/proc/{}/status", daemons[0].process.id())).expect("status");
        // CAP_NET_ADMIN is 12, CAP_NET_RAW 13, CAP_SYS_NICE 23, CAP_BPF 39 (linux/capability.h).
        assert!(status.contains("CapEff:\t0000008000803000"), "{status}");
        for number in [1, 2] {
            await_until("the peer", || daemons[number - 1].logged("peers=1"));
            cluster.connect_pod(number);
        }
        ping(&cluster, 1, 2, false);
        for daemon in daemons {
            assert!(!daemon.logged("WARN"), "{}", daemon.log_text());
            daemon.finish();
        }
    }
}

#[test]
fn dockerd_gets_every_variable_that_is_written() {
    let place = tempfile::tempdir().expect("a directory");
    let [subnet, options] = ["subnet.env", "docker.env"].map(|name| place.path().join(name));
    fs::write(&subnet, "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n")
        .expect("a file");
    let before =
        DROP_IN.lines().find_map(|line| line.strip_prefix("ExecStartPre=")).expect("a first command");
    let mut words =
        before.split(' ').map(|word| word.replace("/run/flannel/docker.env", &options.display().to_string()));
    assert_eq!(words.next().as_deref(), Some(INSTALLED));
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    command.args(words).arg("-f").arg(&subnet);
    assert!(command.status().expect("loden").success());
    let start =
        DROP_IN.lines().filter_map(|line| line.strip_prefix("ExecStart=")).next_back().expect("a command");
    let written = fs::read_to_string(&options).expect("options");
    let names: Vec<&str> = written.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names.len(), 3, "{written}");
    assert!(names.iter().all(|name| start.contains(&format!("${name}"))), "{start}\n{written}");
}

/// The store may run in a container of docker's, and the service is ready only with a store.
#[test]
fn dockerd_waits_for_the_daemon_only_by_its_drop_in() {
    let orders = |unit: &str| -> Vec<String> {
        let words = unit.lines().filter(|line| ["Before=", "After="].iter().any(|key| line.starts_with(key)));
        words.map(str::to_owned).collect()
    };
    let of_docker = |line: &String| line.contains("docker") || line.contains("containerd");
    assert!(!orders(UNIT).iter().any(of_docker), "{:?}", orders(UNIT));
    assert_eq!(orders(DROP_IN), ["After=loden.service"]);
}

/// Writes a unit that starts this build's daemon.
fn put(place: &Path, name: &str, unit: &str) -> PathBuf {
    let path = place.join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(&path, unit.replace(INSTALLED, env!("CARGO_BIN_EXE_loden"))).expect("a file");
    path
}

fn analyze<'a>(place: &Path, arguments: impl IntoIterator<Item = &'a str>, unit: &Path) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(unit).env("SYSTEMD_UNIT_PATH", format!("{}:", place.display()));
    command.output().expect("systemd-analyze")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
