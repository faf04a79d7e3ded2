//! A loden host and a host with the kernel's vxlan, set up as flannel sets it up: everything that one
//! sends, the other understands, in both families.
//!
//! The underlay veth pair is used in two ways. As it comes, the kernel hands over super-packets uncut and
//! with open checksums. With its offloads off it is a wire.

mod common;

use common::{Cluster, DUAL, Daemon, KernelNode};
use lab::Wiring;

const LODEN: usize = 1;
const KERNEL: usize = 2;

/// Bytes of each bulk transfer; LODEN_TEST_BYTES makes them fewer for a quick look.
fn bulk() -> u64 {
    let asked = std::env::var("LODEN_TEST_BYTES").ok();
    asked.map_or(1 << 30, |bytes| bytes.parse().expect("LODEN_TEST_BYTES is a number"))
}

#[test]
fn pings_cross_in_both_directions_and_families() {
    let Some(pair) = pair("iop-ping", false) else { return };
    for ipv6 in [false, true] {
        common::ping(&pair.cluster, LODEN, KERNEL, ipv6);
        common::ping(&pair.cluster, KERNEL, LODEN, ipv6);
    }
}

/// The tunnel's MTU to the byte. The pods' own devices are made larger for it, so that the tunnel decides.
#[test]
fn a_packet_of_the_mtu_passes_and_one_byte_more_is_told_so() {
    let Some(pair) = pair("iop-mtu", false) else { return };
    for number in [LODEN, KERNEL] {
        let host = pair.cluster.host(number);
        host.namespace().set_mtu(host.pod_side(), 1500).expect("MTU");
        host.pod().set_mtu(host.uplink(), 1500).expect("MTU");
    }
    for (ipv6, mtu) in [(false, 1450), (true, 1430)] {
        for (from, to) in [(LODEN, KERNEL), (KERNEL, LODEN)] {
            // IPv6 packets are never fragmented on the way, and these IPv4 packets have DF set.
            assert!(common::unfragmented(&pair.cluster, from, to, ipv6, mtu), "{mtu} bytes from host {from}");
            let told = common::too_big(&pair.cluster, from, to, ipv6, mtu + 1);
            assert_eq!(told, mtu, "host {from}");
        }
    }
    pair.nothing_was_dropped();
}

#[test]
fn bulk_ipv4_over_plain_veth() {
    let Some(pair) = pair("iop-b4", false) else { return };
    pair.bulk(false);
}

#[test]
fn bulk_ipv6_over_plain_veth() {
    let Some(pair) = pair("iop-b6", false) else { return };
    pair.bulk(true);
}

#[test]
fn bulk_ipv4_over_a_wire() {
    let Some(pair) = pair("iop-bw4", true) else { return };
    pair.bulk(false);
}

#[test]
fn bulk_ipv6_over_a_wire() {
    let Some(pair) = pair("iop-bw6", true) else { return };
    pair.bulk(true);
}

#[test]
fn every_datagram_size_over_plain_veth() {
    let Some(pair) = pair("iop-s", false) else { return };
    pair.sizes();
}

#[test]
fn every_datagram_size_over_a_wire() {
    let Some(pair) = pair("iop-sw", true) else { return };
    pair.sizes();
}

struct Pair {
    daemon: Daemon,
    cluster: Cluster,
}

impl Pair {
    fn bulk(self, ipv6: bool) {
        common::verified(&self.cluster, LODEN, KERNEL, ipv6, bulk());
        common::verified(&self.cluster, KERNEL, LODEN, ipv6, bulk());
        self.nothing_was_dropped();
    }

    fn sizes(self) {
        // A dual-stack node promises its pods 1450, and its IPv6 tunnel carries 1430: the first datagram
        // between the two is lost, answered with packet-too-big, and the pod remembers.
        for (from, to) in [(LODEN, KERNEL), (KERNEL, LODEN)] {
            let (pod, to) = (self.cluster.host(from).pod(), self.cluster.pod(to, true));
            let refused = pod.ping(to, 1400, common::LIMIT).expect_err("larger than the tunnel");
            assert!(refused.to_string().contains("ICMP type 2 code 0"), "{refused}");
        }
        for ipv6 in [false, true] {
            common::every_size(&self.cluster, LODEN, KERNEL, ipv6, 0..=9000);
            common::every_size(&self.cluster, KERNEL, LODEN, ipv6, 0..=9000);
        }
        self.nothing_was_dropped();
    }

    fn nothing_was_dropped(self) {
        for tunnel in self.daemon.finish() {
            assert!(tunnel.unexplained_drops().is_empty(), "{}: {:#?}", tunnel.device, tunnel.nonzero());
        }
    }
}

/// Host 1 runs loden, host 2 has the kernel's vxlan; a pod on each. The kernel host joins first, so loden
/// finds it in the store.
fn pair(name: &str, wire_like: bool) -> Option<Pair> {
    let programs: &[&str] = if wire_like { &["ethtool"] } else { &[] };
    if !common::ready(programs) {
        return None;
    }
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, DUAL);
    if wire_like {
        cluster.make_wire_like(LODEN);
        cluster.make_wire_like(KERNEL);
    }
    let kernel = KernelNode::join(&mut cluster, KERNEL);
    let daemon = cluster.start(LODEN, &[]);
    cluster.connect_pod(LODEN);
    kernel.add_peer(&cluster, &cluster.lease(LODEN));
    Some(Pair { daemon, cluster })
}
