//! What surrounds the daemon: flanneld's command line, probes, metrics, systemd, `loden status`, the state
//! file and `loden cleanup`.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Output};

use lab::Wiring;
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, LIMIT, VXLAN, await_until, ready};

const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
/// These tests are not about the firewall.
const NO_RULES: &[&str] = &["--iptables-forward-rules=false", "--require-br-netfilter=false"];
const PORT: &str = "10256";

#[test]
fn a_restart_keeps_its_link_address_and_says_what_it_is() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-keep", 1, Wiring::Switch, VXLAN);
    let mut daemon = cluster.start(1, &[]);
    let before = cluster.lease(1);
    // A crash, so that nothing is written at the exit.
    daemon.end(Signal::SIGKILL);
    assert!(state_files(&cluster).len() == 1, "it is there from the start");
    let mut again = cluster.start(1, &[]);
    assert_eq!(cluster.lease(1).attrs, before.attrs);
    again.end(Signal::SIGTERM);
    // A corrupt state file is one warning.
    fs::write(&state_files(&cluster)[0], "{\u{0}").expect("write");
    let third = cluster.start(1, &[]);
    assert_eq!(
        third.log_text().matches("state file of the previous run ignored").count(),
        1,
        "{}",
        third.log_text()
    );
    assert_eq!(cluster.lease(1).key, before.key);
}

#[test]
fn one_name_is_one_daemon() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-name", 1, Wiring::Switch, VXLAN);
    let mut daemon = cluster.start(1, &[]);
    let mut command = cluster.command(1);
    let output = cluster.host(1).namespace().output(&mut command).expect("a run");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains(&format!("(process {})", daemon.process.id())) && words.contains("--instance"),
        "{words}"
    );
    assert!(daemon.is_running());
}

#[test]
fn status_shows_lease_peers_offloads_and_what_was_made() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-stat", 2, Wiring::Switch, VXLAN);
    let (mut first, _second) =
        (cluster.start(1, &[&["--instance", "first"], NO_RULES].concat()), cluster.start(2, NO_RULES));
    cluster.await_routes(1, 1);
    let status = |more: &[&str]| loden(&cluster, &[&["status"], more].concat());
    let text = || String::from_utf8(status(&[]).stdout).expect("UTF-8");
    await_until("what was made", || text().contains("created      device flannel.1 with 1 routes"));
    let json: serde_json::Value =
        serde_json::from_slice(&status(&["--instance", "first", "--json"]).stdout).expect("JSON");
    let shown = &json["daemons"][0];
    assert_eq!((&shown["phase"], &shown["instance"]), (&"ready".into(), &"first".into()), "{json:#}");
    assert_eq!(shown["lease"]["key"], cluster.lease(1).key.to_string());
    let tunnel = &shown["tunnels"][0];
    assert_eq!(tunnel["device"], "flannel.1");
    assert_eq!(tunnel["peers"][0]["subnet"], cluster.lease(2).subnet().expect("IPv4").to_string());
    assert!(tunnel["features"]["tso"].is_boolean());
    let text = text();
    assert_eq!(text.matches("instance ").count(), 2, "both daemons: {text}");

    first.end(Signal::SIGKILL);
    let dead = status(&["--instance", "first"]);
    assert_eq!(dead.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&dead.stderr).contains("first: not running"));
}

#[test]
fn cleanup_takes_what_a_crash_left_and_nothing_else() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-clean", 2, Wiring::Switch, HOST_GW);
    let (mut first, _second) =
        (cluster.start(1, &[&["--instance", "first"], NO_RULES].concat()), cluster.start(2, NO_RULES));
    let routes = || cluster.shell(1, "ip route | grep '^10.244' || true");
    await_until("the peer's route", || routes().lines().count() == 1);
    cluster.shell(1, "ip route add 10.244.99.0/25 via 198.18.0.2; ip link add flannel.1 type bridge");
    // The last plan is recorded within seconds.
    await_until("the record", || {
        fs::read_to_string(cluster.file("first.json")).is_ok_and(|text| text.contains("\"via\""))
    });
    let clean = |more: &[&str]| loden(&cluster, &[&["cleanup", "--instance", "first"], more].concat());
    let refused = clean(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    assert_eq!(routes().lines().count(), 2);

    first.end(Signal::SIGKILL);
    let listed = String::from_utf8(clean(&["--dry-run"]).stdout).expect("UTF-8");
    assert!(listed.contains("first: route 10.244.") && listed.contains("host1.env"), "{listed}");
    assert_eq!(routes().lines().count(), 2, "a dry run only lists");
    let done = clean(&[]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(String::from_utf8(done.stdout).expect("UTF-8"), listed, "it does what it listed");
    assert_eq!(routes(), "10.244.99.0/25 via 198.18.0.2 dev eth0", "a stranger's route stays");
    assert!(
        cluster.shell(1, "ip link show flannel.1 type bridge").contains("flannel.1"),
        "and a stranger's device"
    );
    assert!(!cluster.file("host1.env").exists() && !cluster.file("first.json").exists());
    assert_eq!(String::from_utf8(clean(&[]).stdout).expect("UTF-8"), "nothing to remove\n");
}

#[test]
fn a_replaced_configuration_is_told_without_its_secrets() {
    if !ready(&["ip"]) {
        return;
    }
    let mut cluster = Cluster::build("lcy-psk", 1, Wiring::Switch, VXLAN);
    let keyed = |psk: &str| VXLAN.replace("}}", &format!(r#","pSk":"{psk}"}}}}"#));
    for (stored, given) in [(keyed("s3cret-one"), keyed("s3cret-two")), ("PSK=s3cret".into(), VXLAN.into())] {
        cluster.in_store(async |store| store.set_net_config(&stored).await.expect("the store"));
        cluster.config = given;
        let mut daemon = cluster.start(1, &[NO_RULES, &["-vv"]].concat());
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
        assert_eq!(
            daemon.log_text().matches("replacing the network configuration").count(),
            1,
            "{}",
            daemon.log_text()
        );
        assert!(!daemon.logged("s3cret"), "{}", daemon.log_text());
    }
}

#[test]
fn probes_are_answered_while_the_store_is_empty() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-probe", 1, Wiring::Switch, VXLAN);
    let mut command = bare(&cluster);
    command.args(["--healthz-port", PORT]);
    let daemon = cluster.spawn(1, &mut command);
    await_until("an answer", || {
        get(&cluster, "/healthz") == Some(("200".into(), "flanneld is running".into()))
    });
    assert_eq!(get(&cluster, "/readyz"), Some(("503".into(), "flanneld is not ready yet".into())));
    cluster.in_store(async |store| store.set_net_config(VXLAN).await.expect("a configuration"));
    await_until("readiness", || get(&cluster, "/readyz") == Some(("200".into(), "flanneld is ready".into())));
    let (_, metrics) = get(&cluster, "/metrics").expect("metrics");
    for line in ["loden_ready 1\n", "loden_peers{tunnel=\"flannel.1\"} 0\n", "reason=\"no_route\"} "] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(
        metrics.contains("loden_store_request_duration_seconds_count{operation=\"acquire\"} 1\n"),
        "{metrics}"
    );
    drop(daemon);
}

#[test]
fn a_port_in_use_ends_the_start() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-port", 1, Wiring::Switch, VXLAN);
    let _first = cluster.start(1, &["--healthz-port", PORT]);
    let mut second = cluster.command(1);
    second.args(["--instance", "second", "--healthz-port", PORT]);
    let output = cluster.host(1).namespace().output(&mut second).expect("a run");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains(&format!("cannot serve health and metrics on 0.0.0.0:{PORT}")), "{words}");
}

/// As in flannel, the CNI plugin or the operator enables forwarding.
#[test]
fn forwarding_is_left_as_it_is_and_told() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-fwd", 1, Wiring::Switch, common::DUAL);
    let switches = "/proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
    let warnings = ["IPv4 forwarding is off", "IPv6 forwarding is off"];
    for (value, told) in [("0", 1), ("1", 0)] {
        cluster.shell(1, &format!("for switch in {switches}; do echo {value} > $switch; done"));
        let mut daemon = cluster.start(1, NO_RULES);
        for warning in warnings {
            assert_eq!(daemon.log_text().matches(warning).count(), told, "{}", daemon.log_text());
        }
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
        assert_eq!(cluster.shell(1, &format!("cat {switches}")), format!("{value}\n{value}"));
    }
}

/// A stop waits for a client of the health server that never completes its request.
#[test]
fn a_second_signal_waits_for_nobody() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-two", 1, Wiring::Switch, VXLAN);
    let mut daemon = cluster.start(1, &[NO_RULES, &["--healthz-port", PORT]].concat());
    let half = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 10_256)).expect("the server");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost").expect("half a request");
        stream
    };
    let stream = cluster.host(1).namespace().run(half).expect("the host");
    daemon.process.signal(Signal::SIGTERM).expect("a signal");
    await_until("the first signal's work", || daemon.logged("stopped; what was made here stays"));
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
    assert_eq!(
        daemon.log_text().matches("second signal: ending at once").count(),
        1,
        "{}",
        daemon.log_text()
    );
    drop(stream);
}

#[test]
fn systemd_is_told() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-sysd", 1, Wiring::Switch, VXLAN);
    let path = cluster.file("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(LIMIT)).expect("a time limit");
    let receive = || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut daemon = cluster.spawn(1, cluster.command(1).env("NOTIFY_SOCKET", &path));
    assert_eq!(receive(), "READY=1\n");
    assert!(cluster.file("host1.env").exists(), "not before the subnet file");
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
    assert_eq!(receive(), "STOPPING=1\n");
}

#[test]
fn called_flanneld_it_speaks_flanneld() {
    if !ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("lcy-name2", 1, Wiring::Switch, VXLAN);
    let program = cluster.file("flanneld");
    symlink(env!("CARGO_BIN_EXE_loden"), &program).expect("a link");
    let once = |arguments: &[&str]| Command::new(&program).args(arguments).output().expect("a run");
    let version = once(&["-version"]);
    assert_eq!((version.status.code(), version.stdout.len()), (Some(0), 0));
    assert!(String::from_utf8_lossy(&version.stderr).starts_with("loden "));
    let help = once(&["-help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("-subnet-lease-renew-margin int"));
    let bad = once(&["--nosuch"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("flag provided but not defined: -nosuch"));
    for margin in ["0", "1440"] {
        let output = once(&[
            "-subnet-lease-renew-margin",
            margin,
            "-run-dir",
            &cluster.place.path().to_string_lossy(),
        ]);
        assert_eq!(output.status.code(), Some(1), "{margin}");
    }
    let kube = once(&["--kube-subnet-mgr", "--ip-masq=false"]);
    assert_eq!(kube.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&kube.stderr).contains("NODE_NAME"));

    cluster.in_store(async |store| store.set_net_config(VXLAN).await.expect("a configuration"));
    let mut command = Command::new(&program);
    command
        .args([
            "-iface=eth0",
            "--v=10",
            "-etcd-username",
            "root",
            "-etcd-password=s3cret-word",
            "-subnet-file",
        ])
        .arg(cluster.file("host1.env"))
        .env("FLANNELD_IPTABLES_FORWARD_RULES", "false")
        .env("FLANNELD_REQUIRE_BR_NETFILTER", "f")
        .env("FLANNELD_STORE", format!("sqlite:{}", cluster.store().display()))
        .env("FLANNELD_RUN_DIR", cluster.place.path())
        .env("FLANNELD_IPTABLES_RESYNC", "soon");
    let mut daemon = cluster.spawn(1, &mut command);
    daemon.await_ready();
    assert!(daemon.logged("FLANNELD_IPTABLES_RESYNC"), "{}", daemon.log_text());
    assert!(!daemon.logged("s3cret-word"), "{}", daemon.log_text());
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
}

/// Runs `loden` in the first host's namespace, with the cluster's run directory.
fn loden(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    command.args(arguments).arg("--run-dir").arg(cluster.place.path());
    cluster.host(1).namespace().output(&mut command).expect("a run")
}

/// Builds `loden run` for the first host, without a network configuration.
fn bare(cluster: &Cluster) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    command
        .args(["run", "--iface", cluster.host(1).uplink(), "--store"])
        .arg(format!("sqlite:{}", cluster.store().display()))
        .arg("--subnet-file")
        .arg(cluster.file("host1.env"))
        .arg("--run-dir")
        .arg(cluster.place.path())
        .args(["--iptables-forward-rules=false", "--require-br-netfilter=false"]);
    command
}

/// Returns the status code and the body of an answer.
fn get(cluster: &Cluster, path: &str) -> Option<(String, String)> {
    common::get(cluster, 1, PORT, path)
}

fn state_files(cluster: &Cluster) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(cluster.place.path()).expect("a directory").flatten().map(|entry| entry.path());
    let counters = cluster.file("host1.json");
    entries.filter(|path| *path != counters && path.extension().is_some_and(|kind| kind == "json")).collect()
}
