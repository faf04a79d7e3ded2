//! The life of a node: what a start adds to the host, what a stop removes, what survives a crash, and how
//! peers that come and go appear on the others. The forms are flannel's.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ipnetwork::IpNetwork;
use lab::Wiring;
use nix::sys::signal::Signal;

use crate::common::{self, Cluster, DUAL, Daemon, UDP, VXLAN, route, route_v6};

#[test]
fn signals_end_it_in_good_order() {
    let Some(cluster) = cluster("life-sig", 2, DUAL) else { return };
    let peer = cluster.start(2, &[]);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = cluster.start(1, &[]);
        cluster.await_routes(1, 1);
        let (lease, env) = (cluster.lease(1), fs::read(&daemon.subnet_file).expect("subnet.env"));
        let before = common::leftovers(&cluster, 1);
        assert_eq!(daemon.end(signal).code(), Some(0), "{}", daemon.log_text());
        // Like flannel's vxlan device; without a reader it has no carrier.
        let after = common::leftovers(&cluster, 1);
        assert_eq!(names(&after), names(&before), "{signal}");
        assert_eq!(cluster.lease(1), lease, "the lease is kept for the next start");
        assert_eq!(fs::read(&daemon.subnet_file).expect("kept, as in flannel"), env);
    }
    drop(peer);
}

fn names(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_crash_leaves_a_device_that_the_next_start_takes_over_with_the_same_subnet() {
    let Some(cluster) = cluster("life-kill", 1, DUAL) else { return };
    let mut daemon = cluster.start(1, &[]);
    let key = cluster.lease(1).key;
    let env = fs::read(&daemon.subnet_file).expect("subnet.env");
    let device = || cluster.shell(1, "ip -o link show flannel.1 | cut -d: -f1");
    let before = device();
    assert_eq!(daemon.end(Signal::SIGKILL).code(), None);
    assert_eq!(device(), before);

    // By its public address, without a subnet file.
    fs::remove_file(&daemon.subnet_file).expect("subnet.env");
    let mut daemon = cluster.start(1, &[]);
    assert_eq!(cluster.lease(1).key, key);
    assert_eq!(device(), before, "the same device, with its routes and addresses");
    assert_eq!(fs::read(&daemon.subnet_file).expect("subnet.env"), env);
    daemon.end(Signal::SIGKILL);

    // By subnet.env, when the store has lost the lease.
    assert!(cluster.in_store(async |store| store.remove(&key).await.expect("the store")));
    let daemon = cluster.start(1, &[]);
    // The daemon is ready from its state file, and acquires the lease afterwards.
    common::await_until("its lease", || !cluster.leases().is_empty());
    assert_eq!(cluster.lease(1).key, key);
    assert_eq!(fs::read(&daemon.subnet_file).expect("subnet.env"), env);
}

#[test]
fn a_third_node_comes_and_goes_and_the_others_follow() {
    let Some(mut cluster) = cluster("life-3", 3, DUAL) else { return };
    let mut daemons = [1, 2].map(|host| cluster.start(host, &[]));
    for host in [1, 2] {
        cluster.connect_pod(host);
        cluster.await_routes(host, 1);
    }
    let third = cluster.start(3, &[]);
    cluster.connect_pod(3);
    for host in [1, 2] {
        cluster.await_routes(host, 2);
        let others = [1, 2, 3].into_iter().filter(|other| *other != host).map(|other| cluster.lease(other));
        let (v4, v6): (Vec<_>, Vec<_>) = others.map(|lease| (route(&lease), route_v6(&lease))).unzip();
        assert_eq!(sorted(&cluster.shell(host, "ip route show dev flannel.1")), sorted(&v4.join("\n")));
        let shown = cluster.shell(host, "ip -6 route show dev flannel-v6.1");
        // Without the kernel's own route for the device's address, and without the preference of each route.
        let made = shown.lines().filter(|line| !line.contains("proto kernel"));
        let forms: Vec<&str> = made.map(|line| line.split(" pref").next().unwrap_or(line)).collect();
        assert_eq!(sorted(&forms.join("\n")), sorted(&v6.join("\n")));
    }
    for ipv6 in [false, true] {
        common::ping(&cluster, 1, 3, ipv6);
        common::ping(&cluster, 3, 2, ipv6);
    }
    let (key, address) = (cluster.lease(3).key, cluster.pod(3, false));
    let counters = third.finish();
    assert!(counters.iter().all(|tunnel| tunnel.unexplained_drops().is_empty()), "{counters:?}");
    assert!(cluster.in_store(async |store| store.remove(&key).await.expect("the store")));
    for host in [1, 2] {
        cluster.await_routes(host, 1);
    }
    // The two that stay are not disturbed, and the third is unreachable at once.
    common::ping(&cluster, 1, 2, false);
    let gone = cluster.host(1).pod().ping(address, 8, Duration::from_secs(5)).expect_err("no route");
    assert!(gone.to_string().contains("ICMP type 3 code 0"), "{gone}");
    assert!(daemons.iter_mut().all(Daemon::is_running));
}

#[test]
fn devices_addresses_and_subnet_env_are_flannels() {
    let Some(cluster) = cluster("life-form", 1, DUAL) else { return };
    let daemon = cluster.start(1, &[]);
    let lease = cluster.lease(1);
    let (v4, v6) = (lease.subnet().expect("IPv4"), lease.ipv6_subnet().expect("IPv6"));
    assert_eq!((v4.prefix(), v6.prefix()), (24, 64));
    let [first_v4, first_v6] =
        [IpNetwork::V4(v4), IpNetwork::V6(v6)].map(|subnet| common::nth(subnet.network(), 1));
    let expected = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={first_v4}/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n\
         FLANNEL_IPV6_SUBNET={first_v6}/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(fs::read_to_string(&daemon.subnet_file).expect("subnet.env"), expected);
    let mode = fs::metadata(&daemon.subnet_file).expect("subnet.env").permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);

    // The base address as /32 or /128, and none that the kernel generates.
    for (device, address, mtu) in [
        ("flannel.1", format!("{}/32", v4.network()), 1450),
        ("flannel-v6.1", format!("{}/128", v6.network()), 1430),
    ] {
        let shown = cluster.shell(1, &format!("ip -o address show dev {device}"));
        let addresses: Vec<&str> = shown.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
        assert_eq!(addresses, [address.as_str()], "{device}");
        let link = cluster.host(1).namespace().link(device).expect("a device");
        assert!(link.up && link.mtu == mtu, "{link:?}");
    }
    let text = lease.attrs.to_json();
    let (public, public6) = (cluster.host(1).underlay(), cluster.host(1).underlay6());
    let start = format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":"{public6}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":""#
    );
    assert!(text.starts_with(&start) && text.contains(r#"},"BackendV6Data":{"VNI":1,"VtepMAC":""#), "{text}");
}

#[test]
fn the_udp_backend_has_one_device_and_one_route() {
    let Some(mut cluster) = cluster("life-udp", 2, UDP) else { return };
    let daemons = [1, 2].map(|host| cluster.start(host, &[]));
    for host in [1, 2] {
        cluster.connect_pod(host);
        assert_eq!(cluster.shell(host, "ip route show dev flannel0"), "10.244.0.0/16");
        let subnet = cluster.lease(host).subnet().expect("IPv4");
        let gateway = common::nth(subnet.network().into(), 1);
        let expected = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
        );
        let env = &daemons[host - 1].subnet_file;
        assert_eq!(fs::read_to_string(env).expect("subnet.env"), expected);
        let text = cluster.lease(host).attrs.to_json();
        assert_eq!(text, format!(r#"{{"PublicIP":"198.18.0.{host}","PublicIPv6":null}}"#));
    }
    common::await_until("a ping", || {
        let to = cluster.pod(2, false);
        cluster.host(1).pod().ping(to, 56, Duration::from_secs(1)).is_ok()
    });
    common::verified(&cluster, 1, 2, false, 64 << 20);
    common::verified(&cluster, 2, 1, false, 64 << 20);
    common::every_size(&cluster, 1, 2, false, 0..=3000);
    // An address that no node has is answered as in flannel: net unreachable.
    let nobody: IpAddr = "10.244.255.254".parse().expect("an address");
    let told = cluster.host(1).pod().ping(nobody, 8, Duration::from_secs(5)).expect_err("nobody is there");
    assert!(told.to_string().contains("ICMP type 3 code 0"), "{told}");
}

#[test]
fn a_single_family_writes_four_lines() {
    let Some(cluster) = cluster("life-v4", 1, VXLAN) else { return };
    let daemon = cluster.start(1, &["--subnet-lease-renew-margin", "5"]);
    let subnet = cluster.lease(1).subnet().expect("IPv4");
    let gateway = common::nth(subnet.network().into(), 1);
    let expected = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(fs::read_to_string(&daemon.subnet_file).expect("subnet.env"), expected);
}

fn cluster(name: &str, hosts: usize, config: &str) -> Option<Cluster> {
    common::ready(&["ip"]).then(|| Cluster::build(name, hosts, Wiring::Switch, config))
}

fn sorted(lines: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    lines
}
