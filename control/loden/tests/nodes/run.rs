//! `loden run` as a process: what it puts on a host, what it takes away, and how it refuses to start.
//!
//! Each test has a lab of its own; the daemons share a store file as on one machine.

use std::fs;
use std::process::Command;

use lab::Wiring;
use model::lease::SubnetKey;
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, UDP, VXLAN, await_until, replace, route, route_v6};

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{"Type":"vxlan","VNI":7}}"#;

#[test]
fn a_start_leaves_what_flannel_would_and_a_stop_leaves_it_there() {
    let Some(cluster) = cluster("run", 1, VXLAN) else { return };
    let mut daemon = cluster.start(1, &[]);
    let lease = cluster.lease(1);
    let subnet = lease.subnet().expect("an IPv4 subnet");
    let env = fs::read_to_string(&daemon.subnet_file).expect("subnet.env");
    let gateway = format!("{}1/24", subnet.network().to_string().strip_suffix('0').expect("base"));
    assert_eq!(
        env,
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        )
    );
    let shown = cluster.shell(1, "ip -o -4 addr show dev flannel.1");
    assert!(shown.contains(&format!("inet {}/32 ", subnet.network())), "{shown}");
    let json = lease.attrs.to_json();
    let start = r#"{"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":""#;
    assert!(json.starts_with(start), "{json}");

    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
    assert!(
        cluster.shell(1, "ip -o link | grep flannel || true").contains("flannel.1"),
        "as flannel's stays"
    );
    assert_eq!(fs::read_to_string(&daemon.subnet_file).expect("kept"), env);
    assert_eq!(cluster.leases().len(), 1, "the lease is kept");

    let mut again = cluster.start(1, &[]);
    await_until("the store's word", || again.logged("the store has confirmed"));
    await_until("the lease", || cluster.lease(1).expires >= lease.expires);
    assert_eq!(cluster.lease(1).key, lease.key, "the same subnet by the same address");
    assert_eq!(cluster.lease(1).attrs, lease.attrs, "peers need not learn a new MAC address");
    assert_eq!(again.end(Signal::SIGINT).code(), Some(0));
}

#[test]
fn peers_that_come_and_go_are_routes_that_come_and_go() {
    let Some(cluster) = cluster("peer", 2, DUAL) else { return };
    let _first = cluster.start(1, &[]);
    let routes = |number| cluster.shell(number, "ip route show dev flannel.7");
    assert_eq!(routes(1), "");
    let mut second = cluster.start(2, &[]);
    // The second knew the first before it reported ready.
    let keys: Vec<SubnetKey> = cluster.leases().iter().map(|lease| lease.key).collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(routes(2), route(&cluster.lease(1)));
    let shown = cluster.shell(2, "ip -6 route show dev flannel-v6.7 proto boot");
    assert!(shown.starts_with(&route_v6(&cluster.lease(1))), "{shown}");
    await_until("the route", || routes(1) == route(&cluster.lease(2)));

    let key = cluster.lease(2).key;
    cluster.in_store(async |store| assert!(store.remove(&key).await.expect("store")));
    // The second takes its subnet again, so the route goes and comes back, or never went.
    await_until("the lease", || cluster.leases().len() == 2);
    await_until("the route", || routes(1) == route(&cluster.lease(2)));

    second.end(Signal::SIGTERM);
    cluster.in_store(async |store| assert!(store.remove(&key).await.expect("store")));
    await_until("the route's end", || routes(1).is_empty());
}

#[test]
fn udp_is_one_device_with_one_route() {
    let Some(cluster) = cluster("udp", 1, UDP) else { return };
    let daemon = cluster.start(1, &[]);
    assert_eq!(cluster.shell(1, "ip route show dev flannel0"), "10.244.0.0/16");
    assert_eq!(cluster.lease(1).attrs.to_json(), r#"{"PublicIP":"198.18.0.1","PublicIPv6":null}"#);
    assert!(fs::read_to_string(&daemon.subnet_file).expect("file").contains("FLANNEL_MTU=1472\n"));
}

#[test]
fn counters_are_a_file_and_log_lines() {
    let Some(cluster) = cluster("count", 1, VXLAN) else { return };
    let mut daemon = cluster.start(1, &["--without", "uso,gro", "--workers", "1"]);
    await_until("the counters", || daemon.counters_file.exists());
    daemon.process.signal(Signal::SIGUSR1).expect("signal");
    await_until("the log line", || daemon.logged("non-zero counters"));
    daemon.end(Signal::SIGTERM);
    let text = fs::read_to_string(&daemon.counters_file).expect("counters");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let tunnel = &json["tunnels"][0];
    assert_eq!(tunnel["device"], "flannel.1");
    assert_eq!((&tunnel["features"]["uso"], &tunnel["features"]["gro"]), (&false.into(), &false.into()));
    assert_eq!(tunnel["workers"].as_array().map(Vec::len), Some(1));
    assert!(tunnel["totals"]["egress.packets"].is_u64(), "{text}");
}

#[test]
fn a_stolen_lease_ends_the_daemon() {
    let Some(mut cluster) = cluster("thief", 1, VXLAN) else { return };
    let mut daemon = cluster.start(1, &[]);
    cluster.config = VXLAN.replace(r#""vxlan""#, r#""vxlan","VNI":2,"Port":9999"#);
    let mut thief = cluster.command(1);
    // With the same name and files it would not even start.
    thief.args(["--instance", "thief"]);
    for option in ["--subnet-file", "--counters-file"] {
        replace(&mut thief, option, &cluster.file(&format!("thief{option}")).display().to_string());
    }
    let thief = lab::Process::spawn(cluster.host(1).namespace(), &mut thief).expect("a process");
    assert_eq!(daemon.await_end().code(), Some(1));
    assert!(daemon.logged("another daemon publishes the same address"), "{}", daemon.log_text());
    drop(thief);
}

#[test]
fn a_start_that_cannot_succeed_is_one_line_and_leaves_nothing() {
    if !common::needs(&[]).and("the kernel's vxlan", common::has_vxlan()).are_met() {
        return;
    }
    let Some(mut cluster) = cluster("bad", 1, VXLAN) else { return };
    let garbage = cluster.file("garbage.db");
    fs::write(&garbage, [0x5a; 5000]).expect("write");
    let garbage = format!("sqlite:{}", garbage.display());
    let text = |text: &str| VXLAN.replace(r#"{"Type":"vxlan"}"#, text);
    let taken = "ip link add flannel.1 type bridge";
    let busy = "ip link add v0 type vxlan id 9 dstport 8472 dev eth0 && ip link set v0 up";
    for (set_up, config, change, expected) in [
        ("", text(r#"{"Type":"vxlan","VNI":-1}"#), None, "Backend.VNI = -1: must be between 0 and 16777215"),
        (
            "",
            text(r#"{"Type":"wireguard","Mode":"ipv6"}"#),
            None,
            "Backend.Type = wireguard: Mode ipv6 needs nodes with IPv6 addresses",
        ),
        ("", text(r#"{"Type":"quic"}"#), None, r#"Backend.Type = "quic": must be vxlan, udp"#),
        ("", VXLAN.into(), Some(("--iface", "eth9")), "--iface eth9: no interface has this name"),
        ("", VXLAN.into(), Some(("--store", garbage.as_str())), "garbage.db"),
        ("", VXLAN.into(), Some(("--store", "sqlite:/nosuch/leases.db")), "/nosuch does not exist"),
        (taken, VXLAN.into(), None, "flannel.1"),
        (busy, VXLAN.into(), None, "8472"),
    ] {
        if !set_up.is_empty() {
            cluster.shell(1, set_up);
        }
        cluster.config = config;
        let mut command = cluster.command(1);
        if let Some((option, value)) = change {
            replace(&mut command, option, value);
        }
        let mut daemon = cluster.spawn(1, &mut command);
        let status = daemon.await_end();
        let words = daemon.log_text();
        assert_eq!(status.code(), Some(1), "{expected}: {words}");
        let last = words.lines().last().unwrap_or_default();
        assert!(last.starts_with("loden: ") && last.contains(expected), "{expected}: {words}");
        assert_eq!(words.lines().filter(|line| line.starts_with("loden: ")).count(), 1, "{words}");
        assert!(!daemon.subnet_file.exists(), "{expected}");
        cluster.shell(1, "ip link del v0 2>/dev/null; ip link del flannel.1 type bridge 2>/dev/null; true");
        assert_eq!(cluster.shell(1, "ip -o link | grep flannel || true"), "", "{expected}");
    }
}

#[test]
fn the_doctor_answers_in_json_and_by_its_exit_code() {
    let Some(cluster) = cluster("doc", 1, VXLAN) else { return };
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    let output = cluster.host(1).namespace().output(command.args(["doctor", "--json"])).expect("a run");
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((output.status.code(), &json["can_run"]), (Some(0), &true.into()), "{text}");
    let findings = json["findings"].as_array().expect("findings");
    let find =
        |name: &str| findings.iter().find(|finding| finding["name"] == name).cloned().unwrap_or_default();
    assert_eq!(find("/dev/net/tun")["verdict"], "yes");
    assert_eq!(find("IPv4 forwarding")["verdict"], "yes", "the lab turns it on");
    assert_eq!(find("interface eth0")["detail"], "MTU 1500");
    let features: Vec<_> =
        json["chosen"].as_array().expect("chosen").iter().map(|c| c["feature"].clone()).collect();
    assert_eq!(features, ["tso", "uso", "gso", "gro", "mmsg", "multiqueue"]);
    assert_eq!(cluster.shell(1, "ip -o link | grep -v -e lo: -e eth0 -e pod || true"), "", "nothing is left");
}

/// What it takes to notice that the host damages joined datagrams (docs/decisions/0027-own-nat.md).
#[test]
fn the_doctor_tells_whether_own_snat_is_noticed() {
    if !common::needs(&["setpriv"]).are_met() {
        return;
    }
    let Some(cluster) = cluster("doc-nat", 1, VXLAN) else { return };
    for (bounds, verdict) in [("+all", "yes"), ("-net_admin", "no")] {
        let mut command = Command::new("setpriv");
        let doctor = ["--", env!("CARGO_BIN_EXE_loden"), "doctor", "--json"];
        command.arg(format!("--bounding-set={bounds}")).args(doctor);
        let output = cluster.host(1).namespace().output(&mut command).expect("a run");
        let text = String::from_utf8_lossy(&output.stdout);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let mut findings = json["findings"].as_array().expect("findings").iter();
        let found = findings.find(|one| one["name"] == "notice of this host's own SNAT").expect("a finding");
        assert_eq!(found["verdict"], verdict, "{found}");
        if verdict == "no" {
            let said = |key: &str| found[key].as_str().expect("text");
            assert!(said("detail").contains("CAP_NET_ADMIN"), "{found}");
            assert!(said("cost").contains("checksum offload"), "{found}");
            assert!(said("fix").contains("--without gso"), "{found}");
        }
    }
}

#[test]
fn without_rights_it_says_which() {
    let mut user = Command::new("unshare");
    let user = user.args(["--user", "true"]).status().is_ok_and(|status| status.success());
    if !common::needs(&["setpriv"]).and("user namespaces (sysctl user.max_user_namespaces)", user).are_met() {
        return;
    }
    let Some(cluster) = cluster("right", 1, VXLAN) else { return };
    let usual = cluster.command(1);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-current-user", "--"]);
    command.args(["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]);
    command.arg(usual.get_program()).args(usual.get_args());
    let mut daemon = cluster.spawn(1, &mut command);
    assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
    let words = daemon.log_text();
    assert!(words.lines().last().is_some_and(|line| line.contains("CAP_NET_ADMIN")), "{words}");
    assert!(cluster.leases().is_empty(), "a node that cannot forward takes no lease");
}

fn cluster(name: &str, hosts: usize, config: &str) -> Option<Cluster> {
    common::ready(&[]).then(|| Cluster::build(name, hosts, Wiring::Switch, config))
}
