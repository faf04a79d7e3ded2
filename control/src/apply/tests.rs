//! Plans applied twice, from clean and from dirty states, in a network namespace that ends with the test.

use std::collections::BTreeSet;
use std::sync::Mutex;

use ipnetwork::IpNetwork;
use model::subnet_env::SubnetEnv;
use nix::sched::{CloneFlags, unshare};
use path::encap::Format;
use path::fib::Fib;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use wire::addr::Mtu;

use super::*;
use crate::plan::{Link, Peer, Place, Route};

const DEVICE: &str = "flannel.1";
const DEVICE_V6: &str = "flannel-v6.1";

#[test]
fn a_fresh_device_becomes_as_planned_and_stays() {
    in_namespace(async |world| {
        let plan = plan(&[2, 3]);
        let first = world.apply(&plan).await;
        assert!(first.changes > 0 && first.failures.is_empty(), "{first:?}");
        assert_eq!(
            world.shell("ip -4 -o addr show dev flannel.1 | grep -o 'inet .*' | cut -d' ' -f2"),
            "10.244.1.0/32"
        );
        assert_eq!(
            world.shell("ip -4 route show dev flannel.1"),
            "10.244.2.0/24 via 10.244.2.0 onlink\n10.244.3.0/24 via 10.244.3.0 onlink"
        );
        assert_eq!(
            world.shell("ip -6 route show dev flannel-v6.1 proto boot"),
            "fd00:244:2::/64 via fd00:244:2:: metric 1024 onlink pref medium\n\
             fd00:244:3::/64 via fd00:244:3:: metric 1024 onlink pref medium"
        );
        assert_eq!(
            world.shell("ip -6 -o addr show scope link | grep flannel || true"),
            "",
            "no link-local address"
        );
        assert_eq!(world.shell("cat /proc/sys/net/ipv6/conf/flannel-v6.1/accept_ra"), "0");
        assert!(world.shell("ip link show flannel.1").contains("mtu 1450 qdisc"), "MTU");
        for (device, length) in [("flannel.1", 700), ("flannel-v6.1", 300)] {
            let link = world.shell(&format!("ip link show {device}"));
            assert!(link.contains(&format!("qlen {length}")), "{link}");
        }
        assert_eq!(world.published.lock().expect("lock").as_slice(), [(0, 2), (1, 2)]);

        let second = world.apply(&plan).await;
        assert_eq!((second.changes, second.failures.len()), (0, 0), "nothing left to do");
    });
}

/// Ten thousand peers on a slow machine take longer than a loop that does not turn is taken for alive.
#[test]
fn each_change_of_a_long_round_shows_that_it_goes_on() {
    in_namespace(async |world| {
        let answers = std::sync::Arc::new(Mutex::new(0));
        let counted = std::sync::Arc::clone(&answers);
        let netlink = world.netlink.reporting(move || *counted.lock().expect("lock") += 1);
        *world.applier.lock().await =
            Applier::new(netlink, disk(), world.directory.path().join("env"), "loden test");
        let applied = world.apply(&plan(&(2..=200).collect::<Vec<_>>())).await;
        assert!(applied.changes > 2 * 199 && applied.failures.is_empty(), "{applied:?}");
        let answers = *answers.lock().expect("lock");
        assert!(answers > 2 * 199, "{answers}");
    });
}

#[test]
fn the_kernel_routes_a_peer_subnet_into_the_device() {
    in_namespace(async |world| {
        world.apply(&plan(&[2])).await;
        let out = world.shell("ip route get 10.244.2.7");
        assert!(out.contains("via 10.244.2.0 dev flannel.1 src 10.244.1.0"), "{out}");
        let out = world.shell("ip route get fd00:244:2::7");
        assert!(
            out.contains("via fd00:244:2:: dev flannel-v6.1") && out.contains("src fd00:244:1::"),
            "{out}"
        );
    });
}

#[test]
fn peers_come_and_go() {
    in_namespace(async |world| {
        world.apply(&plan(&[2, 3])).await;
        let change = world.apply(&plan(&[3, 4])).await;
        // Two tables, and for each family one route more and one less.
        assert_eq!(change.changes, 2 + 4);
        assert_eq!(world.routes(DEVICE), ["10.244.3.0/24", "10.244.4.0/24"]);
        assert_eq!(world.routes(DEVICE_V6), ["fd00:244:3::/64", "fd00:244:4::/64"]);
        world.apply(&plan(&[])).await;
        assert!(world.routes(DEVICE).is_empty() && world.routes(DEVICE_V6).is_empty());
    });
}

#[test]
fn changes_by_other_programs_are_reverted() {
    in_namespace(async |world| {
        let plan = plan(&[2, 3]);
        world.apply(&plan).await;
        world.shell("ip route del 10.244.2.0/24");
        world.shell("ip addr del 10.244.1.0/32 dev flannel.1");
        world.shell("ip link set flannel.1 mtu 1300");
        let repaired = world.apply(&plan).await;
        // When the address went, the kernel removed the other route as well.
        assert_eq!(repaired.changes, 4);
        world.shell("ip link set flannel.1 down");
        assert!(world.apply(&plan).await.changes > 0);
        assert_eq!(world.routes(DEVICE), ["10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(world.apply(&plan).await.changes, 0);
    });
}

#[test]
fn addresses_and_routes_of_others_are_left_alone() {
    in_namespace(async |world| {
        world.shell("ip addr add 203.0.113.5/32 dev flannel.1");
        world.shell("ip link set flannel.1 up");
        world.shell("ip route add 198.51.100.0/24 dev flannel.1");
        world.shell("ip route add 10.244.9.0/24 dev flannel.1 proto static");
        world.shell("ip addr add 10.244.1.1/24 dev lo");
        world.apply(&plan(&[2])).await;
        world.apply(&plan(&[])).await;
        assert!(world.shell("ip -o addr show dev flannel.1").contains("203.0.113.5/32"));
        assert!(world.shell("ip -o addr show dev lo").contains("10.244.1.1/24"));
        assert_eq!(world.routes(DEVICE), ["10.244.9.0/24", "198.51.100.0/24"]);
    });
}

#[test]
fn leftovers_in_the_cluster_network_are_removed() {
    in_namespace(async |world| {
        world.shell("ip addr add 10.244.7.0/32 dev flannel.1");
        world.shell("ip -6 addr add fd00:244:7::/128 dev flannel-v6.1");
        world.shell("ip link set flannel.1 up");
        world.shell("ip route add 10.244.2.0/24 via 10.244.2.9 dev flannel.1 onlink");
        world.shell("ip route add 10.244.8.0/24 via 10.244.8.0 dev flannel.1 onlink");
        world.apply(&plan(&[2])).await;
        assert!(!world.shell("ip -o addr").contains("10.244.7.0"));
        assert!(!world.shell("ip -o addr").contains("fd00:244:7::"));
        assert_eq!(world.shell("ip -4 route show dev flannel.1"), "10.244.2.0/24 via 10.244.2.0 onlink");
    });
}

#[test]
fn another_global_address_on_the_ipv6_device_is_removed() {
    in_namespace(async |world| {
        // flannel clears its IPv6 device of all but link-local addresses, its IPv4 device of the cluster
        // network's.
        world.shell("ip -6 addr add 2001:db8::5/64 dev flannel-v6.1");
        world.shell("ip -6 addr add fe80::5/64 dev flannel-v6.1");
        world.shell("ip -6 addr add fd00:244:1::/64 dev flannel-v6.1");
        world.shell("ip -6 addr add 2001:db8::6/64 dev flannel.1");
        world.apply(&plan(&[2])).await;
        assert_eq!(
            world.shell("ip -6 -o addr show dev flannel-v6.1 | grep -o 'inet6 [^ ]*' | sort"),
            "inet6 fd00:244:1::/128\ninet6 fe80::5/64"
        );
        assert!(world.shell("ip -6 addr show dev flannel.1").contains("2001:db8::6"), "IPv4 only");
        assert_eq!(world.apply(&plan(&[2])).await.changes, 0, "nothing left to do");
    });
}

#[test]
fn ipv6_is_turned_on_where_the_device_needs_it() {
    in_namespace(async |world| {
        let (plan, setting) = (plan(&[2]), "/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6");
        // As for a device that was created under net.ipv6.conf.default.disable_ipv6=1.
        for _ in 0..2 {
            world.shell(&format!(
                "echo 1 > {setting}; echo 1 > /proc/sys/net/ipv6/conf/flannel.1/disable_ipv6"
            ));
            let applied = world.apply(&plan).await;
            assert!(applied.failures.is_empty(), "{applied:?}");
            assert_eq!(world.shell(&format!("cat {setting}")), "0");
            assert_eq!(world.shell("cat /proc/sys/net/ipv6/conf/flannel.1/disable_ipv6"), "1", "IPv4 only");
            assert_eq!(world.routes(DEVICE_V6), ["fd00:244:2::/64"]);
            assert_eq!(world.shell("ip -6 -o addr show scope link | grep flannel || true"), "");
        }
        assert_eq!(world.apply(&plan).await.changes, 0, "nothing left to do");
    });
}

#[test]
fn the_hosts_own_protocols_are_off_on_every_device() {
    in_namespace(async |world| {
        let read = || {
            let names = [
                "ipv6/conf/DEV/accept_ra",
                "ipv6/conf/DEV/accept_redirects",
                "ipv4/conf/DEV/accept_redirects",
            ];
            let paths = [DEVICE, DEVICE_V6].iter().flat_map(|device| {
                names.map(|name| format!("/proc/sys/net/{}", name.replace("DEV", device)))
            });
            world.shell(&format!("cat {}", paths.collect::<Vec<_>>().join(" ")))
        };
        for device in [DEVICE, DEVICE_V6] {
            world.shell(&format!("echo 2 > /proc/sys/net/ipv6/conf/{device}/accept_ra"));
        }
        world.apply(&plan(&[2])).await;
        assert_eq!(read(), ["0"; 6].join("\n"));
        assert_eq!(world.apply(&plan(&[2])).await.changes, 0, "nothing left to do");
    });
}

#[test]
fn a_route_of_others_over_the_pod_network_is_no_obstacle() {
    in_namespace(async |world| {
        world.underlay();
        world
            .shell("ip route add 10.244.0.0/16 via 192.0.2.9; ip -6 route add fd00:244::/32 via 2001:db8::9");
        // As close to a peer's base address as a route can be.
        world.shell(
            "ip route add 10.244.3.0/32 via 192.0.2.9; ip -6 route add fd00:244:3::/128 via 2001:db8::9",
        );
        let others = "ip route show dev up0; ip -6 route show dev up0";
        let before = world.shell(others);
        let plan = plan(&[2, 3]);
        let first = world.apply(&plan).await;
        assert!(first.failures.is_empty(), "{:?}", first.failures);
        assert_eq!(
            world.shell("ip -6 route show dev flannel-v6.1 proto boot"),
            "fd00:244:2::/64 via fd00:244:2:: metric 1024 onlink pref medium\n\
             fd00:244:3::/64 via fd00:244:3:: metric 1024 onlink pref medium"
        );
        assert_eq!(world.routes(DEVICE), ["10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(world.shell(others), before);
        assert_eq!(world.apply(&plan).await.changes, 0, "nothing left to do");
    });
}

#[test]
fn many_routes_come_under_a_cover_that_goes() {
    in_namespace(async |world| {
        let many: Vec<u8> = (2..=200).collect();
        // A route of others to the same network: the cover must not replace it.
        world.shell("ip link set lo up; ip route add 10.244.0.0/16 dev lo metric 50");
        let log = world.subnet_file().with_file_name("events");
        let mut monitor = std::process::Command::new("ip");
        monitor.args(["monitor", "route"]).stdout(std::fs::File::create(&log).expect("a file"));
        let mut monitor = monitor.spawn().expect("ip monitor");
        let events = || std::fs::read_to_string(&log).expect("the events");
        // It reports from some moment on, and in order.
        let await_report = |address: &str| {
            while !events().contains(address) {
                world.shell(&format!("ip route add {address} dev lo; ip route del {address} dev lo"));
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        };
        await_report("192.0.2.1");
        let applied = world.apply(&plan(&many)).await;
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        for (device, count) in [(DEVICE, many.len()), (DEVICE_V6, many.len())] {
            assert_eq!(world.routes(device).len(), count, "{:?}", world.routes(device));
        }
        assert_eq!(world.shell("ip route show 10.244.0.0/16"), "10.244.0.0/16 dev lo scope link metric 50");
        await_report("192.0.2.2");
        let _ = (monitor.kill(), monitor.wait());
        let events = events();
        let covers: Vec<&str> = events.lines().filter(|line| line.contains("metric 4294967295")).collect();
        let of = |start: &str| covers.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!((of("10.244.0.0/16"), of("Deleted 10.244.0.0/16")), (1, 1), "{covers:?}");
        assert_eq!((of("fd00:244::/32"), of("Deleted fd00:244::/32")), (1, 1), "{covers:?}");
        let first = |start: &str| events.lines().position(|line| line.starts_with(start)).expect("an event");
        assert!(first("10.244.0.0/16") < first("10.244.2.0/24"));
        assert!(first("Deleted 10.244.0.0/16") > first("10.244.200.0/24"));
        // A cover left behind by a crash is removed.
        world.shell(&format!("ip route add 10.244.0.0/16 dev {DEVICE} scope global metric 4294967295"));
        let applied = world.apply(&plan(&many)).await;
        assert_eq!(applied.changes, 1, "{applied:?} {}", world.shell("ip route show 10.244.0.0/16"));
        assert_eq!(world.routes(DEVICE).len(), many.len());
    });
}

#[test]
fn a_missing_device_is_reported_as_gone() {
    in_namespace(async |world| {
        let plan = plan(&[2]);
        world.apply(&plan).await;
        world.shell("ip link del flannel.1");
        let mut applier = Applier::new(world.netlink.clone(), disk(), world.subnet_file(), "loden test");
        let error = applier.apply(&plan, world).await.expect_err("no device");
        assert!(matches!(&error, ApplyError::DeviceGone(device) if device == DEVICE), "{error}");
    });
}

#[test]
fn the_subnet_file_comes_last() {
    in_namespace(async |world| {
        let mut broken = plan(&[2]);
        broken.tunnels[1].link.device = "nosuch0".into();
        let mut applier = Applier::new(world.netlink.clone(), disk(), world.subnet_file(), "loden test");
        applier.apply(&broken, world).await.expect_err("no such device");
        assert!(!world.subnet_file().exists(), "written before the device exists");
        assert!(world.published.lock().expect("lock").is_empty());
        world.apply(&plan(&[2])).await;
        assert!(world.subnet_file().exists());
    });
}

#[test]
fn routes_without_a_tunnel_follow_the_plan_and_strangers_stay() {
    in_namespace(async |world| {
        world.underlay();
        // Leftovers of an earlier run, and routes of others that differ in length, protocol, gateway or
        // network.
        world.shell("ip route add 10.244.9.0/24 via 192.0.2.9 dev up0");
        world.shell("ip route add 10.244.10.0/24 via 192.0.2.9 dev up0 proto static");
        world.shell("ip route add 10.244.128.0/20 via 192.0.2.9 dev up0");
        world.shell("ip route add 10.244.11.0/24 dev up0");
        world.shell("ip route add 198.51.100.0/24 via 192.0.2.9 dev up0");
        world.shell("ip route add 10.244.2.0/24 via 192.0.2.77 dev up0");
        let strangers = ["10.244.10.0/24", "10.244.11.0/24", "10.244.128.0/20", "198.51.100.0/24"];

        let plan = direct(&[2, 3]);
        let first = world.apply(&plan).await;
        assert!(first.failures.is_empty(), "{first:?}");
        assert_eq!(
            world.shell("ip -4 route show dev up0 10.244.2.0/24; ip -4 route show dev up0 10.244.3.0/24"),
            "10.244.2.0/24 via 192.0.2.2\n10.244.3.0/24 via 192.0.2.3"
        );
        assert_eq!(world.routes("up0").len(), strangers.len() + 2, "{:?}", world.routes("up0"));
        let v6 = "ip -6 route show dev up0 proto boot | grep fd00:244";
        assert_eq!(
            world.shell(v6),
            "fd00:244:2::/64 via 2001:db8::2 metric 1024 pref medium\n\
             fd00:244:3::/64 via 2001:db8::3 metric 1024 pref medium"
        );
        assert_eq!(world.apply(&plan).await.changes, 0, "nothing left to do");

        world.shell("ip route del 10.244.2.0/24; ip -6 route flush proto boot dev up0; ip link set up0 down");
        world.shell("ip link set up0 up; ip -6 addr add 2001:db8::1/64 dev up0 nodad || true");
        assert!(world.apply(&plan).await.failures.is_empty());
        assert_eq!(
            world.shell("ip route get 10.244.2.7 | head -1 | cut -d' ' -f1-5"),
            "10.244.2.7 via 192.0.2.2 dev up0"
        );
        assert_eq!(world.apply(&plan).await.changes, 0, "nothing left to do");

        world.apply(&direct(&[])).await;
        assert!(world.try_shell(v6).is_empty());
    });
}

#[test]
fn a_route_moves_between_the_tunnel_and_the_underlay() {
    in_namespace(async |world| {
        world.underlay();
        let (tunnelled, direct) = (plan(&[2]), direct(&[2]));
        let both = Plan { direct: direct.direct.clone(), ..plan(&[]) };
        let back = Plan { direct: self::direct(&[]).direct, ..tunnelled };
        for _ in 0..2 {
            let tunnelled = world.apply(&back).await;
            assert!(tunnelled.failures.is_empty(), "{tunnelled:?}");
            let out = world.shell("ip route get 10.244.2.7; ip route get fd00:244:2::7");
            assert!(out.contains("dev flannel.1") && out.contains("dev flannel-v6.1"), "{out}");
            let change = world.apply(&both).await;
            // Two tables, and each route is replaced in one step.
            assert_eq!((change.changes, change.failures.len()), (4, 0));
            let out = world.shell("ip route get 10.244.2.7; ip route get fd00:244:2::7");
            assert!(
                out.contains("via 192.0.2.2 dev up0") && out.contains("via 2001:db8::2 dev up0"),
                "{out}"
            );
            assert_eq!(world.apply(&both).await.changes, 0);
        }
    });
}

#[test]
fn a_missing_interface_or_an_unreachable_gateway_fails_alone() {
    in_namespace(async |world| {
        let absent = world.apply(&direct(&[2])).await;
        assert_eq!(absent.failures.len(), 1, "{absent:?}");
        assert!(absent.failures[0].to_string().contains("up0"), "{absent:?}");
        world.underlay();
        let mut plan = direct(&[2, 3]);
        let routes = &mut plan.direct.as_mut().expect("direct").routes;
        routes[0].via = Some([203, 0, 113, 9].into());
        let one = world.apply(&plan).await;
        assert_eq!(one.failures.len(), 1, "{one:?}");
        assert!(one.failures[0].to_string().contains("10.244.2.0/24 via 203.0.113.9"), "{one:?}");
        assert!(world.shell("ip route get 10.244.3.7").contains("via 192.0.2.3 dev up0"));
    });
}

#[test]
fn any_dirty_state_converges_to_the_plan() {
    in_namespace(async |world| {
        let states = (prop::collection::vec(dirt(), 0..8), prop::collection::btree_set(2u8..12, 0..6));
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
        for _ in 0..24 {
            let (dirt, peers) = draw(&mut runner, &states);
            for line in &dirt {
                world.try_shell(line);
            }
            let peers: Vec<u8> = peers.into_iter().collect();
            let plan = plan(&peers);
            let first = world.apply(&plan).await;
            assert!(first.failures.is_empty(), "{dirt:?} {peers:?}: {:?}", first.failures);
            assert_eq!(world.apply(&plan).await.changes, 0, "{dirt:?} {peers:?}: not stable");
            let (v4, v6) = (world.ours(&plan, 0).await, world.ours(&plan, 1).await);
            assert_eq!(v4, plan.tunnels[0].routes.iter().copied().collect(), "{dirt:?}");
            assert_eq!(v6, plan.tunnels[1].routes.iter().copied().collect(), "{dirt:?}");
        }
    });
}

fn dirt() -> impl Strategy<Value = String> {
    let device = prop_oneof![Just(DEVICE), Just(DEVICE_V6)];
    (0u8..8, device, 2u8..12).prop_map(|(kind, device, node)| match kind {
        0 => format!("ip link set {device} mtu {}", 1280 + u32::from(node)),
        1 => format!("ip link set {device} down"),
        2 => format!("ip link set {device} txqueuelen {node}"),
        3 => format!("ip addr add 10.244.{node}.0/32 dev {DEVICE}"),
        4 => format!("ip -6 addr add fd00:244:{node}::/128 dev {DEVICE_V6}"),
        5 => format!("ip route replace 10.244.{node}.0/24 via 10.244.{node}.9 dev {DEVICE} onlink"),
        6 => format!("ip -6 route replace fd00:244:{node}::/64 via fd00:244:{node}:: dev {DEVICE_V6} onlink"),
        _ => format!("ip addr flush dev {device}"),
    })
}

fn draw<S: Strategy>(runner: &mut TestRunner, strategy: &S) -> S::Value {
    strategy.new_tree(runner).expect("a value").current()
}

/// Builds the plan of node 1 with two overlays and these other nodes.
fn plan(nodes: &[u8]) -> Plan {
    let v4 = |node: u8| -> IpNetwork { format!("10.244.{node}.0/24").parse().expect("subnet") };
    let v6 = |node: u8| -> IpNetwork { format!("fd00:244:{node}::/64").parse().expect("subnet") };
    let tunnel = |device: &str, own: &str, cluster: &str, mtu, subnet: &dyn Fn(u8) -> IpNetwork| Tunnel {
        link: Link {
            device: device.into(),
            places: vec![Place {
                cluster: cluster.parse().expect("network"),
                subnet: own.parse().expect("subnet"),
            }],
            mtu: Mtu::new(mtu).expect("MTU"),
        },
        routes: nodes.iter().map(|node| Route::via(subnet(*node), subnet(*node).network())).collect(),
        format: Format::Udp,
        secrets: None,
        peers: nodes
            .iter()
            .map(|node| Peer {
                subnet: subnet(*node),
                remote: ([192, 0, 2, *node], 8472).into(),
                mac: None,
                key: None,
            })
            .collect(),
    };
    let network = |text: &str| text.parse().expect("network");
    Plan {
        tunnels: vec![
            tunnel(DEVICE, "10.244.1.0/24", "10.244.0.0/16", 1450, &v4),
            tunnel(DEVICE_V6, "fd00:244:1::/64", "fd00:244::/32", 1430, &v6),
        ],
        direct: None,
        commands: None,
        subnet_env: SubnetEnv {
            ipv4: Some((network("10.244.0.0/16"), network("10.244.1.0/24"))),
            ipv6: None,
            mtu: 1450,
            ip_masq: false,
        },
        ignored: Vec::new(),
    }
}

/// Builds the plan of node 1 without tunnels and with routes to these other nodes.
fn direct(nodes: &[u8]) -> Plan {
    let network = |text: String| -> IpNetwork { text.parse().expect("network") };
    let v4 = nodes
        .iter()
        .map(|node| Route::via(network(format!("10.244.{node}.0/24")), [192, 0, 2, *node].into()));
    let v6 = nodes.iter().map(|node| {
        let gateway = format!("2001:db8::{node}").parse().expect("address");
        Route::via(network(format!("fd00:244:{node}::/64")), gateway)
    });
    let place = |cluster: &str, subnet: &str| Place {
        cluster: network(cluster.into()),
        subnet: network(subnet.into()),
    };
    let direct = Direct {
        interface: "up0".into(),
        places: vec![place("10.244.0.0/16", "10.244.1.0/24"), place("fd00:244::/32", "fd00:244:1::/64")],
        routes: v4.chain(v6).collect(),
        detours: Vec::new(),
    };
    Plan { tunnels: Vec::new(), direct: Some(direct), ..plan(&[]) }
}

/// A namespace with two TUN devices, and a stand-in for the engine that counts peers.
struct World {
    netlink: crate::netlink::Netlink,
    directory: tempfile::TempDir,
    applier: tokio::sync::Mutex<Applier>,
    published: Mutex<Vec<(usize, usize)>>,
}

impl Tables for World {
    fn queue_length(&self, tunnel: usize) -> u32 {
        [700, 300][tunnel]
    }

    fn publish(&self, tunnel: usize, fib: Arc<Fib>) {
        self.published.lock().expect("lock").push((tunnel, fib.len()));
    }

    fn set_peers(&self, _tunnel: usize, peers: Vec<::engine::wireguard::PeerConfig>) {
        assert!(peers.is_empty(), "no tunnel here seals");
    }
}

impl World {
    async fn apply(&self, plan: &Plan) -> Applied {
        self.applier.lock().await.apply(plan, self).await.expect("applied")
    }

    async fn ours(&self, plan: &Plan, tunnel: usize) -> BTreeSet<Route> {
        let Link { device, places, .. } = &plan.tunnels[tunnel].link;
        let index = links::index(&self.netlink, device).await.expect("answer").expect("device");
        let share = Share { device, index, scope: Scope::Tunnel(places), routes: &[] };
        let found = routes::observe(&self.netlink, &[share]).await.expect("answer");
        found.into_iter().map(|(_, route)| route).collect()
    }

    fn subnet_file(&self) -> PathBuf {
        self.directory.path().join("subnet.env")
    }

    /// Lists the destinations of the device's unicast routes, without those that the kernel added itself.
    fn routes(&self, device: &str) -> Vec<String> {
        let family = if device == DEVICE_V6 { "-6" } else { "-4" };
        let text = self.shell(&format!("ip {family} route show dev {device}"));
        let lines = text.lines().filter(|line| !line.contains("proto kernel"));
        lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    fn shell(&self, line: &str) -> String {
        let output = std::process::Command::new("sh").args(["-c", line]).output().expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        // `ip` ends some of its lines with a space.
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    fn try_shell(&self, line: &str) -> String {
        let output = std::process::Command::new("sh").args(["-c", line]).output().expect("sh");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Adds an interface that is not ours: `up0` with 192.0.2.1 and 2001:db8::1.
    fn underlay(&self) {
        self.shell("ip link add up0 type veth peer name far0; ip link set far0 up; ip link set up0 up");
        self.shell("ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad");
    }
}

/// Runs the test in a new namespace that ends with its thread; if that is not possible, prints why.
fn in_namespace(test: impl AsyncFnOnce(&World) + Send) {
    let work = move || {
        if let Err(missing) = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("root rights: {error}"))
            .and_then(|()| {
                let ip = std::process::Command::new("ip").arg("-V").output();
                ip.map(|_| ()).map_err(|error| format!("the ip tool: {error}"))
            })
        {
            assert!(std::env::var_os("CI").is_none(), "this test needs {missing}");
            eprintln!("skipped: this test needs {missing}");
            return;
        }
        let _tuns = [DEVICE, DEVICE_V6].map(|name| {
            let config = io::tun::TunConfig::plain(name, Default::default());
            io::tun::open(&config).expect("a TUN")
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let netlink = crate::netlink::Netlink::connect().expect("netlink");
            let directory = tempfile::tempdir().expect("directory");
            let subnet_file = directory.path().join("subnet.env");
            let applier = Applier::new(netlink.clone(), disk(), subnet_file, "loden test");
            let world = World { netlink, directory, applier: applier.into(), published: Mutex::default() };
            test(&world).await;
        });
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(work).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn disk() -> crate::persist::disk::Disk {
    crate::persist::disk::Disk::start().expect("a thread")
}
