//! Five nodes in each of WireGuard's modes and families: every pair reaches each other over the outer family
//! of the mode, and nothing crosses the wire in clear. The store is etcd, except with IPv6 alone, for which
//! flannel has no key format in etcd (docs/compatibility.md).

use std::net::IpAddr;

use lab::Wiring;
use store::testing::etcd::{Security, Server};

use crate::common::capture::Capture;
use crate::common::{self, Cluster, Daemon, await_until, packet, ping, verified};

const NODES: usize = 5;
const BOTH: &str = r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48""#;
const IPV4: &str = r#""Network":"10.244.0.0/16""#;
const IPV6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48""#;

#[test]
fn separate_in_dual_stack() {
    five("wm-separate", BOTH, "separate", &["flannel-wg", "flannel-wg-v6"], &[4, 6]);
}

#[test]
fn auto_in_dual_stack_goes_by_public_ipv4() {
    five("wm-auto", BOTH, "auto", &["flannel-wg"], &[4]);
}

#[test]
fn ipv4_in_dual_stack() {
    five("wm-ipv4", BOTH, "ipv4", &["flannel-wg"], &[4]);
}

#[test]
fn ipv6_in_dual_stack() {
    five("wm-ipv6", BOTH, "ipv6", &["flannel-wg"], &[6]);
}

#[test]
fn ipv4_alone() {
    five("wm-only4", IPV4, "separate", &["flannel-wg"], &[4]);
    five("wm-auto4", IPV4, "auto", &["flannel-wg"], &[4]);
}

#[test]
fn ipv6_alone() {
    five("wm-only6", IPV6, "separate", &["flannel-wg-v6"], &[6]);
    five("wm-auto6", IPV6, "auto", &["flannel-wg"], &[6]);
}

/// Runs five nodes. `outer` are the IP versions that carry records.
fn five(name: &str, families: &str, mode: &str, devices: &[&str], outer: &[u8]) {
    if !common::ready(&["ip", "etcd", "etcdctl", "openssl", "setpriv", "nsenter", "bash"]) {
        return;
    }
    let config = format!(r#"{{{families},"Backend":{{"Type":"wireguard","Mode":"{mode}"}}}}"#);
    let mut cluster = Cluster::build(name, NODES, Wiring::Switch, &config);
    let etcd = (families != IPV6).then(|| {
        let host = cluster.host(1);
        let etcd = Server::start_in(Security::None, host.namespace().path(), host.underlay());
        etcd.etcdctl(&["put", "/coreos.com/network/config", &config]);
        etcd
    });
    let daemons: Vec<Daemon> = (1..=NODES).map(|node| start(&cluster, etcd.as_ref(), node)).collect();
    for (daemon, node) in daemons.iter().zip(1..) {
        for device in devices {
            let peers = NODES - 1;
            await_until("its peers", || daemon.logged(&format!("applied device={device} peers={peers}")));
        }
        cluster.connect_pod(node);
    }
    // The families of the pods.
    let families: &[bool] = match families {
        IPV4 => &[false],
        IPV6 => &[true],
        _ => &[false, true],
    };
    let mut wire = Capture::start(cluster.lab.switch().unwrap());
    for from in 1..=NODES {
        for to in (1..=NODES).filter(|to| *to != from) {
            families.iter().for_each(|ipv6| ping(&cluster, from, to, *ipv6));
        }
    }
    families.iter().for_each(|ipv6| verified(&cluster, 2, 4, *ipv6, 1_000_000));

    let frames = wire.frames();
    let mut seen: Vec<u8> = frames.iter().filter_map(|frame| record_version(frame)).collect();
    let records = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, outer, "{name}: how records went");
    // Three pings for each pair, direction and family, and a megabyte. Each frame crosses two ports.
    assert!(records > NODES * (NODES - 1) * 3 * 2 * families.len(), "{name}: {records} records");
    for ipv6 in families {
        for (from, to) in [(1, 2), (2, 4), (4, 2), (5, 3)] {
            let inside = [octets(cluster.pod(from, *ipv6)), octets(cluster.pod(to, *ipv6))].concat();
            let in_clear = frames.iter().filter(|frame| frame.windows(inside.len()).any(|w| w == inside));
            assert_eq!(in_clear.count(), 0, "{name}: from {from} to {to} in clear");
        }
    }
    for daemon in daemons {
        for counters in daemon.finish() {
            assert_eq!(counters.unexplained_drops().len(), 0, "{name}: {:?}", counters.drops());
        }
    }
}

fn start(cluster: &Cluster, etcd: Option<&Server>, node: usize) -> Daemon {
    let mut command = match etcd {
        None => cluster.command(node),
        Some(etcd) => cluster.etcd_command(node, &etcd.endpoint()),
    };
    let mut daemon = cluster.spawn(node, &mut command);
    daemon.await_ready();
    daemon
}

/// Returns the outer IP version if this frame is a transport record (type 4).
fn record_version(frame: &[u8]) -> Option<u8> {
    let ip = frame.get(14..)?;
    let version = ip.first()? >> 4;
    let udp = match version {
        4 if *ip.get(9)? == packet::UDP => ip.get(20..)?,
        6 if *ip.get(6)? == packet::UDP => ip.get(40..)?,
        _ => return None,
    };
    (udp.get(8..12)? == [4, 0, 0, 0]).then_some(version)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
