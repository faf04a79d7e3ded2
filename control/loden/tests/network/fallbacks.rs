//! The datapath without the kernel features that make it fast: each alone and all together, disabled by the
//! operator or hidden by a seccomp filter. The bytes must be right; the speed is measured by the bench.

use io::mask::{self, Feature};
use lab::Wiring;

use crate::common::{self, Cluster, Daemon, KernelNode, VXLAN};

/// Bytes of each bulk transfer.
const BULK: u64 = 64 << 20;

// Two loden hosts and one with the kernel's vxlan.
const FIRST: usize = 1;
const SECOND: usize = 2;
const KERNEL: usize = 3;

#[test]
fn without_tso() {
    switched_off("tso", &["tso"]);
}

#[test]
fn without_uso() {
    switched_off("uso", &["uso"]);
}

#[test]
fn without_udp_segment() {
    switched_off("gso", &["gso"]);
}

#[test]
fn without_udp_gro() {
    switched_off("gro", &["gro"]);
}

#[test]
fn without_batch_calls() {
    switched_off("mmsg", &["mmsg"]);
}

#[test]
fn without_multiqueue() {
    switched_off("multiqueue", &["multiqueue"]);
}

#[test]
fn without_anything() {
    switched_off("all", &["tso", "uso", "gso", "gro", "mmsg", "multiqueue"]);
}

#[test]
fn on_a_kernel_without_tun_offloads() {
    hidden("ftun", &[Feature::TunOffload], &["tso", "uso"]);
}

#[test]
fn on_a_kernel_without_uso() {
    hidden("fuso", &[Feature::TunUso], &["uso"]);
}

#[test]
fn on_a_kernel_without_udp_segment() {
    hidden("fseg", &[Feature::UdpSegment], &["gso"]);
}

#[test]
fn on_a_kernel_without_udp_gro() {
    hidden("fgro", &[Feature::UdpGro], &["gro"]);
}

#[test]
fn on_a_kernel_without_batch_calls() {
    hidden("fmmsg", &[Feature::BatchCalls], &["mmsg"]);
}

#[test]
fn on_a_kernel_without_anything() {
    hidden("fnone", &mask::ALL, &["tso", "uso", "gso", "gro", "mmsg"]);
}

fn switched_off(name: &str, off: &[&str]) {
    if ready() {
        right_bytes(&format!("off-{name}"), off, |cluster, host| cluster.start(host, &["--without", name]));
    }
}

fn hidden(name: &str, features: &[Feature], off: &[&str]) {
    if ready() {
        right_bytes(name, off, |cluster, host| cluster.start_without(host, features));
    }
}

fn ready() -> bool {
    common::needs(&[]).and("the kernel's vxlan", common::has_vxlan()).are_met()
}

/// Starts both daemons, sends every kind of traffic between all hosts, and checks that the daemons report and
/// work without the features in `off`.
fn right_bytes(name: &str, off: &[&str], start: impl Fn(&Cluster, usize) -> Daemon) {
    let mut cluster = Cluster::build(name, 3, Wiring::Switch, VXLAN);
    let kernel = KernelNode::join(&mut cluster, KERNEL);
    let daemons = [FIRST, SECOND].map(|host| start(&cluster, host));
    for host in [FIRST, SECOND] {
        cluster.connect_pod(host);
        kernel.add_peer(&cluster, &cluster.lease(host));
    }
    cluster.await_routes(FIRST, 2);
    for (from, to) in [(FIRST, SECOND), (SECOND, FIRST), (FIRST, KERNEL), (KERNEL, FIRST)] {
        common::verified(&cluster, from, to, false, BULK);
    }
    for (from, to) in [(FIRST, SECOND), (FIRST, KERNEL)] {
        // Around zero bytes, one packet, two fragments and seven fragments.
        for sizes in [0..=40, 1390..=1460, 2800..=2860, 8960..=9000] {
            common::every_size(&cluster, from, to, false, sizes);
        }
    }
    for daemon in daemons {
        let said = daemon.log_text();
        for tunnel in daemon.finish() {
            for (feature, on) in &tunnel.features {
                assert!(!(*on && off.contains(&feature.as_str())), "{feature} is still on");
            }
            assert!(tunnel.unexplained_drops().is_empty(), "{:#?}", tunnel.nonzero());
        }
        let line =
            said.lines().find(|line| line.contains("datapath device=")).expect("a line on the datapath");
        let without = line.split(" without=").nth(1).expect("what it does without");
        let without = without.split("why=").next().unwrap_or_default();
        for feature in off {
            assert!(without.contains(feature), "{feature} is not in: {line}");
        }
    }
}
