//! Both kinds join in either order: packets, keys and values.

use super::world::{HOST_GW, Kind, World, macs, ready};
use crate::common::{self, DUAL, UDP, ping, verified};

/// Bytes of each bulk transfer.
const BULK: u64 = 32 << 20;

#[test]
fn vxlan_in_both_families_with_loden_first() {
    join("stk-vx1", [Kind::Loden, Kind::Stock], DUAL, &["flannel.1", "flannel-v6.1"]);
}

#[test]
fn vxlan_in_both_families_with_stock_first() {
    join("stk-vx2", [Kind::Stock, Kind::Loden], DUAL, &["flannel.1", "flannel-v6.1"]);
}

#[test]
fn udp_with_loden_first() {
    join("stk-udp1", [Kind::Loden, Kind::Stock], UDP, &["flannel0"]);
}

#[test]
fn udp_with_stock_first() {
    join("stk-udp2", [Kind::Stock, Kind::Loden], UDP, &["flannel0"]);
}

#[test]
fn host_gw_in_both_families_with_loden_first() {
    join("stk-gw1", [Kind::Loden, Kind::Stock], HOST_GW, &["eth0", "eth0"]);
}

#[test]
fn host_gw_in_both_families_with_stock_first() {
    join("stk-gw2", [Kind::Stock, Kind::Loden], HOST_GW, &["eth0", "eth0"]);
}

/// Starts the two kinds in this order, with a device for each family of the network.
fn join(name: &str, kinds: [Kind; 2], config: &str, devices: &[&str]) {
    if !ready() {
        return;
    }
    let world = World::with(name, &kinds, config);
    for (device, ipv6) in devices.iter().zip([false, true]) {
        world.await_paths(ipv6);
        for (from, to) in [(1, 2), (2, 1)] {
            assert_eq!(world.device_to(from, to, ipv6), *device, "host {from}, {:?}", kinds[from - 1]);
            ping(&world.cluster, from, to, ipv6);
            verified(&world.cluster, from, to, ipv6, BULK);
        }
    }
    same_bytes(&world);
    if devices.contains(&"flannel.1") {
        let host_of = |kind| kinds.iter().position(|other| *other == kind).expect("both") + 1;
        the_kernel_knows_our_devices(&world, host_of(Kind::Stock), host_of(Kind::Loden));
    }
    for (host, daemon) in world.daemons {
        if kinds[host - 1] == Kind::Loden {
            for tunnel in daemon.finish() {
                assert!(tunnel.unexplained_drops().is_empty(), "{}: {:#?}", tunnel.device, tunnel.nonzero());
            }
        }
    }
}

/// What the two kinds write differs in what is the host's own, and in nothing else.
fn same_bytes(world: &World) {
    let written = |host: usize| {
        let ((key, value), env) = (world.lease(host), world.subnet_env(host));
        let file = model::subnet_env::parse(&env);
        let subnet = file.subnet().expect("a subnet");
        let text = format!("{key}\n{value}\n{env}");
        let mut text = text.replace(&subnet.network().to_string(), "SUBNET");
        text = text.replace(&common::nth(subnet.network().into(), 1).to_string(), "FIRST");
        if let Some(subnet) = file.ipv6_subnet() {
            text = text.replace(&common::nth(subnet.network().into(), 1).to_string(), "FIRST6");
            text = text.replace(&subnet.network().to_string(), "SUBNET6");
        }
        text = text.replace(&format!("\"{}\"", world.cluster.host(host).underlay()), "PUBLIC");
        text = text.replace(&format!("\"{}\"", world.cluster.host(host).underlay6()), "PUBLIC6");
        for (mac, place) in macs(&value).into_iter().zip(["MAC", "MAC6"]) {
            text = text.replace(mac, place);
        }
        text
    };
    assert_eq!(written(1), written(2));
}

/// The kernel under stock flannel has its entries for our devices, which are not the kernel's.
fn the_kernel_knows_our_devices(world: &World, stock: usize, loden: usize) {
    let ((_, theirs), (_, ours)) = (world.lease(stock), world.lease(loden));
    let remotes =
        [world.cluster.host(loden).underlay().to_string(), world.cluster.host(loden).underlay6().to_string()];
    let devices = ["flannel.1", "flannel-v6.1"];
    assert_eq!((macs(&theirs).len(), macs(&ours).len()), (2, 2), "{theirs} {ours}");
    for (number, device) in devices.into_iter().enumerate() {
        let entries = world.cluster.shell(stock, &format!("bridge fdb show dev {device}"));
        assert_eq!(entries, format!("{} dst {} self permanent", macs(&ours)[number], remotes[number]));
        let link = world.cluster.shell(stock, &format!("ip link show {device}"));
        assert!(link.contains(macs(&theirs)[number]), "{link} {theirs}");
    }
}
