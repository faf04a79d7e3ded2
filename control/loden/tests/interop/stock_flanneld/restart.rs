//! Either kind is restarted under traffic, and renews its lease.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::world::{HOST_GW, Kind, World, ready};
use crate::common::steady::Steady;
use crate::common::{self, Cluster, DUAL, LIMIT, UDP, verified};

const LODEN: usize = 1;
const STOCK: usize = 2;
/// What a machine that is busy with starting programs may drop.
const BUSY: usize = 25;

#[test]
fn vxlan_restarts_under_traffic() {
    restarts("stk-rs-vx", DUAL);
}

#[test]
fn udp_restarts_under_traffic() {
    restarts("stk-rs-udp", UDP);
}

#[test]
fn host_gw_restarts_under_traffic() {
    restarts("stk-rs-gw", HOST_GW);
}

/// Restarts either side in order and after a crash, while datagrams and a TCP connection pass in each
/// direction. Each keeps its lease and its subnet file.
fn restarts(name: &str, config: &str) {
    if !ready() {
        return;
    }
    let mut world = World::with(name, &[Kind::Loden, Kind::Stock], config);
    world.await_paths(false);
    let ways = [(LODEN, STOCK), (STOCK, LODEN)];
    let connections = ways.map(|(from, to)| Connection::open(&world.cluster, from, to));
    for (host, kind) in [(LODEN, Kind::Loden), (STOCK, Kind::Stock)] {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let (lease, env) = (world.lease(host), world.subnet_env(host));
            let flows = ways.map(|(from, to)| Steady::start(&world.cluster, from, to));
            world.end(host, signal);
            world.start(host, kind);
            world.await_paths(false);
            let outcomes = flows.map(Steady::finish);
            // The kernel forwards on without a daemon; a datapath in userspace loses what is sent meanwhile.
            let forwards_on = config == HOST_GW || (kind, config) == (Kind::Stock, DUAL);
            for outcome in &outcomes {
                let sent = outcome.sent as usize;
                assert!(outcome.late.is_empty() && sent > 10, "{kind:?} after {signal}: {outcomes:?}");
                let few = if forwards_on { BUSY } else { sent };
                assert!(outcome.lost.len() < few, "{kind:?} after {signal}: {outcomes:?}");
            }
            assert_eq!((world.lease(host), world.subnet_env(host)), (lease, env), "{kind:?} after {signal}");
            for (from, to) in ways {
                verified(&world.cluster, from, to, false, 8 << 20);
            }
        }
    }
    for connection in connections {
        assert!(connection.close() > 0);
    }
}

/// A TCP connection from pod to pod, whose chunks are echoed and compared until it is closed.
struct Connection {
    closing: Arc<AtomicBool>,
    client: JoinHandle<u64>,
}

impl Connection {
    fn open(cluster: &Cluster, from: usize, to: usize) -> Connection {
        let server = SocketAddr::new(cluster.pod(to, false), 0);
        let listener = cluster.host(to).pod().run(|| TcpListener::bind(server)).expect("the pod");
        let listener = listener.expect("a listener");
        let server = listener.local_addr().expect("an address");
        let client = cluster.host(from).pod().run(|| TcpStream::connect(server)).expect("the pod");
        let mut client = client.expect("a connection");
        let (mut there, _) = listener.accept().expect("a connection");
        thread::spawn(move || {
            let mut back = there.try_clone().expect("a clone");
            std::io::copy(&mut there, &mut back)
        });
        client.set_read_timeout(Some(LIMIT)).expect("a time limit");
        let closing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&closing);
        let client = thread::spawn(move || {
            let (mut number, mut echo) = (0u64, [0; 4096]);
            while !flag.load(Ordering::Relaxed) {
                let chunk: [u8; 4096] = std::array::from_fn(|index| (number as usize * 31 + index) as u8);
                client.write_all(&chunk).expect("an open connection");
                client.read_exact(&mut echo).expect("an echo");
                assert_eq!(echo, chunk, "chunk {number}");
                number += 1;
                thread::sleep(Duration::from_millis(1));
            }
            number
        });
        Connection { closing, client }
    }

    /// Returns the number of chunks that came back unchanged.
    fn close(self) -> u64 {
        self.closing.store(true, Ordering::Relaxed);
        self.client.join().expect("every chunk")
    }
}

/// Both renew a minute after they got their leases: the margin is all but that of a day. Keys and values stay
/// as they are, and no peer takes notice.
#[test]
fn both_kinds_renew_their_leases_under_traffic() {
    if !ready() {
        return;
    }
    let mut world = World::new("stk-renew", 2, DUAL);
    for (host, kind) in [(LODEN, Kind::Loden), (STOCK, Kind::Stock)] {
        let mut command = world.command(host, kind);
        command.args(["--subnet-lease-renew-margin", "1439"]);
        world.start_command(host, &mut command);
        world.cluster.connect_pod(host);
    }
    world.await_paths(false);
    let published = world.published();
    let before = [world.etcd_lease(LODEN), world.etcd_lease(STOCK)];
    let flows = [Steady::start(&world.cluster, LODEN, STOCK), Steady::start(&world.cluster, STOCK, LODEN)];
    // No clock of the test's own: a Go program reads it without the library that could change it.
    thread::sleep(Duration::from_secs(45));
    for (host, before) in [(LODEN, &before[0]), (STOCK, &before[1])] {
        common::await_until("a renewal", || world.etcd_lease(host) != *before);
    }
    assert_eq!(world.published(), published);
    for flow in flows {
        let outcome = flow.finish();
        assert!(outcome.lost.len() < BUSY && outcome.late.is_empty(), "{outcome:?}");
    }
    for (host, daemon) in &mut world.daemons {
        assert!(daemon.is_running(), "{}", daemon.log_text());
        assert_eq!(daemon.log_text().to_lowercase().matches("lease renewed").count(), 1, "host {host}");
    }
}
