//! What happens to etcd happens to nodes of both kinds at once: traffic between nodes that live goes on for
//! loden's at least as well as for stock flannel's.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::world::{HOST_GW, Kind, PREFIX, World, ready};
use crate::common::steady::{Outcome, Steady};
use crate::common::{UDP, VXLAN, await_until, ping};

/// Two nodes of each kind.
const KINDS: [Kind; 4] = [Kind::Loden, Kind::Loden, Kind::Stock, Kind::Stock];
const LODEN: [usize; 2] = [1, 2];
const STOCK: [usize; 2] = [3, 4];
/// The pairs of nodes with traffic: of one kind, and of both.
const PAIRS: [(usize, usize); 4] = [(1, 2), (3, 4), (1, 3), (4, 2)];
/// What a machine that is busy with starting programs may drop.
const BUSY: usize = 25;

/// Longer than a missing lease may take to come back before its node is given up.
const FORGIVENESS: Duration = Duration::from_secs(8);

/// Traffic between all pairs.
struct Flows(Vec<Steady>);

impl Flows {
    fn start(world: &World) -> Flows {
        Flows(PAIRS.iter().map(|(from, to)| Steady::start(&world.cluster, *from, *to)).collect())
    }

    /// Ends the traffic. Between loden's nodes nothing was lost, whatever stock flannel's nodes lost. Where
    /// one end is stock flannel, nothing was lost either, unless `excused`.
    fn finish(self, what: &str, excused: bool) {
        // Each waits a while for its last datagrams.
        let ends: Vec<_> = self.0.into_iter().map(|flow| thread::spawn(|| flow.finish())).collect();
        let outcomes: Vec<Outcome> = ends.into_iter().map(|end| end.join().expect("an outcome")).collect();
        let lost: Vec<usize> = outcomes.iter().map(|outcome| outcome.lost.len()).collect();
        println!("{what}: lost of {PAIRS:?}: {lost:?}");
        for (outcome, pair) in outcomes.iter().zip(PAIRS) {
            let excused = excused && pair != (1, 2);
            assert!(
                outcome.sent > 10 && (outcome.lost.len() < BUSY || excused),
                "{what}: {pair:?}: {outcome:?}"
            );
        }
    }
}

#[test]
fn an_etcd_that_stops_hangs_and_stutters() {
    if !ready() {
        return;
    }
    let mut world = World::with("stk-stop", &KINDS, VXLAN);
    world.await_paths(false);
    let published = world.published();

    let flows = Flows::start(&world);
    world.etcd.kill();
    await_until("the notice", || world.daemons[&1].logged("watching leases: etcd"));
    world.etcd.restart();
    sees_a_new_node(&world, 200);
    flows.finish("etcd stopped", false);

    // It keeps its connections and does not answer.
    let flows = Flows::start(&world);
    world.etcd.pause();
    thread::sleep(Duration::from_secs(8));
    world.etcd.resume();
    sees_a_new_node(&world, 201);
    flows.finish("etcd hung", false);

    // A node that starts meanwhile forwards from memory, where the kernel forwards for stock flannel.
    world.etcd.pause();
    for (host, kind) in [(LODEN[1], Kind::Loden), (STOCK[1], Kind::Stock)] {
        world.end(host, Signal::SIGKILL);
        world.spawn(host, &mut world.command(host, kind));
    }
    world.await_ready(LODEN[1]);
    world.await_paths(false);
    world.etcd.resume();
    world.await_ready(STOCK[1]);

    let flows = Flows::start(&world);
    for _ in 0..6 {
        world.etcd.pause();
        thread::sleep(Duration::from_millis(900));
        world.etcd.resume();
        thread::sleep(Duration::from_millis(50));
    }
    sees_a_new_node(&world, 202);
    flows.finish("etcd stuttered", false);
    assert_eq!(world.published(), published);
    all_live(&mut world);
}

#[test]
fn a_wiped_etcd_with_vxlan() {
    wiped_and_restored("stk-wp-vx", VXLAN);
}

#[test]
fn a_wiped_etcd_with_udp() {
    wiped_and_restored("stk-wp-udp", UDP);
}

#[test]
fn a_wiped_etcd_with_host_gw() {
    wiped_and_restored("stk-wp-gw", HOST_GW);
}

/// Wipes etcd, then restores a snapshot from before half of the nodes joined.
fn wiped_and_restored(name: &str, config: &str) {
    if !ready() {
        return;
    }
    let mut world = World::new(name, 4, config);
    for (host, kind) in [(1, Kind::Loden), (3, Kind::Stock)] {
        world.start(host, kind);
    }
    let snapshot = world.etcd.backup();
    for (host, kind) in [(2, Kind::Loden), (4, Kind::Stock)] {
        world.start(host, kind);
    }
    (1..=4).for_each(|host| world.cluster.connect_pod(host));
    world.await_paths(false);
    let keys = LODEN.map(|host| world.lease(host));
    // Stock flannel's udp loses datagrams whenever its one thread waits for a core.
    let excused = config == UDP;
    for restored in [false, true] {
        let flows = Flows::start(&world);
        match restored {
            true => world.etcd.restore(snapshot.path()),
            false => {
                world.etcd.wipe();
                world.configure(config);
            }
        }
        // Stock flannel's leases stay away until it is restarted.
        await_until("loden's leases", || {
            let published = world.published();
            keys.iter().all(|(key, value)| published.get(key) == Some(value))
        });
        flows.finish(if restored { "etcd restored" } else { "etcd wiped" }, excused);
    }
    // A node of either kind that is started again now has its subnet, and reaches those that etcd has
    // forgotten: loden remembers them, and for stock flannel the kernel does.
    for (host, kind) in [(LODEN[0], Kind::Loden), (STOCK[0], Kind::Stock)] {
        let env = world.subnet_env(host);
        world.end(host, Signal::SIGTERM);
        world.start(host, kind);
        assert_eq!(world.subnet_env(host), env);
    }
    let flows = Flows::start(&world);
    thread::sleep(FORGIVENESS);
    flows.finish("started again", excused);
    world.end(STOCK[1], Signal::SIGTERM);
    world.start(STOCK[1], Kind::Stock);
    world.await_paths(false);
    all_live(&mut world);
}

#[test]
fn a_lease_that_is_removed_by_hand() {
    if !ready() {
        return;
    }
    let mut world = World::with("stk-del", &KINDS, VXLAN);
    world.await_paths(false);
    let leases = [1, 2, 3, 4].map(|host| world.lease(host));
    for host in LODEN {
        let (key, value) = &leases[host - 1];
        let flows = Flows::start(&world);
        world.etcd.etcdctl(&["del", key]);
        await_until("the lease", || world.published().get(key) == Some(value));
        world.await_paths(false);
        // Stock flannel has no route to the node until the lease is back.
        flows.finish("loden's lease removed", true);
    }
    all_live(&mut world);
    // Stock flannel ends where its lease is removed; started again, it has the same.
    let (key, _) = &leases[STOCK[0] - 1];
    let flows = Flows::start(&world);
    world.etcd.etcdctl(&["del", key]);
    let mut stock = world.daemons.remove(&STOCK[0]).expect("a daemon");
    assert_eq!(stock.await_end().code(), Some(0), "{}", stock.log_text());
    world.start(STOCK[0], Kind::Stock);
    world.await_paths(false);
    flows.finish("stock's lease removed", true);
    assert_eq!(world.lease(STOCK[0]).0, *key);
    all_live(&mut world);
}

/// A node that joins after a fault is seen by both kinds, and so is its end.
fn sees_a_new_node(world: &World, number: u8) {
    let key = format!("{PREFIX}/subnets/10.244.{number}.0-24");
    let mac = format!("02:00:00:00:00:{number:02x}");
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let value = format!(
        r#"{{"PublicIP":"198.18.0.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
    );
    world.etcd.etcdctl(&["put", &key, &value]);
    let route = format!("10.244.{number}.0/24");
    let routes = |host: usize| world.cluster.shell(host, "ip route show dev flannel.1").contains(&route);
    for host in [1, 2, 3, 4] {
        await_until("the new node", || routes(host));
    }
    world.etcd.etcdctl(&["del", &key]);
    for host in [1, 2, 3, 4] {
        await_until("its end", || !routes(host));
    }
}

fn all_live(world: &mut World) {
    for (host, daemon) in &mut world.daemons {
        assert!(daemon.is_running(), "host {host}: {}", daemon.log_text());
    }
    for (from, to) in PAIRS {
        ping(&world.cluster, from, to, false);
    }
}
