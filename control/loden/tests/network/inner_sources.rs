//! Packets in the tunnel that no other node may send: the host's own protocols, and sources that belong to
//! nobody behind the tunnel. Each is counted by name, and the host stays as it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab::Wiring;
use model::backend::VxlanData;
use model::lease::RawJson;

use crate::common::packet;
use crate::common::{self, Cluster, DUAL, Daemon, PORT, VXLAN};

const VICTIM: usize = 1;
/// Has no daemon: the test sends from it.
const STRANGER: usize = 2;
const ICMPV6: u8 = 58;
const OPEN_PORT: u16 = 4242;
const TIMES: u64 = 3;

#[test]
fn a_router_advertisement_in_the_tunnel_changes_nothing() {
    let Some(cluster) = hosts("inner-ra", VXLAN) else { return };
    // As on a host that takes its own default route from its network.
    let listens = |device: &str| {
        for (name, value) in [("forwarding", "0"), ("accept_ra", "1")] {
            let name = format!("net.ipv6.conf.{device}.{name}");
            cluster.host(VICTIM).namespace().set_sysctl(&name, value).expect("a setting");
        }
    };
    listens("all");
    listens("default");
    let daemon = cluster.start(VICTIM, &[]);
    for (family, setting) in
        [("ipv6", "accept_ra"), ("ipv6", "accept_redirects"), ("ipv4", "accept_redirects")]
    {
        let name = format!("net.{family}.conf.flannel/1.{setting}");
        assert_eq!(cluster.host(VICTIM).namespace().sysctl(&name).expect("a setting"), "0", "{name}");
    }
    // Somebody turns it on again: the workers drop the advertisement.
    listens("flannel/1");
    let lease = cluster.lease(VICTIM);
    let sender = Sender::new(&cluster, mac(lease.attrs.backend_data.as_ref()), false);
    let router = "fe80::bad".parse().expect("an address");
    for _ in 0..TIMES {
        sender.send(&advertisement(router));
    }
    await_drops(&daemon, 0, "wrong_family", TIMES);
    assert_eq!(cluster.shell(VICTIM, "ip -6 route show default"), "");
    // Nobody reports a changed setting, so the daemon needs another reason to look.
    cluster.shell(VICTIM, "ip addr add 203.0.113.9 dev lo");
    common::await_until("the settings to return", || {
        cluster.host(VICTIM).namespace().sysctl("net.ipv6.conf.flannel/1.accept_ra").expect("a setting")
            == "0"
    });
}

#[test]
fn sources_that_no_other_node_may_use_are_dropped_by_name() {
    let Some(mut cluster) = hosts("inner-src", DUAL) else { return };
    let daemon = cluster.start(VICTIM, &[]);
    cluster.connect_pod(VICTIM);
    let lease = cluster.lease(VICTIM);
    let (v4, v6) = (lease.subnet().expect("IPv4"), lease.ipv6_subnet().expect("IPv6"));
    let added = ["203.0.113.77", "2001:db8::77"];
    let add =
        |to: &str| added.map(|address| cluster.shell(VICTIM, &format!("ip addr {to} {address} dev lo")));
    let host = cluster.host(VICTIM);
    let own: [[IpAddr; 3]; 2] = [
        [v4.network().into(), host.underlay().into(), added[0].parse().expect("an address")],
        [v6.network().into(), host.underlay6().into(), added[1].parse().expect("an address")],
    ];
    let bad: [&[&str]; 2] = [
        &["127.0.0.1", "0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "255.255.255.255"],
        &["::1", "::", "fe80::1", "febf::1", "ff02::1"],
    ];
    // A peer's base address, a pod, and a client outside of the cluster network.
    let good: [&[&str]; 2] = [
        &["10.244.255.0", "10.244.255.9", "203.0.113.78", "169.253.0.1"],
        &["fd00:244:0:ffff::", "2001:db8::78", "fec0::1"],
    ];
    for (tunnel, data) in
        [lease.attrs.backend_data.as_ref(), lease.attrs.backend_v6_data.as_ref()].into_iter().enumerate()
    {
        let v6 = tunnel == 1;
        let sender = Sender::new(&cluster, mac(data), v6);
        let pod = cluster.pod(VICTIM, v6);
        let open = || UdpSocket::bind(SocketAddr::new(pod, OPEN_PORT)).expect("a socket");
        let listener = cluster.host(VICTIM).pod().run(open).expect("the pod");
        listener.set_read_timeout(Some(common::LIMIT)).expect("a time limit");
        let send = |source: IpAddr| sender.send(&packet::udp(source, pod, (1, OPEN_PORT), b"who"));
        let arrives = |what: &str| assert_eq!(listener.recv(&mut [0; 64]).ok(), Some(3), "{what}");
        for source in bad[tunnel] {
            (0..TIMES).for_each(|_| send(source.parse().expect("an address")));
        }
        await_drops(&daemon, tunnel, "bad_source", TIMES * bad[tunnel].len() as u64);
        for source in good[tunnel] {
            send(source.parse().expect("an address"));
            arrives(source);
        }
        // Not an address of the host yet.
        send(own[tunnel][2]);
        arrives("an address that nobody has");
        add("add");
        let dropped = || daemon.fresh_counters()[tunnel].get("ingress.drop.own_source");
        common::await_until("the new address to count as the host's", || {
            send(own[tunnel][2]);
            dropped() > 0
        });
        let before = dropped();
        for source in own[tunnel] {
            (0..TIMES).for_each(|_| send(source));
        }
        await_drops(&daemon, tunnel, "own_source", before + TIMES * 3);
        add("del");
        listener.set_read_timeout(Some(Duration::from_millis(50))).expect("a time limit");
        common::await_until("the address to be nobody's again", || {
            send(own[tunnel][2]);
            listener.recv(&mut [0; 64]).is_ok()
        });
        // The other family does not travel in this tunnel.
        let stranger: [IpAddr; 2] = if v6 {
            [Ipv4Addr::new(10, 244, 255, 9).into(), cluster.pod(VICTIM, false)]
        } else {
            [Ipv6Addr::from((0xfd00_0244_u128 << 96) | 9).into(), cluster.pod(VICTIM, true)]
        };
        sender.send(&packet::udp(stranger[0], stranger[1], (1, OPEN_PORT), b"who"));
        await_drops(&daemon, tunnel, "wrong_family", 1);
    }
}

fn hosts(name: &str, config: &str) -> Option<Cluster> {
    common::ready(&[]).then(|| Cluster::build(name, 2, Wiring::Direct, config))
}

fn await_drops(daemon: &Daemon, tunnel: usize, reason: &str, count: u64) {
    let name = format!("ingress.drop.{reason}");
    common::await_until(&format!("{count} drops: {reason}"), || {
        let now = daemon.next_counters()[tunnel].get(&name);
        assert!(now <= count, "{now} drops: {reason}");
        now == count
    });
}

fn mac(data: Option<&RawJson>) -> [u8; 6] {
    VxlanData::parse(data.expect("vxlan data").as_str()).expect("vxlan data").mac.octets()
}

/// A plain UDP socket of the stranger, and the victim's tunnel.
struct Sender {
    socket: UdpSocket,
    to: SocketAddr,
    mac: [u8; 6],
}

impl Sender {
    fn new(cluster: &Cluster, mac: [u8; 6], v6: bool) -> Sender {
        let (victim, any): (IpAddr, IpAddr) = if v6 {
            (cluster.host(VICTIM).underlay6().into(), Ipv6Addr::UNSPECIFIED.into())
        } else {
            (cluster.host(VICTIM).underlay().into(), Ipv4Addr::UNSPECIFIED.into())
        };
        let open = || UdpSocket::bind(SocketAddr::new(any, 0)).expect("a socket");
        let socket = cluster.host(STRANGER).namespace().run(open).expect("the stranger");
        Sender { socket, to: SocketAddr::new(victim, PORT), mac }
    }

    fn send(&self, packet: &[u8]) {
        let datagram = packet::vxlan(1, self.mac, [0x0e, 0x2a, 0, 0, 0, 0x99], packet);
        self.socket.send_to(&datagram, self.to).expect("send");
    }
}

/// Builds a router advertisement to all nodes (RFC 4861 section 4.2), with a lifetime of 1800 s.
fn advertisement(router: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(1800u16.to_be_bytes());
    message.extend([0; 8]);
    let sum = packet::transport_sum(router.into(), all_nodes.into(), ICMPV6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut whole = packet::ip(router.into(), all_nodes.into(), ICMPV6, &message);
    whole[7] = 255;
    whole
}
