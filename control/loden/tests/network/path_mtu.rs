//! Paths that carry less than the tunnel, and forged messages that claim so.
//!
//! ```text
//! host 1 ── router 1 ──(1400)── router 2 ── host 2      real: every host's own link has 1500
//! host 1 ── switch ── host 2, host 3 forges
//! host 1 ── switch ── host 2, and a second link of 1400 that the route uses
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lab::{Namespace, Wiring};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::{
    self, Cluster, Counters, DUAL, Daemon, UDP, VXLAN, await_until, packet, ping, too_big, verified,
};

const IPIP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;
const WIREGUARD: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"wireguard","Mode":"ipv6"}}"#;
const WIREGUARD_IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#;
const NARROW: u32 = 1400;
const BYTES: u64 = 20_000_000;

/// A tunnel under test: its configuration, the outer and the inner family, and the largest packets for pods
/// on a path of [`NARROW`] and of 1500.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    config: &'static str,
    device: &'static str,
    outer_v6: bool,
    inner_v6: bool,
    narrow: u32,
    wide: u32,
}

const IPIP_V4: Case = Case {
    name: "ipip",
    config: IPIP,
    device: "flannel.ipip",
    outer_v6: false,
    inner_v6: false,
    narrow: 1380,
    wide: 1480,
};
const VXLAN_V6: Case = Case {
    name: "vx6",
    config: DUAL,
    device: "flannel-v6.1",
    outer_v6: true,
    inner_v6: true,
    narrow: 1330,
    wide: 1430,
};
const WIREGUARD_V6: Case = Case {
    name: "wg6",
    config: WIREGUARD,
    device: "flannel-wg",
    outer_v6: true,
    inner_v6: false,
    narrow: 1312,
    wide: 1420,
};
const WIREGUARD_V4: Case = Case {
    name: "wg4",
    config: WIREGUARD_IPV4,
    device: "flannel-wg",
    outer_v6: false,
    inner_v6: false,
    narrow: 1328,
    wide: 1420,
};
const VXLAN_V4: Case = Case {
    name: "vx4",
    config: VXLAN,
    device: "flannel.1",
    outer_v6: false,
    inner_v6: false,
    narrow: 1350,
    wide: 1450,
};
const UDP_V4: Case = Case {
    name: "udp",
    config: UDP,
    device: "flannel0",
    outer_v6: false,
    inner_v6: false,
    narrow: 1372,
    wide: 1472,
};

#[test]
fn ipip_learns_the_mtu_of_a_router_path() {
    real(IPIP_V4);
}

#[test]
fn vxlan_over_ipv6_learns_the_mtu_of_a_router_path() {
    real(VXLAN_V6);
}

#[test]
fn wireguard_over_ipv6_learns_the_mtu_of_a_router_path() {
    real(WIREGUARD_V6);
    real(Case { name: "wg66", inner_v6: true, ..WIREGUARD_V6 });
}

/// The kernel fragments the datagrams that carry them.
#[test]
fn ipv6_packets_of_the_minimum_pass_paths_that_carry_less() {
    for case in [VXLAN_V6, Case { name: "wg66", inner_v6: true, ..WIREGUARD_V6 }] {
        for link in [1349, 1300, 1280] {
            let Some((cluster, daemons)) = start(&format!("pm-n{}", case.name), case, 2) else { return };
            let _far = narrow_path(&cluster, link);
            for inner_v6 in [true, false] {
                verified(&cluster, 1, 2, inner_v6, BYTES / 10);
                verified(&cluster, 2, 1, inner_v6, BYTES / 10);
            }
            assert!(common::unfragmented(&cluster, 1, 2, true, 1280), "{} on {link}", case.name);
            forget(&cluster, 1);
            assert_eq!(too_big(&cluster, 1, 2, true, case.wide), 1280, "{} on {link}", case.name);
            await_until("the notice", || daemons[0].logged("path MTU learned"));
            finish(daemons, case.device, |tunnel| {
                assert_eq!(tunnel.get("egress.drop.underlay_error"), 0, "{:#?}", tunnel.nonzero());
            });
        }
    }
}

#[test]
fn a_narrow_path_is_learned_beside_a_flood_of_other_messages() {
    let Some((cluster, daemons)) = start("pm-flood", VXLAN_V6, 2) else { return };
    let _far = narrow_path(&cluster, NARROW);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let flood = || {
        let (own, strange) = (cluster.host(1).underlay6(), "2001:db8::9".parse().expect("an address"));
        // Nothing at all, another protocol's packet, a packet from another port, one to another host.
        let quoted = |to: Ipv6Addr, port| packet::udp(own.into(), to.into(), (port, 8472), &[8; 1400]);
        let mut tcp = quoted(cluster.host(2).underlay6(), 8472);
        tcp[6] = 6;
        let quotes = [vec![0xff; 48], tcp, quoted(cluster.host(2).underlay6(), 1), quoted(strange, 8472)];
        while !stop.load(Ordering::Relaxed) {
            for quote in &quotes {
                let message = [&[2, 0, 0, 0, 0, 0, 0x05, 0], &quote[..48]].concat();
                (0..3).for_each(|_| send_icmp(&cluster, true, &message));
                sent.fetch_add(3, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let router = cluster.lab.switch().expect("a router");
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| router.run(flood).expect("the router"));
        // Enough to fill whatever waits.
        await_until("a flood", || flood.is_finished() || sent.load(Ordering::Relaxed) > 1_000);
        learn(&cluster, VXLAN_V6);
        stop.store(true, Ordering::Relaxed);
        flood.join().expect("the flood");
    });
    finish(daemons, VXLAN_V6.device, |_| {});
}

#[test]
fn a_router_path_fragments_what_has_no_df() {
    for case in [VXLAN_V4, UDP_V4, WIREGUARD_V4] {
        let Some((cluster, daemons)) = start(&format!("pm-{}", case.name), case, 2) else { return };
        let _far = narrow_path(&cluster, NARROW);
        verified(&cluster, 1, 2, false, BYTES);
        assert!(common::unfragmented(&cluster, 1, 2, false, case.wide), "as flannel's");
        finish(daemons, case.device, |tunnel| assert!(tunnel.unexplained_drops().is_empty()));
    }
}

#[test]
fn ipip_ignores_forged_messages() {
    forged(IPIP_V4);
}

#[test]
fn udp_formats_over_ipv4_ignore_forged_messages() {
    [VXLAN_V4, UDP_V4, WIREGUARD_V4].into_iter().for_each(forged);
}

#[test]
fn vxlan_over_ipv6_ignores_forged_messages() {
    forged(VXLAN_V6);
}

#[test]
fn wireguard_over_ipv6_ignores_forged_messages() {
    forged(WIREGUARD_V6);
}

#[test]
fn ipip_learns_the_mtu_of_another_interface() {
    other_interface(IPIP_V4);
}

#[test]
fn vxlan_over_ipv4_learns_the_mtu_of_another_interface() {
    other_interface(VXLAN_V4);
}

#[test]
fn vxlan_over_ipv6_learns_the_mtu_of_another_interface() {
    other_interface(VXLAN_V6);
}

#[test]
fn udp_learns_the_mtu_of_another_interface() {
    other_interface(UDP_V4);
}

#[test]
fn wireguard_over_ipv4_learns_the_mtu_of_another_interface() {
    other_interface(WIREGUARD_V4);
}

#[test]
fn wireguard_over_ipv6_learns_the_mtu_of_another_interface() {
    other_interface(WIREGUARD_V6);
    other_interface(Case { name: "wg66", inner_v6: true, ..WIREGUARD_V6 });
}

/// Packets of pods fit the path soon, and nothing is sent in outer fragments then.
fn real(case: Case) {
    let Some((cluster, daemons)) = start(&format!("pm-r{}", case.name), case, 2) else { return };
    let _far = narrow_path(&cluster, NARROW);
    let Case { inner_v6, outer_v6, .. } = case;
    learn(&cluster, case);
    verified(&cluster, 1, 2, inner_v6, BYTES);
    verified(&cluster, 2, 1, inner_v6, BYTES);
    assert!(common::unfragmented(&cluster, 1, 2, inner_v6, case.narrow));
    await_until("the notice", || daemons[0].logged("path MTU learned"));
    let fragments = || cluster.shell(1, "grep -E 'FragCreates' /proc/net/snmp6; true");
    let before = fragments();
    if !inner_v6 {
        without_df(&cluster, case.wide);
    }
    verified(&cluster, 1, 2, inner_v6, BYTES);
    if outer_v6 {
        assert_eq!(fragments(), before, "outer fragments");
    }
    finish(daemons, case.device, |tunnel| {
        let refused = tunnel.get("underlay.resent") + tunnel.get("egress.drop.underlay_error");
        assert_eq!(refused, 0, "{:#?}", tunnel.nonzero());
    });
}

/// Whoever does not know what was sent changes nothing.
fn forged(case: Case) {
    let Some((cluster, daemons)) = start(&format!("pm-f{}", case.name), case, 3) else { return };
    let Case { inner_v6, outer_v6, .. } = case;
    ping(&cluster, 1, 2, inner_v6);
    verified(&cluster, 1, 2, inner_v6, BYTES);
    for message in forgeries(&cluster, case) {
        cluster.host(3).namespace().run(|| send_icmp(&cluster, outer_v6, &message)).expect("host 3");
    }
    // Both at once, or the kernel would have to be asked about its cache.
    assert!(common::unfragmented(&cluster, 1, 2, inner_v6, case.wide));
    verified(&cluster, 1, 2, inner_v6, BYTES);
    assert!(common::unfragmented(&cluster, 1, 2, inner_v6, case.wide));
    assert!(!daemons[0].logged("path MTU learned"), "{}", daemons[0].log_text());
    finish(daemons, case.device, |tunnel| {
        assert!(tunnel.unexplained_drops().is_empty(), "{:#?}", tunnel.nonzero());
        assert_eq!(tunnel.get("underlay.resent"), 0);
    });
}

/// The device's MTU is smaller than that of the interface that the tunnel was planned for.
fn other_interface(case: Case) {
    let Some((cluster, daemons)) = start(&format!("pm-o{}", case.name), case, 2) else { return };
    let Case { inner_v6, .. } = case;
    let (one, two) = (cluster.host(1).namespace(), cluster.host(2).namespace());
    lab::veth((one, "eth1"), (two, "eth1"), NARROW).expect("a second link");
    for number in [1, 2] {
        let far = cluster.host(3 - number);
        let (v4, v6) = (far.underlay(), far.underlay6());
        // A host answers neighbour solicitations only for addresses of the device itself.
        cluster.shell(
            number,
            &format!(
                "ip addr add fd00:77::{number}/64 dev eth1 nodad && ip route add {v4}/32 dev eth1 && \
                 ip -6 route add {v6}/128 via fd00:77::{} dev eth1 metric 1",
                3 - number
            ),
        );
    }
    // The kernel refuses only trains; what is sent singly it fragments.
    for (from, to) in [(1, 2), (2, 1)] {
        // A pod that knows the path's MTU offers an MSS with which the other host's trains are not refused.
        forget(&cluster, to);
        verified(&cluster, from, to, inner_v6, BYTES);
        await_until("the limit", || daemons[from - 1].logged("path MTU learned"));
    }
    learn(&cluster, case);
    if !inner_v6 {
        without_df(&cluster, case.wide);
    }
    let before = daemons[0].fresh_counters();
    verified(&cluster, 1, 2, inner_v6, BYTES);
    let resent = |all: &[Counters]| all.iter().map(|one| one.get("underlay.resent")).sum::<u64>();
    assert_eq!(resent(&daemons[0].fresh_counters()), resent(&before), "trains are refused");
    drop(daemons);
}

/// Starts a tunnel's daemons on `hosts` hosts, with pods on the first two.
fn start(name: &str, case: Case, hosts: usize) -> Option<(Cluster, Vec<Daemon>)> {
    if !common::ready(&[]) {
        return None;
    }
    let mut cluster = Cluster::build(name, hosts, Wiring::Switch, case.config);
    let daemons: Vec<Daemon> = [1, 2].map(|number| cluster.start(number, &[])).into();
    [1, 2].iter().for_each(|number| cluster.connect_pod(*number));
    let applied = format!("applied device={} peers=1", case.device);
    await_until("the peers", || daemons.iter().all(|daemon| daemon.logged(&applied)));
    ping(&cluster, 1, 2, case.inner_v6);
    Some((cluster, daemons))
}

/// Turns the switch into two routers with a link of `mtu` between them. Returns the second router.
fn narrow_path(cluster: &Cluster, mtu: u32) -> Namespace {
    let near = cluster.lab.switch().expect("a switch");
    let far = Namespace::create(&format!("{}r", near.name())).expect("a router");
    let shell = |namespace: &Namespace, line: String| {
        let output = namespace.output(std::process::Command::new("sh").args(["-c", &line])).expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    shell(near, format!("ip link del br0; ip link set port2 netns {}", far.name()));
    lab::veth((near, "mid"), (&far, "mid"), mtu).expect("a link");
    for (router, own, other) in [(near, 1, 2), (&far, 2, 1)] {
        let (host, remote) = (cluster.host(own), cluster.host(other));
        shell(
            router,
            format!(
                "for f in all default mid port{own}; do echo 0 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done
                 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                   net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                   net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
                 ip link set port{own} up; ip link set mid up
                 ip addr add 198.18.{own}.1/32 dev port{own}
                 ip addr add fd00:{own}::1/128 dev port{own} nodad
                 ip addr add 198.18.9.{own}/24 dev mid; ip addr add fd00:9::{own}/64 dev mid nodad
                 ip route add {}/32 dev port{own}; ip -6 route add {}/128 dev port{own}
                 ip route add {}/32 via 198.18.9.{other}; ip -6 route add {}/128 via fd00:9::{other}",
                host.underlay(),
                host.underlay6(),
                remote.underlay(),
                remote.underlay6()
            ),
        );
        cluster.shell(
            own,
            &format!(
                "ip route add {}/32 via 198.18.{own}.1 dev eth0 onlink; \
                 ip -6 route add fd00:{own}::1/128 dev eth0; \
                 ip -6 route add {}/128 via fd00:{own}::1 dev eth0; \
                 ip neigh flush dev eth0; ip -6 neigh flush dev eth0",
                remote.underlay(),
                remote.underlay6()
            ),
        );
    }
    let inner_v6 = cluster.host(1).pod_addresses().iter().any(IpAddr::is_ipv6);
    await_until("the routers", || {
        let address = cluster.pod(2, inner_v6);
        cluster.host(1).pod().ping(address, 56, Duration::from_secs(1)).is_ok()
    });
    far
}

/// Sends packets with DF until a pod of each side is told how large they may be.
fn learn(cluster: &Cluster, case: Case) {
    let Case { inner_v6, narrow, wide, .. } = case;
    for (from, to) in [(1, 2), (2, 1)] {
        let (pod, address) = (cluster.host(from).pod(), cluster.pod(to, inner_v6));
        let payload = wide as usize - if inner_v6 { 48 } else { 28 };
        let known = format!(" mtu {narrow} ");
        // The first packets are lost on the way, as with any router.
        await_until("the pod to be told", || {
            let _ = pod.ping(address, payload, Duration::from_millis(300));
            let mut route = std::process::Command::new("ip");
            let shown = pod.output(route.args(["route", "get", &address.to_string()])).expect("ip");
            String::from_utf8_lossy(&shown.stdout).replace('\n', " ").contains(&known)
        });
        forget(cluster, from);
        assert_eq!(too_big(cluster, from, to, inner_v6, wide), narrow, "from {from} to {to}");
    }
}

/// Makes a pod forget what it has been told about paths.
fn forget(cluster: &Cluster, number: usize) {
    let flush = ["-c", "ip route flush cache; ip -6 route flush cache"];
    cluster.host(number).pod().output(std::process::Command::new("sh").args(flush)).expect("sh");
}

/// Sends an IPv4 datagram that may be fragmented, of `length` IP bytes.
fn without_df(cluster: &Cluster, length: u32) {
    let bind = |number: usize| {
        let address = SocketAddr::new(cluster.pod(number, false), 0);
        cluster.host(number).pod().run(|| UdpSocket::bind(address).expect("a socket")).expect("the pod")
    };
    let receiver = bind(2);
    receiver.set_read_timeout(Some(common::LIMIT)).expect("a time limit");
    let to = receiver.local_addr().expect("an address");
    let payload: Vec<u8> = (0..length - 28).map(|index| (index * 7) as u8).collect();
    let mut datagram = packet::udp(cluster.pod(1, false), to.ip(), (4000, to.port()), &payload);
    // The kernel fills in the checksum.
    datagram[6] = 0;
    let send = || {
        // IPPROTO_RAW: the header comes with the packet (raw(7)).
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket");
        socket.send_to(&datagram, &to.into()).expect("sent");
    };
    cluster.host(1).pod().run(send).expect("the pod");
    let mut buffer = [0; 4096];
    let len = receiver.recv(&mut buffer).expect("a datagram without DF");
    assert_eq!(buffer[..len], payload);
}

/// ICMP messages to host 1 from somebody who knows both hosts, the tunnel's port and its network, but has
/// seen nothing.
fn forgeries(cluster: &Cluster, case: Case) -> Vec<Vec<u8>> {
    let (one, two) = (cluster.host(1), cluster.host(2));
    // VXLAN network 1, or a WireGuard record.
    let heads: [&[u8]; 2] = [&[8, 0, 0, 0, 0, 0, 1, 0], &[4, 0, 0, 0, 1, 0, 0, 0]];
    let ports = [8472, 8285, 51_820, 51_821];
    let pairs = ports.iter().flat_map(|from| ports.iter().map(move |to| (*from, *to)));
    if !case.outer_v6 && case.device != "flannel.ipip" {
        let quote = |(from, to): (u16, u16), head: &[u8]| {
            let mut payload = head.to_vec();
            payload.resize(1420, 0);
            let quoted = packet::udp(one.underlay().into(), two.underlay().into(), (from, to), &payload);
            let mut message = vec![3, 4, 0, 0, 0, 0, 0x02, 0x40];
            message.extend(&quoted[..48]);
            let sum = packet::checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            message
        };
        return pairs.flat_map(|pair| heads.map(|head| quote(pair, head))).collect();
    }
    if !case.outer_v6 {
        let quote = |id: u16| {
            let mut outer = packet::ip(one.underlay().into(), two.underlay().into(), 4, &[0; 1480]);
            outer[4..6].copy_from_slice(&id.to_be_bytes());
            outer[20..28].copy_from_slice(&[0x45, 0, 0x05, 0xc8, 0, 0, 0x40, 0]);
            outer.truncate(28);
            let mut message = vec![3, 4, 0, 0, 0, 0, 0x02, 0x40];
            message.extend(outer);
            let sum = packet::checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            message
        };
        return (0..20).map(quote).collect();
    }
    let quote = |(from, to): (u16, u16), head: &[u8]| {
        let mut payload = head.to_vec();
        payload.resize(1420, 0);
        let mut message = vec![2, 0, 0, 0, 0, 0, 0x05, 0];
        message.extend(packet::udp(one.underlay6().into(), two.underlay6().into(), (from, to), &payload));
        message.truncate(1240);
        message
    };
    pairs.flat_map(|pair| heads.map(|head| quote(pair, head))).collect()
}

fn send_icmp(cluster: &Cluster, ipv6: bool, message: &[u8]) {
    let host = cluster.host(1);
    let (domain, protocol, to) = match ipv6 {
        false => (Domain::IPV4, Protocol::ICMPV4, IpAddr::from(host.underlay())),
        true => (Domain::IPV6, Protocol::ICMPV6, IpAddr::from(host.underlay6())),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
    socket.send_to(message, &SocketAddr::new(to, 0).into()).expect("sent");
}

fn finish(daemons: Vec<Daemon>, device: &str, check: impl Fn(&Counters)) {
    for daemon in daemons {
        daemon.finish().iter().filter(|tunnel| tunnel.device == device).for_each(&check);
    }
}
