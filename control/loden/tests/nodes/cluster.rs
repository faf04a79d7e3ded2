//! Five nodes on one etcd with TLS, client certificates and users, through the events in the life of a
//! cluster. After each step every pair of pods reaches each other, and etcd has the expected keys and values,
//! to the byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::Wiring;
use nix::sys::signal::Signal;
use store::testing::etcd::{Security, Server};

use crate::common::{self, Cluster, Daemon, LIMIT, VXLAN, await_until};

const PREFIX: &str = "/coreos.com/network";
const NODES: usize = 5;
/// The one whose clock jumps.
const JUMPY: usize = 4;
const HOUR: i64 = 3600;

#[test]
fn five_nodes_outlive_what_happens_to_a_cluster() {
    if !common::ready(&["etcd", "etcdctl", "openssl", "setpriv", "nsenter", "bash", "faketime"]) {
        return;
    }
    let mut world = World::new();
    // The nodes join one after another.
    for node in 1..=NODES {
        world.start(node);
        world.cluster.connect_pod(node);
        world.remember(node);
        world.check();
    }

    // A node stops or crashes and returns: its lease is still there.
    for (node, signal) in [(5, Signal::SIGTERM), (3, Signal::SIGKILL)] {
        world.end(node, signal);
        world.check();
        world.start(node);
        world.check();
    }

    // A deleted lease is acquired again, with the same key and value.
    let key = world.key(2);
    world.etcd.etcdctl(&["del", &key]);
    world.check();

    // A lease that another node takes is lost: the daemon exits and the others follow. Once it is free, a
    // start succeeds.
    let taken = world.value(3).replace("198.18.0.3", "198.18.0.33");
    world.etcd.etcdctl(&["put", &world.key(3), &taken]);
    let mut lost = world.daemons.remove(&3).unwrap();
    assert_eq!(lost.await_end().code(), Some(1));
    assert!(lost.logged("lost the lease"), "{}", lost.log_text());
    world.expected.get_mut(&3).unwrap().1 = taken;
    world.check();
    world.etcd.etcdctl(&["del", &world.key(3)]);
    world.expected.remove(&3);
    world.check();
    world.start(3);
    world.remember(3);
    world.check();

    // etcd crashes, loses a lease while no node watches, is compacted, and returns.
    world.etcd.kill();
    world.reach_all();
    let key = world.key(5);
    world.etcd.aside(|etcd| {
        etcd.etcdctl(&["del", &key]);
        let status = etcd.etcdctl(&["get", "--write-out=json", "x"]);
        let revision = status.split("\"revision\":").nth(1).unwrap().split(&[',', '}'][..]).next().unwrap();
        etcd.etcdctl(&["compact", revision]);
    });
    world.check();

    // A node is cut off from the others and from etcd while another one leaves for good.
    let switch = |world: &World, state: &str| {
        let mut command = Command::new("ip");
        command.args(["link", "set", "port2", state]);
        let status = world.cluster.lab.switch().unwrap().status(&mut command).unwrap();
        assert!(status.success());
    };
    switch(&world, "down");
    world.end(5, Signal::SIGTERM);
    let (key, value) = world.expected.remove(&5).unwrap();
    world.etcd.etcdctl(&["del", &key]);
    await_until("those that see it", || world.peers(1) == 3 && world.peers(3) == 3);
    assert_eq!(world.peers(2), 4, "it is cut off");
    switch(&world, "up");
    world.check();
    world.start(5);
    world.remember(5);
    assert_eq!(world.expected[&5], (key, value), "by subnet.env and the state file");
    world.check();

    // A clock jumps: ahead to the lease's renewal, back again, and ahead while etcd is down.
    world.jump(23 * HOUR + 1800);
    world.await_logged(JUMPY, "lease renewed", 1);
    world.check();
    world.jump(-24 * HOUR);
    world.check();
    world.etcd.kill();
    world.jump(49 * HOUR);
    world.await_logged(JUMPY, "cannot renew our lease", 1);
    world.reach_all();
    world.etcd.restart();
    world.jump(49 * HOUR + 120);
    world.await_logged(JUMPY, "lease renewed", 2);
    world.check();
    let words = world.daemons[&JUMPY].log_text();
    assert!(words.lines().count() < 120, "the log stays short:\n{words}");
    assert!(words.matches("lease renewed").count() < 8, "{words}");

    for (node, daemon) in &world.daemons {
        assert!(
            !daemon.logged("password-of") && !daemon.logged("flannel:flannel"),
            "node {node} tells secrets"
        );
    }
}

struct World {
    daemons: BTreeMap<usize, Daemon>,
    /// By node: key and value.
    expected: BTreeMap<usize, (String, String)>,
    etcd: Server,
    cluster: Cluster,
}

impl World {
    fn new() -> World {
        let cluster = Cluster::build("five", NODES, Wiring::Switch, VXLAN);
        let host = cluster.host(1);
        let mut etcd =
            Server::start_in(Security::ClientCertificate, host.namespace().path(), host.underlay());
        etcd.etcdctl(&["put", &format!("{PREFIX}/config"), VXLAN]);
        etcd.enable_users(PREFIX);
        let world = World { daemons: BTreeMap::new(), expected: BTreeMap::new(), etcd, cluster };
        world.jump(0);
        world
    }

    fn start(&mut self, node: usize) {
        let cluster = &self.cluster;
        let mut command = cluster.etcd_command(node, &self.etcd.endpoint());
        for (option, file) in
            [("--etcd-cafile", "ca.pem"), ("--etcd-certfile", "client.pem"), ("--etcd-keyfile", "client.key")]
        {
            command.arg(option).arg(self.etcd.file(file));
        }
        command.args(["--etcd-username", "flannel"]).env("FLANNELD_ETCD_PASSWORD", "flannel");
        if node == JUMPY {
            // Leases expire by the wall clock; timers use the monotonic clock, which does not jump.
            command
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME_TIMESTAMP_FILE", cluster.file("clock"))
                .envs([("FAKETIME_NO_CACHE", "1"), ("DONT_FAKE_MONOTONIC", "1")]);
        }
        let mut daemon = cluster.spawn(node, &mut command);
        daemon.await_ready();
        self.daemons.insert(node, daemon);
    }

    fn end(&mut self, node: usize, signal: Signal) {
        self.daemons.remove(&node).unwrap().end(signal);
    }

    /// Sets the clock of one node to this many seconds from now.
    fn jump(&self, seconds: i64) {
        // libfaketime reads the file on each call, so the file must never be half-written.
        let new = self.cluster.file("clock.new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(new, self.cluster.file("clock")).unwrap();
    }

    /// Records the key and the value that etcd must have for a node that has joined, in flannel's form.
    fn remember(&mut self, node: usize) {
        let text = fs::read_to_string(self.cluster.file(&format!("host{node}.env"))).unwrap();
        let subnet = model::subnet_env::parse(&text).subnet().unwrap();
        let key = format!("{PREFIX}/subnets/{}-{}", subnet.network(), subnet.prefix());
        let link = self.cluster.shell(node, &format!("cat {}", self.state_file(node).display()));
        let mac = link.split("\"mac\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let value = format!(
            "{{\"PublicIP\":\"{}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}}}",
            self.cluster.host(node).underlay()
        );
        self.expected.insert(node, (key, value));
    }

    fn state_file(&self, node: usize) -> PathBuf {
        let files = fs::read_dir(self.cluster.file("run")).unwrap().map(|entry| entry.unwrap().path());
        let name = format!("host{node}.env");
        let mut files = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
        files.find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&name))).unwrap()
    }

    fn key(&self, node: usize) -> String {
        self.expected[&node].0.clone()
    }

    fn value(&self, node: usize) -> String {
        self.expected[&node].1.clone()
    }

    /// Returns the number of peers that the kernel has routes to.
    fn peers(&self, node: usize) -> usize {
        self.cluster.shell(node, "ip route show dev flannel.1").lines().count()
    }

    /// Waits until etcd has what is expected and every node has a route to every other, then pings all pairs.
    fn check(&self) {
        let all = || -> BTreeMap<String, String> {
            let text = self.etcd.etcdctl(&["get", "--prefix", &format!("{PREFIX}/subnets/")]);
            let lines: Vec<&str> = text.lines().collect();
            lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
        };
        let expected: BTreeMap<String, String> = self.expected.values().cloned().collect();
        let end = Instant::now() + LIMIT;
        while all() != expected {
            let words: String = self.daemons.values().map(Daemon::log_text).collect();
            assert!(Instant::now() < end, "{:#?}\ninstead of {expected:#?}\n{words}", all());
            thread::sleep(Duration::from_millis(20));
        }
        for node in self.daemons.keys() {
            await_until("the peers' routes", || self.peers(*node) == expected.len() - 1);
        }
        self.reach_all();
    }

    fn reach_all(&self) {
        let nodes: Vec<usize> =
            self.daemons.keys().copied().filter(|node| self.expected.contains_key(node)).collect();
        for (at, from) in nodes.iter().enumerate() {
            for to in &nodes[at + 1..] {
                common::ping(&self.cluster, *from, *to, false);
            }
        }
    }

    fn await_logged(&self, node: usize, words: &str, times: usize) {
        let end = Instant::now() + LIMIT;
        let log = || self.daemons[&node].log_text();
        while log().matches(words).count() < times {
            assert!(Instant::now() < end, "waited too long for {words:?}, {times} times:\n{}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Finds the library of Debian's faketime.
fn faketime() -> PathBuf {
    let program = lab::find("faketime").unwrap();
    let usr = program.parent().unwrap().parent().unwrap();
    let places = fs::read_dir(usr.join("lib")).unwrap().map(|entry| entry.unwrap().path());
    let library = |place: PathBuf| place.join("faketime/libfaketimeMT.so.1");
    places.map(library).find(|path| path.exists()).expect("libfaketimeMT.so.1")
}
