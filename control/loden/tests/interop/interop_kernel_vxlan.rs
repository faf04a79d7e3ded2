//! A loden host and a host with the kernel's vxlan, set up as flannel sets it up, understand each other in
//! both families.
//!
//! The underlay is a veth pair in one of two modes. By default the kernel passes super-packets on whole and
//! without checksums. With its offloads disabled it behaves like a wire.

use lab::Wiring;

use crate::common::capture::Capture;
use crate::common::{self, Cluster, DUAL, Daemon, KernelNode, packet};

const LODEN: usize = 1;
const KERNEL: usize = 2;

/// Bytes of each bulk transfer; `LODEN_TEST_BYTES` overrides it.
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

/// Checks the tunnel's MTU to the byte. The pods' own MTUs are raised, so that the tunnel's is the limit.
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
            // Routers never fragment IPv6, and these IPv4 packets have DF set.
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

/// The kernel forwards a datagram with a wrong checksum, and its receiver drops it. With GRO on the uplink,
/// such datagrams arrive in trains whose outer checksums are right.
#[test]
fn no_side_repairs_a_wrong_checksum() {
    const COUNT: usize = 4000;
    if !ready(&["ethtool"]) {
        return;
    }
    let pair = pair_of("iop-sum", true, DUAL);
    for number in [LODEN, KERNEL] {
        pair.cluster.shell(number, "ethtool -K eth0 gro on");
    }
    let damaged = (COUNT / common::DAMAGED) as u64;
    for ipv6 in [false, true] {
        for (from, to) in [(LODEN, KERNEL), (KERNEL, LODEN)] {
            common::ping(&pair.cluster, from, to, ipv6);
            let report = common::damaged_flow(&pair.cluster, from, to, ipv6, COUNT);
            assert_eq!((report.changed, report.arrived), (0, COUNT as u64 - damaged), "{report:?} to {to}");
        }
    }
    for tunnel in pair.daemon.finish() {
        for direction in ["egress", "ingress"] {
            let dropped = tunnel.get(&format!("{direction}.drop.bad_transport_checksum"));
            assert_eq!(dropped, damaged, "{direction} of {}", tunnel.device);
        }
    }
}

/// A kernel that learns drops packets that do not come from the address in its entry, and must learn no
/// other.
#[test]
fn a_kernel_that_learns_knows_us_by_the_address_we_publish() {
    if !ready(&["bridge"]) {
        return;
    }
    let pair = pair_of("iop-lrn", false, &with_vxlan(r#""Learning":true"#));
    let shown = pair.cluster.shell(KERNEL, "ip -d link show flannel.1; ip -d link show flannel-v6.1");
    assert!(shown.matches("vxlan id 1 ").count() == 2 && !shown.contains("nolearning"), "{shown}");
    let entries =
        || pair.cluster.shell(KERNEL, "bridge fdb show dev flannel.1; bridge fdb show dev flannel-v6.1");
    let before = entries();
    assert_eq!(before.matches(" self permanent").count(), 2, "{before}");
    for ipv6 in [false, true] {
        common::ping(&pair.cluster, LODEN, KERNEL, ipv6);
        common::ping(&pair.cluster, KERNEL, LODEN, ipv6);
        common::verified(&pair.cluster, LODEN, KERNEL, ipv6, 8 << 20);
        common::verified(&pair.cluster, KERNEL, LODEN, ipv6, 8 << 20);
    }
    assert_eq!(entries(), before);
    pair.nothing_was_dropped();
}

/// Clusters with Windows nodes use a VNI of at least 4096 and the assigned port.
#[test]
fn the_numbers_that_windows_nodes_need_are_on_the_wire() {
    if !ready(&[]) {
        return;
    }
    let pair = pair_of("iop-win", true, &with_vxlan(r#""VNI":4096,"Port":4789"#));
    for ipv6 in [false, true] {
        common::ping(&pair.cluster, LODEN, KERNEL, ipv6);
        let mut wire = Capture::start(pair.cluster.host(KERNEL).namespace());
        common::ping(&pair.cluster, LODEN, KERNEL, ipv6);
        common::ping(&pair.cluster, KERNEL, LODEN, ipv6);
        let (at, header) = if ipv6 { (6, 14 + 40) } else { (9, 14 + 20) };
        let mut tunnelled = Vec::new();
        common::await_until("both directions", || {
            tunnelled.extend(wire.frames().into_iter().filter(|frame| {
                frame.get(14 + at) == Some(&packet::UDP)
                    && frame.get(header + 2..header + 4) == Some(&[0x12, 0xb5])
            }));
            tunnelled.len() >= 4
        });
        for frame in &tunnelled {
            assert_eq!(frame[header + 8..header + 16], [8, 0, 0, 0, 0, 0x10, 0, 0], "{frame:02x?}");
        }
    }
    let attrs = pair.cluster.lease(LODEN).attrs.to_json();
    assert_eq!(attrs.matches(r#"{"VNI":4096,"VtepMAC":""#).count(), 2, "{attrs}");
    let shown = pair.cluster.shell(LODEN, "ip -o link | cut -d: -f2");
    assert!(shown.contains(" flannel.4096") && shown.contains(" flannel-v6.4096"), "{shown}");
    pair.nothing_was_dropped();
}

fn with_vxlan(more: &str) -> String {
    DUAL.replace(r#""Type":"vxlan""#, &format!(r#""Type":"vxlan",{more}"#))
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
        // A dual-stack node gives its pods an MTU of 1450, and its IPv6 tunnel carries 1430. The first
        // datagram of a size in between is lost and answered with packet-too-big, which the pod remembers.
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

/// Builds host 1 with loden and host 2 with the kernel's vxlan, with a pod each. The kernel host joins first,
/// so loden finds it in the store.
fn pair(name: &str, wire_like: bool) -> Option<Pair> {
    let programs: &[&str] = if wire_like { &["ethtool"] } else { &[] };
    if !ready(programs) {
        return None;
    }
    Some(pair_of(name, wire_like, DUAL))
}

fn ready(programs: &[&str]) -> bool {
    common::needs(programs).and("the kernel's vxlan", common::has_vxlan()).are_met()
}

fn pair_of(name: &str, wire_like: bool, config: &str) -> Pair {
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, config);
    if wire_like {
        cluster.make_wire_like(LODEN);
        cluster.make_wire_like(KERNEL);
    }
    let kernel = KernelNode::join(&mut cluster, KERNEL);
    let daemon = cluster.start(LODEN, &[]);
    cluster.connect_pod(LODEN);
    kernel.add_peer(&cluster, &cluster.lease(LODEN));
    let routes = || cluster.shell(LODEN, "ip route; ip -6 route").matches(" via ").count();
    common::await_until("the peer's routes", || routes() == 2);
    Pair { daemon, cluster }
}
