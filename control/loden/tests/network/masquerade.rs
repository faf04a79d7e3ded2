//! The effect of the traffic rules on packets, in both modes and both families; then the rules of a running
//! daemon.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use control::netlink::Netlink;
use control::settings::TrafficSettings;
use control::traffic::program::Programs;
use control::traffic::rules::Nets;
use control::traffic::{Networks, Traffic};
use lab::{Namespace, Route, Wiring, mounts, veth};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, await_until};

const KINDS: [&str; 3] = ["iptables-nft", "iptables-legacy", "nftables"];
const NEEDED: [&str; 3] = ["iptables-nft-save", "iptables-legacy-save", "nft"];

#[test]
fn who_is_seen_on_the_wire() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        for family in [V4, V6] {
            let world = World::build(kind, family);
            world.put_rules(kind);
            let World { pod, outside, remote, node, .. } = &world;
            // From outside to a remote pod, and from a host socket with an uplink address: here the two modes
            // differ, as in flannel.
            let strange = |source| if kind == "nftables" { source } else { family.base };
            for (what, from, bound, to, seen) in [
                ("pod to outside", pod, None, (outside, family.outside), family.node),
                ("pod to remote pod", pod, None, (remote, family.remote), family.pod),
                ("remote pod to pod", remote, None, (pod, family.pod), family.remote),
                ("outside to pod", outside, None, (pod, family.pod), family.outside),
                ("outside to remote pod", outside, None, (remote, family.remote), strange(family.outside)),
                ("host to remote pod", node, None, (remote, family.remote), family.base),
                (
                    "uplink to remote pod",
                    node,
                    Some(family.node),
                    (remote, family.remote),
                    strange(family.node),
                ),
                ("host to pod", node, None, (pod, family.pod), family.gateway),
                ("host to outside", node, None, (outside, family.outside), family.node),
            ] {
                let source = exchange(from, bound, to);
                assert_eq!(source.ip(), seen, "{kind}: {what}");
            }
            for (mark, masked) in [("0x4000", true), ("0x4001", kind != "nftables"), ("0x8000", false)] {
                world.mark(mark);
                let seen = if masked { family.pod } else { family.node };
                assert_eq!(exchange(pod, None, (outside, family.outside)).ip(), seen, "{kind}: mark {mark}");
            }
        }
        let world = World::build(kind, V4);
        world.put_rules(kind);
        assert_eq!(world.multicast(), V4.gateway, "{kind}: multicast keeps its source");
    }
}

#[test]
fn a_filter_that_drops_lets_pods_through() {
    if !ready() {
        return;
    }
    for kind in &KINDS[..2] {
        let world = World::build(kind, V4);
        world.in_node(&format!("printf '*filter\\n:FORWARD DROP [0:0]\\nCOMMIT\\n' | {kind}-restore"));
        let dropped = try_exchange(&world.pod, None, (&world.remote, V4.remote), Duration::from_secs(2));
        assert!(dropped.is_none(), "{kind}: {dropped:?}");
        world.put_rules(kind);
        assert_eq!(exchange(&world.pod, None, (&world.remote, V4.remote)).ip(), V4.pod, "{kind}");
    }
}

#[test]
fn a_daemon_puts_rules_before_it_is_ready_and_keeps_them() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let cluster = Cluster::build("mqd", 1, Wiring::Switch, &config(kind));
        let place = programs(kind);
        let mut daemon = cluster.spawn(1, with_path(&mut cluster.command(1), place.path()).args(ARGUMENTS));
        await_until("subnet.env", || daemon.subnet_file.exists());
        let listed = || cluster.shell(1, &listing(kind));
        let first = listed();
        assert_eq!(first.matches("asquerade").count() + first.matches("MASQUERADE").count(), 2, "{first}");
        assert!(fs::read_to_string(&daemon.subnet_file).expect("read").ends_with("FLANNEL_IPMASQ=true\n"));
        assert!(cluster.shell(1, "ip route show type blackhole").starts_with("blackhole 10.244."));
        daemon.await_ready();

        cluster.shell(1, "ip route flush type blackhole");
        cluster.shell(1, &flush(kind));
        assert_ne!(listed(), first);
        await_until("the rules", || listed() == first);
        await_until("the route", || !cluster.shell(1, "ip route show type blackhole").is_empty());
        let status = daemon.end(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{}", daemon.log_text());
        assert_eq!(listed(), first, "a stop leaves the rules");
        assert!(!cluster.shell(1, "ip route show type blackhole").is_empty());
    }
}

#[test]
fn without_the_programs_masquerading_is_refused_and_forwarding_is_told() {
    if !ready() {
        return;
    }
    for (kind, package) in [("iptables-nft", "iptables"), ("nftables", "nftables")] {
        let cluster = Cluster::build("mqm", 1, Wiring::Switch, &config(kind));
        mounts::private(|| {
            // Only the daemon itself can be executed.
            for place in ["/usr/sbin", "/sbin"] {
                mounts::tmpfs(Path::new(place), "4k").expect("a tmpfs");
            }
            let mut daemon = cluster.spawn(1, cluster.command(1).env("PATH", "/nowhere").arg("--ip-masq"));
            assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
            assert!(daemon.logged(&format!("install the package {package}")), "{}", daemon.log_text());
            assert!(!daemon.subnet_file.exists());
            let mut daemon = cluster.spawn(1, cluster.command(1).env("PATH", "/nowhere"));
            daemon.await_ready();
            assert!(daemon.logged(&format!("install the package {package}")), "{}", daemon.log_text());
            daemon.end(Signal::SIGTERM);
        })
        .expect("private mounts");
    }
}

#[test]
fn another_holder_of_the_lock_is_waited_for() {
    if !ready() {
        return;
    }
    let cluster = Cluster::build("mql", 1, Wiring::Switch, common::VXLAN);
    let (place, path) = (programs("iptables-legacy"), cluster.file("xtables.lock"));
    let file = fs::File::create(&path).expect("a lock file");
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("the lock");
    let mut command = cluster.command(1);
    command.env("XTABLES_LOCKFILE", &path).args(ARGUMENTS);
    let mut daemon = cluster.spawn(1, with_path(&mut command, place.path()));
    let waiting = format!("/proc/{}/task/{}/children", daemon.process.id(), daemon.process.id());
    let restores = || {
        let children = fs::read_to_string(&waiting).unwrap_or_default();
        let mut names =
            children.split_whitespace().map(|id| fs::read_to_string(format!("/proc/{id}/cmdline")));
        names.any(|name| name.is_ok_and(|name| name.contains("restore") && name.contains("--wait")))
    };
    await_until("iptables-restore", restores);
    assert!(!daemon.subnet_file.exists() && daemon.is_running(), "it waits");
    lock.unlock().map_err(|(_, errno)| errno).expect("unlocked");
    daemon.await_ready();
    assert!(cluster.shell(1, &listing("iptables-legacy")).contains("MASQUERADE"));

    // Held for longer than iptables waits: the daemon logs it, continues, and repairs the rules once the lock
    // is free.
    let file = fs::File::open(&path).expect("the lock file");
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("the lock");
    cluster.shell(1, "printf '*nat\\nCOMMIT\\n' | iptables-legacy-restore");
    await_until("a complaint", || daemon.logged("xtables lock"));
    drop(lock);
    await_until("the rules", || cluster.shell(1, &listing("iptables-legacy")).contains("MASQUERADE"));
    assert_eq!(daemon.log_text().matches("xtables lock").count(), 1, "logged once: {}", daemon.log_text());
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));

    // A start fails, because pods would not be masqueraded.
    let file = fs::File::open(&path).expect("the lock file");
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("the lock");
    cluster.shell(1, "printf '*nat\\nCOMMIT\\n' | iptables-legacy-restore");
    let mut daemon = cluster.spawn(1, with_path(&mut command, place.path()));
    assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
    assert!(
        daemon.log_text().lines().last().is_some_and(|line| line.contains("xtables lock")),
        "{}",
        daemon.log_text()
    );
    drop(lock);
}

#[test]
fn a_kernel_without_br_netfilter_is_refused_only_for_iptables() {
    if !ready() {
        return;
    }
    let cluster = |config: &str| Cluster::build("mqb", 1, Wiring::Switch, config);
    mounts::private(|| {
        let world = cluster(common::VXLAN);
        let mut daemon = world.spawn(1, &mut without_bridges(&world.command(1)));
        assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
        assert!(daemon.logged("br_netfilter is not loaded (/proc/sys/net/bridge/bridge-nf-call-iptables"));
        let mut command = world.command(1);
        let mut daemon = world.spawn(1, &mut without_bridges(command.arg("--require-br-netfilter=false")));
        daemon.await_ready();
        assert!(daemon.logged("br_netfilter is not loaded: "), "{}", daemon.log_text());
        daemon.end(Signal::SIGTERM);
        drop(world);
        let world = cluster(&config("nftables"));
        let mut daemon = world.spawn(1, &mut without_bridges(&world.command(1)));
        daemon.await_ready();
        assert!(!daemon.logged("br_netfilter"), "{}", daemon.log_text());
        daemon.end(Signal::SIGTERM);
    })
    .expect("private mounts");
}

/// Returns whether the tests can run. Some kernels have nftables only.
fn ready() -> bool {
    let legacy = || {
        let namespace = Namespace::create(&format!("legacy{}-probe", std::process::id())).ok()?;
        let mut command = Command::new(lab::find("iptables-legacy-save")?);
        Some(namespace.output(command.args(["-t", "nat"])).ok()?.status.success())
    };
    common::needs(&NEEDED).and("a kernel with the legacy iptables", legacy() == Some(true)).are_met()
}

const ARGUMENTS: [&str; 3] = ["--ip-masq", "--ip-blackhole-route", "--iptables-resync=1"];

/// Wraps the command so that it does not see br_netfilter, whose sysctls are per namespace and can only be
/// hidden from inside.
fn without_bridges(command: &Command) -> Command {
    let mut hidden = Command::new("sh");
    let hide = r#"mount -t tmpfs none /proc/sys/net/bridge && exec "$@""#;
    hidden.args(["-c", hide, "sh"]).arg(command.get_program()).args(command.get_args());
    hidden
}

fn config(kind: &str) -> String {
    match kind {
        "nftables" => common::VXLAN.replace(r#""Backend""#, r#""EnableNFTables":true,"Backend""#),
        _ => common::VXLAN.to_owned(),
    }
}

/// Creates a directory in which `iptables` is of one kind.
fn programs(kind: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a directory");
    for family in ["iptables", "ip6tables"] {
        let kind = kind.replace("nftables", "iptables-nft").replace("iptables", family);
        for what in ["save", "restore"] {
            let real = lab::find(&format!("{kind}-{what}")).expect("asked for before");
            std::os::unix::fs::symlink(real, place.path().join(format!("{family}-{what}"))).expect("a link");
        }
    }
    place
}

fn with_path<'a>(command: &'a mut Command, first: &Path) -> &'a mut Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", first.display()))
}

fn listing(kind: &str) -> String {
    match kind {
        "nftables" => "nft list table ip flannel-ipv4 || true".to_owned(),
        kind => format!("{kind}-save | grep -v '^[#:]'"),
    }
}

fn flush(kind: &str) -> String {
    match kind {
        "nftables" => "nft delete table ip flannel-ipv4".to_owned(),
        kind => format!("printf '*nat\\nCOMMIT\\n' | {kind}-restore"),
    }
}

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    cluster: &'static str,
    own: &'static str,
    /// The first address of the own subnet, on the tunnel device.
    base: IpAddr,
    gateway: IpAddr,
    pod: IpAddr,
    remote: IpAddr,
    node: IpAddr,
    outside: IpAddr,
}

const V4: Family = Family {
    cluster: "10.244.0.0/16",
    own: "10.244.1.0/24",
    base: IpAddr::V4(Ipv4Addr::new(10, 244, 1, 0)),
    gateway: IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)),
    pod: IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2)),
    remote: IpAddr::V4(Ipv4Addr::new(10, 244, 2, 2)),
    node: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)),
    outside: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 9)),
};
const V6: Family = Family {
    cluster: "fd00:244::/48",
    own: "fd00:244:0:1::/64",
    base: v6([0xfd00, 0x244, 0, 1, 0, 0, 0, 0]),
    gateway: v6([0xfd00, 0x244, 0, 1, 0, 0, 0, 1]),
    pod: v6([0xfd00, 0x244, 0, 1, 0, 0, 0, 2]),
    remote: v6([0xfd00, 0x244, 0, 2, 0, 0, 0, 2]),
    node: v6([0xfd00, 0x198, 0, 0, 0, 0, 0, 1]),
    outside: v6([0xfd00, 0x198, 0, 0, 0, 0, 0, 9]),
};

const fn v6(parts: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = parts;
    IpAddr::V6(std::net::Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

/// A node, its pod, a host outside the cluster, and a pod of another node behind a wire that stands for the
/// tunnel.
struct World {
    family: Family,
    node: Namespace,
    pod: Namespace,
    outside: Namespace,
    remote: Namespace,
}

impl World {
    fn build(kind: &str, family: Family) -> World {
        let letter = &kind[kind.len() - 3..];
        let make =
            |what: &str| Namespace::create(&format!("mq{letter}{what}{}", std::process::id())).expect(what);
        let world = World { family, node: make("n"), pod: make("p"), outside: make("o"), remote: make("r") };
        let World { node, pod, outside, remote, .. } = &world;
        for namespace in [node, pod, outside, remote] {
            // Without duplicate address detection the address is usable at once.
            namespace.set_sysctl("net.ipv6.conf.default.accept_dad", "0").expect("no detection");
        }
        for (device, other) in [("pod0", pod), ("eth0", outside), ("flannel.1", remote)] {
            veth((node, device), (other, "eth0"), 1500).expect("a wire");
        }
        let long = if family.base.is_ipv6() { 64 } else { 24 };
        let single = if family.base.is_ipv6() { 128 } else { 32 };
        for (namespace, device, address, prefix) in [
            (node, "pod0", family.gateway, long),
            (node, "eth0", family.node, long),
            (node, "flannel.1", family.base, single),
            (pod, "eth0", family.pod, long),
            (outside, "eth0", family.outside, long),
            (remote, "eth0", family.remote, single),
        ] {
            let network = ipnetwork::IpNetwork::new(address, prefix).expect("a prefix");
            namespace.add_address(device, network).expect("an address");
        }
        let everywhere = if family.base.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
        let route = |namespace: &Namespace, to: &str, via, device| {
            let destination = to.parse().expect("a prefix");
            let route = Route { destination, via, device: Some(device), onlink: via.is_some() };
            namespace.add_route(&route).expect("a route");
        };
        route(pod, everywhere, Some(family.gateway), "eth0");
        route(outside, everywhere, Some(family.node), "eth0");
        route(remote, everywhere, Some(family.base), "eth0");
        route(node, &format!("{}/{single}", family.remote), None, "flannel.1");
        for switch in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            node.set_sysctl(switch, "1").expect("forwarding");
        }
        world
    }

    fn put_rules(&self, kind: &str) {
        let nets = |family: Family| Nets {
            cluster: family.cluster.parse().expect("a prefix"),
            own: family.own.parse().expect("a prefix"),
        };
        let nets = Some(nets(self.family));
        let networks = match self.family.base.is_ipv6() {
            true => Networks { ipv4: None, ipv6: nets },
            false => Networks { ipv4: nets, ipv6: None },
        };
        let settings = TrafficSettings { masquerade: true, ..TrafficSettings::default() };
        let place = programs(kind);
        let directories = ["/usr/sbin", "/sbin"].map(|place| Path::new(place).to_owned());
        let programs =
            Programs::in_directories([place.path().to_owned()].into_iter().chain(directories).collect());
        let put = async {
            let netlink = Netlink::connect().expect("netlink");
            Traffic::start(programs, settings, kind == "nftables", networks, None, netlink)
                .await
                .expect("rules")
        };
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        self.node.run(|| drop(runtime().block_on(put))).expect("inside");
    }

    /// Marks all packets that the node forwards, as kube-proxy marks those to be masqueraded.
    fn mark(&self, mark: &str) {
        let family = if self.family.base.is_ipv6() { "ip6" } else { "ip" };
        self.in_node(&format!(
            "nft 'add table {family} kube; flush table {family} kube; \
             add chain {family} kube pre {{ type filter hook prerouting priority -150; }}; \
             add rule {family} kube pre meta mark set {mark}'"
        ));
    }

    /// Sends a multicast packet from a cluster address of the node and returns the source that the outside
    /// sees.
    fn multicast(&self) -> IpAddr {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let (IpAddr::V4(gateway), IpAddr::V4(node), IpAddr::V4(outside)) =
            (self.family.gateway, self.family.node, self.family.outside)
        else {
            panic!("IPv4 only");
        };
        let listener = self.outside.run(|| {
            let listener = UdpSocket::bind((group, 5353)).expect("bind");
            listener.join_multicast_v4(&group, &outside).expect("join");
            listener.set_read_timeout(Some(common::LIMIT)).expect("a limit");
            listener
        });
        self.node
            .run(|| {
                let socket = UdpSocket::bind((gateway, 0)).expect("bind");
                socket2::SockRef::from(&socket).set_multicast_if_v4(&node).expect("an interface");
                socket.send_to(b"hello", (group, 5353)).expect("send");
            })
            .expect("inside");
        listener.expect("inside").recv_from(&mut [0; 64]).expect("a packet").1.ip()
    }

    fn in_node(&self, line: &str) {
        let output = self.node.output(Command::new("sh").args(["-c", line])).expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn exchange(from: &Namespace, bound: Option<IpAddr>, to: (&Namespace, IpAddr)) -> SocketAddr {
    try_exchange(from, bound, to, common::LIMIT)
        .unwrap_or_else(|| panic!("nothing arrives from {} at {}", from.name(), to.1))
}

/// Sends a datagram and an answer. Returns the source that the receiver saw, if both arrived within `limit`.
fn try_exchange(
    from: &Namespace,
    bound: Option<IpAddr>,
    to: (&Namespace, IpAddr),
    limit: Duration,
) -> Option<SocketAddr> {
    let listener = to.0.run(|| UdpSocket::bind((to.1, 0)).expect("bind")).expect("inside");
    let any: IpAddr = if to.1.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
    let sender = from.run(|| UdpSocket::bind((bound.unwrap_or(any), 0)).expect("bind")).expect("inside");
    for socket in [&listener, &sender] {
        socket.set_read_timeout(Some(limit)).expect("a limit");
    }
    sender.connect(listener.local_addr().expect("an address")).expect("connect");
    sender.send(b"question").expect("send");
    let mut buffer = [0; 64];
    let (_, source) = listener.recv_from(&mut buffer).ok()?;
    listener.send_to(b"answer", source).expect("send");
    sender.recv(&mut buffer).ok().map(|_| source)
}
