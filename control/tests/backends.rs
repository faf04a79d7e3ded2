//! The backends that have no peer of their own in the kernel to be compared with: daemons among themselves.

mod common;

use common::{Cluster, Daemon, await_until};
use lab::Wiring;

const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}"#;

#[test]
fn host_gw_routes_both_families_and_repairs_them() {
    let Some((cluster, mut daemons)) = cluster("be-hgw", 3, HOST_GW) else { return };
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        for ipv6 in [false, true] {
            common::ping(&cluster, from, to, ipv6);
        }
    }
    let two = cluster.lease(2);
    let subnet = two.subnet().expect("IPv4");
    let route = format!("{subnet} via {} dev eth0", cluster.host(2).underlay());
    let shown = |number| cluster.shell(number, &format!("ip route show {subnet}"));
    assert_eq!(shown(1), route);
    assert_eq!(cluster.shell(1, "ip -o link | grep -c flannel || true"), "0", "no device");
    let env = std::fs::read_to_string(&daemons[0].subnet_file).expect("a subnet file");
    assert!(env.contains("FLANNEL_MTU=1500"), "{env}");

    // The kernel forgets routes with the link and with the address of the other family too.
    cluster.shell(1, &format!("ip route del {subnet}; ip -6 route flush proto boot dev eth0"));
    await_until("the deleted routes", || shown(1) == route);
    let ipv6 = two.ipv6_subnet().expect("IPv6");
    await_until("the IPv6 route", || !cluster.shell(1, &format!("ip -6 route show {ipv6}")).is_empty());
    cluster.shell(1, "ip link set eth0 down; ip link set eth0 up");
    await_until("the routes after a flap", || shown(1) == route);

    // A node that is gone has no route, and one that stopped still forwards: its kernel does it alone.
    assert!(daemons.remove(1).end(nix::sys::signal::Signal::SIGTERM).success());
    common::ping(&cluster, 1, 2, false);
    cluster.in_store(async |store| store.remove(&two.key).await.expect("removed"));
    await_until("the route to go", || shown(1).is_empty() && shown(3).is_empty());
    common::ping(&cluster, 1, 3, false);
}

#[test]
fn host_gw_refuses_a_nat() {
    if !common::ready(&[]) {
        return;
    }
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let cluster = Cluster::build("be-nat", 1, Wiring::Switch, config);
    let mut daemon = cluster.spawn(1, cluster.command(1).args(["--public-ip", "203.0.113.9"]));
    assert_eq!(daemon.await_end().code(), Some(1));
    assert!(daemon.said("NAT"), "{}", daemon.words());
    assert!(cluster.leases().is_empty(), "it took a subnet");
}

/// Hosts on a switch, a daemon and a pod on each.
fn cluster(name: &str, hosts: usize, config: &str) -> Option<(Cluster, Vec<Daemon>)> {
    if !common::ready(&[]) {
        return None;
    }
    let mut cluster = Cluster::build(name, hosts, Wiring::Switch, config);
    let daemons: Vec<Daemon> = (1..=hosts).map(|number| cluster.start(number, &[])).collect();
    (1..=hosts).for_each(|number| cluster.connect_pod(number));
    let peers = || {
        (1..=hosts).all(|number| {
            cluster.shell(number, "ip route | grep -c 'via 198.18.0'") == (hosts - 1).to_string()
        })
    };
    await_until("all peers", peers);
    Some((cluster, daemons))
}
