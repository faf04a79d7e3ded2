//! The lab on a real kernel: everything works, and nothing is left behind.

// clippy.toml allows unwrap only in test functions, not in their helpers.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use lab::{
    FlannelVxlan, Host, Lab, Namespace, Needs, PodNetwork, Process, Route, Topology, VxlanPeer, Wiring, veth,
};

/// Time limit, long enough for a busy machine; a success returns at once.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_dropped_namespace_leaves_nothing() {
    if !Needs::root().are_met() {
        return;
    }
    let name = unique("gone");
    let namespace = Namespace::create(&name).unwrap();
    assert_eq!(Namespace::names(&name), std::slice::from_ref(&name));
    let links = namespace.links().unwrap();
    assert_eq!(links.iter().filter(|link| link.name == "lo" && link.up).count(), 1);
    let taken = Namespace::create(&name).unwrap_err().to_string();
    assert!(taken.contains("File exists") && taken.contains("ip netns delete"), "{taken}");
    drop(namespace);
    assert!(Namespace::names(&name).is_empty());
    assert!(Namespace::open(&name).is_err());
}

#[test]
fn names_that_are_paths_are_rejected() {
    for name in ["", "a/b", "..", ".x"] {
        assert!(Namespace::create(name).is_err());
    }
}

#[test]
fn a_panic_inside_is_propagated_and_cleans_up() {
    if !Needs::root().are_met() {
        return;
    }
    let name = unique("panic");
    let prefix = unique("panic-lab");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let namespace = Namespace::create(&name).unwrap();
        let topology = Topology { prefix: prefix.clone(), ..Topology::new("", 2) };
        let _lab = Lab::build(&topology).unwrap();
        namespace.run(|| panic!("inside")).unwrap();
    }));
    let message = *outcome.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(message, "inside");
    assert!(Namespace::names(&name).is_empty());
    assert!(Namespace::names(&prefix).is_empty());
}

#[test]
fn the_calling_thread_stays_outside() {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&unique("outside")).unwrap();
    let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = here();
    let inside = namespace.run(here).unwrap();
    assert_ne!(before, inside);
    assert_eq!(before, here());
}

#[test]
fn veth_ends_ping_each_other_in_both_families() {
    if !Needs::root().are_met() {
        return;
    }
    let left = Namespace::create(&unique("left")).unwrap();
    let right = Namespace::create(&unique("right")).unwrap();
    veth((&left, "a"), (&right, "b"), 1400).unwrap();
    assert_eq!(left.link("a").unwrap().mtu, 1400);
    assert_eq!(right.link("b").unwrap().mtu, 1400);
    left.add_address("a", net("10.9.0.1/24")).unwrap();
    right.add_address("b", net("10.9.0.2/24")).unwrap();
    left.add_address("a", net("fd09::1/64")).unwrap();
    right.add_address("b", net("fd09::2/64")).unwrap();
    left.ping(ip("10.9.0.2"), 56, LIMIT).unwrap();
    right.ping(ip("10.9.0.1"), 1372, LIMIT).unwrap();
    left.ping(ip("fd09::2"), 56, LIMIT).unwrap();
    let silent = left.ping(ip("10.9.0.77"), 56, Duration::from_millis(50)).unwrap_err().to_string();
    assert!(silent.contains("10.9.0.77"), "{silent}");

    left.set_mac("a", [2, 0, 0, 0, 0, 9]).unwrap();
    assert_eq!(left.link("a").unwrap().mac, [2, 0, 0, 0, 0, 9]);
    left.set_down("a").unwrap();
    assert!(!left.link("a").unwrap().up);
    left.delete_link("a").unwrap();
    assert!(right.link("b").is_err());
}

#[test]
fn sysctls_belong_to_the_namespace() {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&unique("sysctl")).unwrap();
    namespace.set_sysctl("net.ipv4.ip_default_ttl", "77").unwrap();
    assert_eq!(namespace.sysctl("net.ipv4.ip_default_ttl").unwrap(), "77");
    let other = Namespace::create(&unique("sysctl2")).unwrap();
    assert_ne!(other.sysctl("net.ipv4.ip_default_ttl").unwrap(), "77");
    let error = namespace.set_sysctl("net.ipv4.no_such_thing", "1").unwrap_err().to_string();
    assert!(error.contains("net.ipv4.no_such_thing"), "{error}");
}

#[test]
fn pods_reach_each_other_through_plain_routes_on_both_wirings() {
    if !Needs::root().are_met() {
        return;
    }
    for (wiring, hosts) in [(Wiring::Switch, 3), (Wiring::Direct, 2)] {
        let prefix = unique(&format!("plain{hosts}"));
        let mut lab =
            Lab::build(&Topology { prefix: prefix.clone(), wiring, ..Topology::new("", hosts) }).unwrap();
        connect_pods(&mut lab, 1500);
        for host in lab.hosts() {
            for peer in lab.hosts().iter().filter(|peer| peer.number() != host.number()) {
                for (subnet, via) in [
                    (IpNetwork::V4(subnet4(peer)), IpAddr::V4(peer.underlay())),
                    (IpNetwork::V6(subnet6(peer)), IpAddr::V6(peer.underlay6())),
                ] {
                    let route = Route { destination: subnet, via: Some(via), device: None, onlink: false };
                    host.namespace().add_route(&route).unwrap();
                }
            }
        }
        assert_eq!(ping_all(&lab), hosts * (hosts - 1) * 2);
        drop(lab);
        assert!(Namespace::names(&prefix).is_empty());
    }
}

#[test]
fn kernel_vxlan_as_flannel_sets_it_up_carries_both_families() {
    if !Needs::root().are_met() {
        return;
    }
    let prefix = unique("vxlan");
    let wiring = Wiring::Direct;
    let mut lab = Lab::build(&Topology { prefix, wiring, ..Topology::new("", 2) }).unwrap();
    connect_pods(&mut lab, 1430);
    for host in lab.hosts() {
        for (name, local, address, mtu) in [
            ("flannel.1", host.underlay().into(), subnet4(host).network().into(), 1450),
            ("flannel-v6.1", host.underlay6().into(), subnet6(host).network().into(), 1430),
        ] {
            let mac = mac(host);
            let vxlan = FlannelVxlan {
                name,
                vni: 1,
                port: 8472,
                parent: host.uplink(),
                local,
                mac,
                address,
                mtu,
                learning: false,
            };
            host.namespace().add_flannel_vxlan(&vxlan).unwrap();
            assert_eq!(host.namespace().link(name).unwrap().mtu, mtu);
            assert_eq!(host.namespace().link(name).unwrap().mac, mac);
        }
    }
    for (host, peer) in [(0, 1), (1, 0)].map(|(host, peer)| (&lab.hosts()[host], &lab.hosts()[peer])) {
        for (device, subnet, remote) in [
            ("flannel.1", subnet4(peer).into(), peer.underlay().into()),
            ("flannel-v6.1", subnet6(peer).into(), peer.underlay6().into()),
        ] {
            host.namespace().add_vxlan_peer(device, &VxlanPeer { subnet, mac: mac(peer), remote }).unwrap();
        }
    }
    assert_eq!(ping_all(&lab), 4);
}

#[test]
fn a_dropped_process_has_exited_and_its_stderr_was_kept() {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&unique("process")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo first >&2; echo last words >&2; exec sleep 1000"]).stdout(Stdio::null());
    let mut process = Process::spawn(&namespace, &mut command).unwrap();
    let id = process.id();
    while process.stderr_tail().lines().count() < 2 {
        assert_eq!(process.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(process.stderr_tail(), "first\nlast words");
    let inside = std::fs::read_link(format!("/proc/{id}/ns/net")).unwrap();
    assert_eq!(inside, namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap());
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
}

#[test]
fn a_process_that_ignores_sigterm_is_killed() {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&unique("stubborn")).unwrap();
    let script = "trap '' TERM; echo ready >&2; while :; do sleep 0.1; done";
    let mut process = Process::spawn(&namespace, Command::new("sh").args(["-c", script])).unwrap();
    while process.stderr_tail().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = process.stop().unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[test]
fn a_detached_process_keeps_running() {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&unique("detached")).unwrap();
    let mut process = Process::spawn(&namespace, Command::new("sleep").arg("1000")).unwrap();
    let id = process.id();
    assert_eq!(process.try_wait().unwrap(), None);
    assert_eq!(process.detach(), id);
    let alive = std::path::Path::new("/proc").join(id.to_string()).exists();
    Command::new("kill").arg(id.to_string()).status().unwrap();
    assert!(alive);
}

#[test]
fn a_missing_program_is_named() {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&unique("missing")).unwrap();
    let error = namespace.spawn(&mut Command::new("/no/such/program")).unwrap_err().to_string();
    assert!(error.contains("/no/such/program") && error.contains("No such file"), "{error}");
}

#[test]
fn impossible_topologies_are_rejected() {
    for (hosts, wiring) in [(0, Wiring::Switch), (251, Wiring::Switch), (3, Wiring::Direct)] {
        assert!(Lab::build(&Topology { wiring, ..Topology::new("never", hosts) }).is_err());
    }
}

fn unique(name: &str) -> String {
    format!("labtest{}-{name}", std::process::id())
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn subnet4(host: &Host) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::new(10, 244, host.number() as u8, 0), 24).unwrap()
}

fn subnet6(host: &Host) -> Ipv6Network {
    Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x244, 0, host.number() as u16, 0, 0, 0, 0), 64).unwrap()
}

fn mac(host: &Host) -> lab::Mac {
    [2, 0, 0, 0, 0, host.number() as u8]
}

fn connect_pods(lab: &mut Lab, mtu: u32) {
    for host in lab.hosts_mut() {
        let network = PodNetwork { ipv4: Some(subnet4(host)), ipv6: Some(subnet6(host)), mtu };
        host.connect_pod(&network).unwrap();
        assert_eq!(host.pod().link("eth0").unwrap().mtu, mtu);
        assert_eq!(host.pod_addresses().len(), 2);
    }
}

/// Pings every ordered pair of pods in every family. Returns the number of replies.
fn ping_all(lab: &Lab) -> usize {
    let mut answered = 0;
    for from in lab.hosts() {
        for to in lab.hosts().iter().filter(|to| to.number() != from.number()) {
            for address in to.pod_addresses() {
                from.pod().ping(*address, 56, LIMIT).unwrap();
                answered += 1;
            }
        }
    }
    answered
}
