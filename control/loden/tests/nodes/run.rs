//! `loden run` as a process: what it puts on a host, what it takes away, and how it refuses.
//!
//! Each test has a lab of its own; the daemons share a store file as on one machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Lab, Process, Topology};
use model::lease::{Lease, SubnetKey};
use nix::sys::signal::Signal;
use store::{Spec, Store};

use crate::common;

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{"Type":"vxlan","VNI":7}}"#;
const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;
/// Nothing here takes longer unless it is broken.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_start_leaves_what_flannel_would_and_a_stop_leaves_it_there() {
    let Some(world) = World::new("run", 1) else { return };
    let mut daemon = world.start(0, VXLAN);
    world.await_ready(0, &mut daemon);
    let lease = world.leases().remove(0);
    let subnet = lease.subnet().expect("an IPv4 subnet");
    let env = fs::read_to_string(world.subnet_file(0)).expect("subnet.env");
    let gateway = format!("{}1/24", subnet.network().to_string().strip_suffix('0').expect("base"));
    assert_eq!(
        env,
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        )
    );
    let shown = world.shell(0, "ip -o -4 addr show dev flannel.1");
    assert!(shown.contains(&format!("inet {}/32 ", subnet.network())), "{shown}");
    let json = lease.attrs.to_json();
    let start = r#"{"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":""#;
    assert!(json.starts_with(start), "{json}");

    daemon.signal(Signal::SIGTERM).expect("signal");
    let status = daemon.wait(LIMIT).expect("wait").expect("an end");
    assert_eq!(status.code(), Some(0), "{}", daemon.stderr_tail());
    assert!(world.shell(0, "ip -o link | grep flannel || true").contains("flannel.1"), "as flannel's stays");
    assert_eq!(fs::read_to_string(world.subnet_file(0)).expect("kept"), env);
    assert_eq!(world.leases().len(), 1, "the lease is kept");

    let mut again = world.start(0, VXLAN);
    await_until("the store's word", &mut again, || daemon_said(&world, 0, "the store has confirmed"));
    await_until("the lease", &mut again, || world.leases()[0].expires >= lease.expires);
    assert_eq!(world.leases()[0].key, lease.key, "the same subnet by the same address");
    assert_eq!(world.leases()[0].attrs, lease.attrs, "peers need not learn a new MAC");
    again.signal(Signal::SIGINT).expect("signal");
    assert_eq!(again.wait(LIMIT).expect("wait").expect("an end").code(), Some(0));
}

#[test]
fn peers_that_come_and_go_are_routes_that_come_and_go() {
    let Some(world) = World::new("peer", 2) else { return };
    let mut first = world.start(0, DUAL);
    world.await_ready(0, &mut first);
    assert_eq!(world.shell(0, "ip route show dev flannel.7"), "");
    let mut second = world.start(1, DUAL);
    world.await_ready(1, &mut second);
    // The second knew the first before it said ready.
    let keys: Vec<SubnetKey> = world.leases().iter().map(|lease| lease.key).collect();
    let of = |host: usize| {
        let public = std::net::Ipv4Addr::new(198, 18, 0, host as u8 + 1);
        world.leases().into_iter().find(|lease| lease.attrs.public_ip == public).expect("a lease")
    };
    assert_eq!(keys.len(), 2);
    assert_eq!(world.shell(1, "ip route show dev flannel.7"), route(&of(0)));
    assert!(world.shell(1, "ip -6 route show dev flannel-v6.7 proto boot").starts_with(&route_v6(&of(0))));
    await_until("the route", &mut first, || world.shell(0, "ip route show dev flannel.7") == route(&of(1)));

    let key = of(1).key;
    world.in_store(async |store| assert!(store.remove(&key).await.expect("store")));
    // The second takes its subnet again, so the route goes and comes back, or never went.
    await_until("the lease", &mut second, || world.leases().len() == 2);
    await_until("the route", &mut first, || world.shell(0, "ip route show dev flannel.7") == route(&of(1)));

    second.stop().expect("stop");
    world.in_store(async |store| assert!(store.remove(&key).await.expect("store")));
    await_until("the route's end", &mut first, || world.shell(0, "ip route show dev flannel.7").is_empty());
}

#[test]
fn udp_is_one_device_with_one_route() {
    let Some(world) = World::new("udp", 1) else { return };
    let mut daemon = world.start(0, UDP);
    world.await_ready(0, &mut daemon);
    assert_eq!(world.shell(0, "ip route show dev flannel0"), "10.244.0.0/16");
    assert_eq!(world.leases()[0].attrs.to_json(), r#"{"PublicIP":"198.18.0.1","PublicIPv6":null}"#);
    assert!(fs::read_to_string(world.subnet_file(0)).expect("file").contains("FLANNEL_MTU=1472\n"));
}

#[test]
fn counters_are_a_file_and_log_lines() {
    let Some(world) = World::new("count", 1) else { return };
    let counters = world.directory.path().join("counters.json");
    let mut command = world.command(0, VXLAN);
    command.arg("--counters-file").arg(&counters).args(["--without", "uso,gro", "--workers", "1"]);
    let mut daemon = world.spawn(0, &mut command);
    world.await_ready(0, &mut daemon);
    await_until("the counters", &mut daemon, || counters.exists());
    daemon.signal(Signal::SIGUSR1).expect("signal");
    await_until("the log line", &mut daemon, || daemon_said(&world, 0, "counters are not zero"));
    daemon.stop().expect("stop");
    let text = fs::read_to_string(&counters).expect("counters");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let tunnel = &json["tunnels"][0];
    assert_eq!(tunnel["device"], "flannel.1");
    assert_eq!((&tunnel["features"]["uso"], &tunnel["features"]["gro"]), (&false.into(), &false.into()));
    assert_eq!(tunnel["workers"].as_array().map(Vec::len), Some(1));
    assert!(tunnel["totals"]["egress.packets"].is_u64(), "{text}");
}

#[test]
fn a_stolen_lease_ends_the_daemon() {
    let Some(world) = World::new("thief", 1) else { return };
    let mut daemon = world.start(0, VXLAN);
    world.await_ready(0, &mut daemon);
    let config = VXLAN.replace(r#""vxlan""#, r#""vxlan","VNI":2,"Port":9999"#);
    // Of the same name it would not even start.
    let thief = world.spawn(0, world.command(0, &config).args(["--instance", "thief"]));
    let status = daemon.wait(LIMIT).expect("wait").expect("an end");
    assert_eq!(status.code(), Some(1));
    let words = daemon.stderr_tail();
    assert!(words.contains("another daemon publishes the same address"), "{words}");
    drop(thief);
}

#[test]
fn a_start_that_cannot_succeed_is_one_line_and_leaves_nothing() {
    if !common::needs(&[]).and("the kernel's vxlan", common::has_vxlan()).are_met() {
        return;
    }
    let Some(world) = World::new("bad", 1) else { return };
    let garbage = world.directory.path().join("garbage.db");
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
            world.shell(0, set_up);
        }
        let mut command = world.command(0, &config);
        if let Some((flag, value)) = change {
            let kept: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            let at = kept.iter().position(|arg| arg == flag).expect("given once");
            command = Command::new(env!("CARGO_BIN_EXE_loden"));
            command.args(
                kept.iter()
                    .enumerate()
                    .map(|(i, arg)| if i == at + 1 { value.as_ref() } else { arg.as_os_str() }),
            );
        }
        let mut daemon = world.spawn(0, &mut command);
        let status = daemon.wait(LIMIT).expect("wait").expect("an end");
        let words = daemon.stderr_tail();
        assert_eq!(status.code(), Some(1), "{expected}: {words}");
        let last = words.lines().last().unwrap_or_default();
        assert!(last.starts_with("loden: ") && last.contains(expected), "{expected}: {words}");
        assert_eq!(words.lines().filter(|line| line.starts_with("loden: ")).count(), 1, "{words}");
        assert!(!world.subnet_file(0).exists(), "{expected}");
        world.shell(0, "ip link del v0 2>/dev/null; ip link show flannel.1 type bridge >/dev/null 2>&1 && ip link del flannel.1; true");
        assert_eq!(world.shell(0, "ip -o link | grep flannel || true"), "", "{expected}");
    }
}

#[test]
fn the_doctor_answers_in_json_and_by_its_exit_code() {
    let Some(world) = World::new("doc", 1) else { return };
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    let output = world.lab.hosts()[0].namespace().output(command.args(["doctor", "--json"])).expect("a run");
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
    assert_eq!(world.shell(0, "ip -o link | grep -v -e lo: -e eth0 -e pod || true"), "", "nothing is left");
}

#[test]
fn without_rights_it_says_which() {
    let mut user = Command::new("unshare");
    let user = user.args(["--user", "true"]).status().is_ok_and(|status| status.success());
    if !common::needs(&["setpriv"]).and("user namespaces (sysctl user.max_user_namespaces)", user).are_met() {
        return;
    }
    let Some(world) = World::new("right", 1) else { return };
    let loden = env!("CARGO_BIN_EXE_loden");
    let store = format!("sqlite:{}", world.store.display());
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-current-user",
        "--",
        "setpriv",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
        loden,
    ]);
    command.args(["run", "--store", &store, "--net-config-json", VXLAN, "--iface", "eth0", "--subnet-file"]);
    command.arg(world.subnet_file(0)).arg("--run-dir").arg(world.directory.path());
    let mut daemon = world.spawn(0, &mut command);
    let status = daemon.wait(LIMIT).expect("wait").expect("an end");
    let words = daemon.stderr_tail();
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.lines().last().is_some_and(|line| line.contains("CAP_NET_ADMIN")), "{words}");
    assert!(world.leases().is_empty(), "a node that cannot forward takes no lease");
}

fn route(lease: &Lease) -> String {
    let subnet = lease.subnet().expect("IPv4");
    format!("{subnet} via {} onlink", subnet.network())
}

fn route_v6(lease: &Lease) -> String {
    let subnet = lease.ipv6_subnet().expect("IPv6");
    format!("{subnet} via {} metric 1024 onlink", subnet.network())
}

fn daemon_said(world: &World, host: usize, words: &str) -> bool {
    fs::read_to_string(world.log(host)).is_ok_and(|log| log.contains(words))
}

fn await_until(what: &str, daemon: &mut Process, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        let status = daemon.try_wait().expect("wait");
        assert!(status.is_none(), "waiting for {what}: {status:?}: {}", daemon.stderr_tail());
        assert!(Instant::now() < end, "waited too long for {what}: {}", daemon.stderr_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Hosts, a directory, and a store in it.
struct World {
    lab: Lab,
    directory: tempfile::TempDir,
    store: PathBuf,
}

impl World {
    /// Returns `None` where the test cannot run.
    fn new(name: &str, hosts: usize) -> Option<World> {
        if !common::ready(&["ip"]) {
            return None;
        }
        let lab = Lab::build(&Topology::new(name, hosts)).expect("a lab");
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("leases.db");
        Some(World { lab, directory, store })
    }

    fn command(&self, host: usize, config: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command
            .args(["run", "--iface", "eth0", "--net-config-json", config, "--store"])
            .arg(format!("sqlite:{}", self.store.display()))
            .arg("--subnet-file")
            .arg(self.subnet_file(host))
            .arg("--run-dir")
            .arg(self.directory.path());
        command
    }

    fn start(&self, host: usize, config: &str) -> Process {
        self.spawn(host, &mut self.command(host, config))
    }

    fn spawn(&self, host: usize, command: &mut Command) -> Process {
        let log = self.log(host);
        let _ = fs::remove_file(&log);
        Process::spawn_logged(self.lab.hosts()[host].namespace(), command, &log).expect("a process")
    }

    fn await_ready(&self, host: usize, daemon: &mut Process) {
        await_until("subnet.env", daemon, || self.subnet_file(host).exists());
    }

    fn log(&self, host: usize) -> PathBuf {
        self.directory.path().join(format!("{host}.log"))
    }

    fn subnet_file(&self, host: usize) -> PathBuf {
        self.directory.path().join(format!("{host}.env"))
    }

    fn leases(&self) -> Vec<Lease> {
        self.in_store(async |store| store.leases().await.expect("leases"))
    }

    fn in_store<R>(&self, work: impl AsyncFnOnce(Store) -> R) -> R {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let spec = Spec::Sqlite(self.store.clone());
        runtime.block_on(async { work(Store::open(spec).await.expect("the store")).await })
    }

    fn shell(&self, host: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        let output = self.lab.hosts()[host].namespace().output(command.args(["-c", line])).expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }
}
