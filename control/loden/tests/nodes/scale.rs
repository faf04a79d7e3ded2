//! Two nodes among ten thousand: the leases of the others come, change and go on a real etcd as fast as it
//! accepts them, while a flow between the two loses nothing. After each step the routes, the peers and the
//! destinations of packets match the store, one by one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::Wiring;
use socket2::{Domain, Protocol, Socket, Type};
use store::testing::etcd::{Security, Server};

use super::etcd::ETCD_PATIENCE;
use crate::common::steady::Steady;
use crate::common::{self, Cluster, Daemon};

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
const LEASES: &str = "/coreos.com/network/subnets/";
/// The number of nodes that are only a lease.
const OTHERS: usize = 10_000;
/// etcd accepts 128 operations in one transaction.
const AT_ONCE: usize = 100;
/// The second octet of their first subnet: all have two digits, so that their keys are one range, after those
/// of the two.
const FIRST: usize = 32;

/// A packet that has not arrived by then is lost.
const LAST: Duration = Duration::from_secs(5);
/// How often a waiting thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(50);

/// A node's public address and its MAC address on the overlay.
type Place = (Ipv4Addr, [u8; 6]);

#[test]
fn ten_thousand_leases_come_change_and_go() {
    if !common::ready(&["etcd", "etcdctl", "openssl", "setpriv", "nsenter", "bash", "xargs"]) {
        return;
    }
    let mut world = World::new();
    let flow = Steady::start(&world.cluster, 1, 2);

    // All join at once.
    world.storm(1);
    world.check();

    // A thousand changes a second, a third of them removals.
    let began = Instant::now();
    for round in 0..40usize {
        let changes: Vec<(usize, Option<u8>)> = (0..AT_ONCE)
            .map(|change| (round * AT_ONCE + change) * 7919 % OTHERS)
            .map(|node| (node, (node % 3 != 0).then_some(2)))
            .collect();
        world.write(&changes);
        thread::sleep(
            (began + Duration::from_millis(100) * round as u32).saturating_duration_since(Instant::now()),
        );
    }
    world.check();

    // etcd crashes and restarts with its data.
    world.etcd.kill();
    world.etcd.restart();
    world.write(&[(1, Some(3)), (2, None)]);
    world.check();

    // Leases change unseen and the history is compacted: the daemons must list all leases again.
    world.unseen(|node| (!node.is_multiple_of(4)).then_some(4));
    world.check();

    // Memory does not grow from one storm to the next.
    let memory = [5, 6].map(|generation| {
        world.clear();
        world.check();
        world.storm(generation);
        world.check();
        world.memory()
    });
    let flow = flow.finish();
    println!("{} datagrams there and back; memory {memory:?} KiB", flow.sent);
    assert_eq!(flow.lost, [0; 0], "of {}", flow.sent);
    for ((before, after), what) in memory[0].iter().zip(memory[1]).zip(["VmRSS", "VmHWM"]) {
        // A leaked set of leases, plan and table would exceed this.
        assert!(after <= before + 6 * 1024, "{what} grows from one storm to the next: {memory:?} KiB");
    }
    assert!(world.daemons.iter_mut().all(Daemon::is_running));
}

struct World {
    daemons: Vec<Daemon>,
    /// The generation of each node's lease.
    leases: BTreeMap<usize, u8>,
    etcd: Server,
    cluster: Cluster,
}

impl World {
    fn new() -> World {
        let mut cluster = Cluster::build("scale", 2, Wiring::Direct, CONFIG);
        // Packets to the others go to the second host and end there.
        cluster.shell(1, &format!("ip route add 172.16.0.0/12 via {}", cluster.host(2).underlay()));
        cluster.shell(2, "ip route add blackhole 172.16.0.0/12");
        let host = cluster.host(1);
        let etcd = Server::start_in(Security::None, host.namespace().path(), host.underlay());
        etcd.etcdctl(&["put", "/coreos.com/network/config", CONFIG]);
        let daemons = [1, 2].map(|number| {
            let mut daemon = start(&cluster, number, &etcd.endpoint());
            daemon.await_ready();
            daemon
        });
        for number in [1, 2] {
            cluster.connect_pod(number);
            cluster.await_routes(number, 1);
        }
        common::ping(&cluster, 1, 2, false);
        World { daemons: daemons.into(), leases: BTreeMap::new(), etcd, cluster }
    }

    /// Stores a lease for each of the others.
    fn storm(&mut self, generation: u8) {
        let all: Vec<_> = (0..OTHERS).map(|node| (node, Some(generation))).collect();
        self.write(&all);
    }

    /// Removes the leases of the others.
    fn clear(&mut self) {
        let (first, end) =
            (format!("{LEASES}10.{FIRST}."), format!("{LEASES}10.{}.", FIRST + OTHERS / 256 + 1));
        self.etcd.etcdctl(&["del", &first, &end]);
        self.leases.clear();
    }

    /// Changes the leases of the others, or removes those for which `generation` returns `None`, while the
    /// daemons cannot see it, and compacts etcd's history.
    fn unseen(&mut self, generation: impl Fn(usize) -> Option<u8>) {
        let changes: Vec<_> = (0..OTHERS).map(|node| (node, generation(node))).collect();
        let World { etcd, cluster, leases, .. } = self;
        etcd.aside(|etcd| {
            write(cluster, leases, &etcd.endpoint(), &changes);
            let status = etcd.etcdctl(&["get", "--write-out=json", "x"]);
            let revision =
                status.split("\"revision\":").nth(1).unwrap().split(&[',', '}'][..]).next().unwrap();
            etcd.etcdctl(&["compact", revision]);
        });
    }

    /// Writes leases of these generations, or removes them.
    fn write(&mut self, changes: &[(usize, Option<u8>)]) {
        write(&self.cluster, &mut self.leases, &self.etcd.endpoint(), changes);
    }

    /// Waits until both nodes match the store exactly.
    fn check(&self) {
        let expected: BTreeMap<Ipv4Addr, Place> =
            self.leases.iter().map(|(node, generation)| (subnet(*node), place(*node, *generation))).collect();
        for number in [1, 2] {
            let other = Ipv4Addr::from(subnet_of(&self.cluster, 3 - number));
            let mut peers = expected.clone();
            peers.insert(other, (self.cluster.host(3 - number).underlay(), self.overlay_mac(3 - number)));
            settle(&format!("the peers of {number}"), &peers, || self.peers(number));
            let routes: BTreeMap<Ipv4Addr, ()> = peers.keys().map(|subnet| (*subnet, ())).collect();
            settle(&format!("the routes of {number}"), &routes, || self.routes(number));
        }
        settle("where packets go", &expected, || self.sightings(&expected));
    }

    /// Returns the peers in a node's `loden status`.
    fn peers(&self, number: usize) -> BTreeMap<Ipv4Addr, Place> {
        // A daemon that takes in ten thousand changes on a busy machine may let a query or two expire.
        let line = format!(
            "for try in 1 2 3 4 5 6; do {LODEN} status --json --run-dir {} && exit; done; exit 1",
            self.cluster.file(&format!("run{number}")).display()
        );
        let status: serde_json::Value = serde_json::from_str(&self.cluster.shell(number, &line)).unwrap();
        let peers = status["daemons"][0]["tunnels"][0]["peers"].as_array().unwrap();
        let text = |peer: &serde_json::Value, key: &str| peer[key].as_str().unwrap().to_owned();
        let entry = |peer| {
            let remote: SocketAddr = text(peer, "remote").parse().unwrap();
            assert_eq!(remote.port(), common::PORT);
            let SocketAddr::V4(remote) = remote else { panic!("{remote}") };
            let subnet = text(peer, "subnet").strip_suffix("/24").unwrap().parse().unwrap();
            (subnet, (*remote.ip(), mac(&text(peer, "mac"))))
        };
        let entries: BTreeMap<_, _> = peers.iter().map(entry).collect();
        assert_eq!(entries.len(), peers.len(), "a subnet twice");
        entries
    }

    /// Returns the destinations of the kernel routes into a node's tunnel. A route that does not have
    /// flannel's form appears as 0.0.0.0, which no node has.
    fn routes(&self, number: usize) -> BTreeMap<Ipv4Addr, ()> {
        let text = self.cluster.shell(number, "ip -4 route show dev flannel.1");
        let of = |line: &str| {
            let subnet: Ipv4Addr = line.split_once("/24 via ")?.0.parse().ok()?;
            (line == format!("{subnet}/24 via {subnet} onlink")).then_some(subnet)
        };
        // Other routes, such as a cover, exist only briefly.
        text.lines().map(|line| (of(line).unwrap_or(Ipv4Addr::UNSPECIFIED), ())).collect()
    }

    /// Sends a packet from the first pod to each of the others and returns where each goes on the wire. Does
    /// not wait for more than is expected.
    fn sightings(&self, expected: &BTreeMap<Ipv4Addr, Place>) -> BTreeMap<Ipv4Addr, Place> {
        // ETH_P_IP, packet(7).
        let protocol = Protocol::from(i32::from(0x0800u16.to_be()));
        let open = || Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol));
        let socket = self.cluster.host(2).namespace().run(open).unwrap().unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(32 << 20)).unwrap();
        socket.set_read_timeout(Some(POLL)).unwrap();
        let pod = self.cluster.pod(1, false);
        let sender =
            self.cluster.host(1).pod().run(|| UdpSocket::bind(SocketAddr::new(pod, 0))).unwrap().unwrap();
        let sent = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(socket, &sent, expected));
            for node in 0..OTHERS {
                let [a, b, c, _] = subnet(node).octets();
                // A subnet without a route gives an error.
                let _ = sender.send_to(b"whither", (Ipv4Addr::new(a, b, c, 9), 9));
                if node % 50 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            sent.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        })
    }

    /// Returns the first daemon's resident memory and its peak, in KiB.
    fn memory(&self) -> [u64; 2] {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemons[0].process.id())).unwrap();
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        })
    }

    fn overlay_mac(&self, number: usize) -> [u8; 6] {
        let [a, b, c, d] = subnet_of(&self.cluster, number);
        let value = self.etcd.etcdctl(&["get", "--print-value-only", &format!("{LEASES}{a}.{b}.{c}.{d}-24")]);
        let value: serde_json::Value = serde_json::from_str(&value).unwrap();
        mac(value["BackendData"]["VtepMAC"].as_str().unwrap())
    }
}

const LODEN: &str = env!("CARGO_BIN_EXE_loden");

fn start(cluster: &Cluster, number: usize, endpoint: &str) -> Daemon {
    let mut command = Command::new(LODEN);
    command.args(["run", "--iface", cluster.host(number).uplink(), "--etcd-endpoints", endpoint]);
    command.arg("--subnet-file").arg(cluster.file(&format!("host{number}.env")));
    command.arg("--run-dir").arg(cluster.file(&format!("run{number}"))).stdout(Stdio::null());
    cluster.spawn(number, &mut command)
}

/// Writes leases in transactions, four at a time.
fn write(
    cluster: &Cluster,
    leases: &mut BTreeMap<usize, u8>,
    endpoint: &str,
    changes: &[(usize, Option<u8>)],
) {
    let directory = tempfile::tempdir_in(cluster.place.path()).unwrap();
    for (number, changes) in changes.chunks(AT_ONCE).enumerate() {
        let mut text = String::from("\n");
        for (node, generation) in changes {
            let key = format!("{LEASES}{}-24", subnet(*node));
            match generation {
                Some(generation) => {
                    // etcdctl 3.4 truncates values in single quotes.
                    writeln!(text, "put {key} {:?}", value(*node, *generation)).unwrap();
                    leases.insert(*node, *generation);
                }
                None => {
                    writeln!(text, "del {key}").unwrap();
                    leases.remove(node);
                }
            }
        }
        fs::write(directory.path().join(format!("{number:03}")), text + "\n\n").unwrap();
    }
    let line = format!(
        "cd {} && ls | ETCDCTL_API=3 \
         xargs -P 4 -I @ sh -c 'etcdctl {ETCD_PATIENCE} --endpoints {endpoint} txn < @ | grep -q ^SUCCESS'",
        directory.path().display()
    );
    cluster.shell(1, &line);
}

/// Waits until `look` returns what is expected. Panics with the difference.
fn settle<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &BTreeMap<Ipv4Addr, T>,
    mut look: impl FnMut() -> BTreeMap<Ipv4Addr, T>,
) {
    let end = Instant::now() + common::LIMIT;
    loop {
        let seen = look();
        if seen == *expected {
            return;
        }
        if Instant::now() > end {
            let missing = expected.iter().filter(|(subnet, at)| seen.get(*subnet) != Some(*at)).take(5);
            let wrong = seen.iter().filter(|(subnet, at)| expected.get(*subnet) != Some(*at)).take(5);
            panic!(
                "{what}: {} where {} are expected; not there {:?}, there {:?}",
                seen.len(),
                expected.len(),
                missing.collect::<Vec<_>>(),
                wrong.collect::<Vec<_>>()
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Reads packets from the wire until the expected ones have been seen and no more come. Returns where they
/// go, by the subnet of their inner destination.
fn read(
    mut socket: Socket,
    sent: &AtomicBool,
    expected: &BTreeMap<Ipv4Addr, Place>,
) -> BTreeMap<Ipv4Addr, Place> {
    let (mut seen, mut buffer) = (BTreeMap::new(), [0; 2048]);
    let mut end = None;
    // Other traffic never lets the socket run empty.
    let mut next_look = Instant::now();
    loop {
        let now = Instant::now();
        if end.is_none() && sent.load(Ordering::Relaxed) {
            (end, next_look) = (Some(now + LAST), now + 4 * POLL);
        }
        if end.is_some_and(|end| now > end || (now > next_look && seen == *expected)) {
            return seen;
        }
        if now > next_look {
            next_look = now + 4 * POLL;
        }
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => panic!("{error}"),
        };
        // IPv4 without options, UDP, VXLAN, Ethernet, IPv4 (RFC 7348).
        let packet = &buffer[..length];
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        let ours = length >= 78 && packet[9] == 17 && packet[22..24] == common::PORT.to_be_bytes();
        if !ours || address(16).octets()[0] != 172 {
            continue;
        }
        let [a, b, c, _] = address(66).octets();
        seen.insert(Ipv4Addr::new(a, b, c, 0), (address(16), packet[36..42].try_into().unwrap()));
    }
}

fn subnet(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, (FIRST + node / 256) as u8, (node % 256) as u8, 0)
}

fn place(node: usize, generation: u8) -> Place {
    let [high, low] = (node as u16).to_be_bytes();
    (Ipv4Addr::new(172, 16 + generation, high, low), [2, 0, 0, generation, high, low])
}

fn value(node: usize, generation: u8) -> String {
    let (public, [a, b, c, d, e, f]) = place(node, generation);
    format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"}}}}"#
    )
}

/// Returns the subnet of a node's lease.
fn subnet_of(cluster: &Cluster, number: usize) -> [u8; 4] {
    let text = fs::read_to_string(cluster.file(&format!("host{number}.env"))).unwrap();
    model::subnet_env::parse(&text).subnet().unwrap().network().octets()
}

fn mac(text: &str) -> [u8; 6] {
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}
