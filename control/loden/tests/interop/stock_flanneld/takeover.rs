//! A host changes from stock flannel to loden and back, and what a predecessor left is not in the way.

use nix::sys::signal::Signal;

use super::world::{HOST_GW, HOST_GW_V4, Kind, PREFIX, World, ready};
use crate::common::{DUAL, UDP, VXLAN, ping};

#[test]
fn a_vxlan_node_changes_its_kind_and_keeps_its_subnet() {
    change_kinds("stk-sw-vx", DUAL);
}

#[test]
fn a_udp_node_changes_its_kind_and_keeps_its_subnet() {
    change_kinds("stk-sw-udp", UDP);
}

#[test]
fn a_host_gw_node_changes_its_kind_and_keeps_its_subnet() {
    change_kinds("stk-sw-gw", HOST_GW);
}

/// Changes the first host to loden and back, once in order and once after a crash, beside a stock node.
fn change_kinds(name: &str, config: &str) {
    if !ready() {
        return;
    }
    let mut world = World::with(name, &[Kind::Stock, Kind::Stock], config);
    let families: &[bool] = if config == UDP { &[false] } else { &[false, true] };
    let paths = |world: &World| families.iter().for_each(|ipv6| world.await_paths(*ipv6));
    paths(&world);
    let (lease, env) = (world.lease(1), world.subnet_env(1));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let stock = world.lease(1);
        world.end(1, signal);
        world.start(1, Kind::Loden);
        paths(&world);
        // The link address of the kernel's device is kept.
        assert_eq!((world.lease(1), world.subnet_env(1)), (stock, env.clone()), "to loden, after {signal}");
        world.end(1, signal);
        if config == UDP {
            // Stock takes no device that stays, and would make a second one.
            let place = world.cluster.file("run");
            world
                .cluster
                .shell(1, &format!("{} cleanup --run-dir {}", env!("CARGO_BIN_EXE_loden"), place.display()));
        }
        world.start(1, Kind::Stock);
        paths(&world);
        // Stock flannel chooses a new link address at each start.
        assert_eq!((world.lease(1).0, world.subnet_env(1)), (lease.0.clone(), env.clone()), "back, {signal}");
    }
    for daemon in world.daemons.values_mut() {
        assert!(daemon.is_running(), "{}", daemon.log_text());
    }
}

#[test]
fn what_stock_vxlan_left_gives_way_to_every_backend() {
    let other = DUAL.replace("vxlan\"", "vxlan\",\"VNI\":7");
    change_backend("stk-vx-udp", VXLAN, UDP, &["flannel0"]);
    change_backend("stk-vx-gw", DUAL, HOST_GW, &["eth0", "eth0"]);
    change_backend("stk-vx-vni", DUAL, &other, &["flannel.7", "flannel-v6.7"]);
}

#[test]
fn what_stock_host_gw_left_gives_way_to_every_backend() {
    change_backend("stk-gw-udp", HOST_GW_V4, UDP, &["flannel0"]);
    change_backend("stk-gw-vx", HOST_GW, DUAL, &["flannel.1", "flannel-v6.1"]);
}

#[test]
fn what_stock_udp_left_gives_way_to_every_backend() {
    change_backend("stk-udp-gw", UDP, HOST_GW_V4, &["eth0"]);
    change_backend("stk-udp-vx", UDP, VXLAN, &["flannel.1"]);
}

/// Runs stock flannel on both hosts, then loden with another backend, whose packets take one device for each
/// family. A node that stock knew is gone by then.
fn change_backend(name: &str, from: &str, to: &str, devices: &[&str]) {
    if !ready() {
        return;
    }
    let mut world = World::new(name, 2, from);
    let (key, value) = ghost(from);
    world.etcd.etcdctl(&["put", &key, &value]);
    for host in [1, 2] {
        world.start(host, Kind::Stock);
        world.cluster.connect_pod(host);
    }
    world.await_paths(false);
    let keys = [world.lease(1).0, world.lease(2).0];
    // Somebody else's: the network is another one, or the length is not that of a node's subnet.
    for line in [
        "ip link add flannel.9 type vxlan id 9 dstport 4789 dev eth0",
        "ip addr add 192.0.2.9/32 dev flannel.9",
        "ip link set flannel.9 up",
        "ip route add 192.0.2.128/25 via 198.18.0.2",
        "ip route add 10.244.250.0/25 via 198.18.0.2",
    ] {
        world.cluster.shell(1, line);
    }
    for host in [1, 2] {
        world.end(host, Signal::SIGKILL);
    }
    world.etcd.etcdctl(&["del", &key]);
    world.configure(to);
    for host in [1, 2] {
        world.start(host, Kind::Loden);
    }
    for (ipv6, device) in [false, true].into_iter().zip(devices) {
        world.await_paths(ipv6);
        for (from, to) in [(1, 2), (2, 1)] {
            assert_eq!(world.device_to(from, to, ipv6), *device);
            ping(&world.cluster, from, to, ipv6);
        }
    }
    assert_eq!([world.lease(1).0, world.lease(2).0], keys);
    let mut left: Vec<&str> = devices.iter().copied().filter(|device| *device != "eth0").collect();
    left.push("flannel.9");
    left.sort_unstable();
    let links = world.cluster.shell(1, "ip -br link | cut -d' ' -f1 | cut -d@ -f1 | grep flannel");
    let mut links: Vec<&str> = links.lines().collect();
    links.sort_unstable();
    assert_eq!(links, left);
    let routes = world.cluster.shell(1, "ip route; ip -6 route");
    assert!(!routes.contains("10.244.200.0") && !routes.contains("fd00:244:0:200:"), "{routes}");
    assert!(routes.contains("192.0.2.128/25 via") && routes.contains("10.244.250.0/25 via"), "{routes}");
}

/// The lease of a node that does not answer.
fn ghost(config: &str) -> (String, String) {
    let data = |mac: &str| format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let [data, data6] = ["02:00:00:00:00:09", "02:00:00:00:00:0a"].map(data);
    let rest = match config {
        VXLAN => format!(r#","BackendType":"vxlan","BackendData":{data}"#),
        DUAL => format!(r#","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data6}"#),
        HOST_GW | HOST_GW_V4 => r#","BackendType":"host-gw""#.to_owned(),
        _ => String::new(),
    };
    let (key, public) =
        if config.contains("IPv6") { ("&fd00:244:0:200::-64", r#""fd00:10de::9""#) } else { ("", "null") };
    let value = format!(r#"{{"PublicIP":"198.18.0.9","PublicIPv6":{public}{rest}}}"#);
    (format!("{PREFIX}/subnets/10.244.200.0-24{key}"), value)
}
