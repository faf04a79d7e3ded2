//! Datagrams that no well-behaved neighbour sends: each is counted under the drop reason that fits, or passes
//! if it is legal, and the traffic of others continues.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use lab::Wiring;
use model::backend::VxlanData;
use model::lease::Lease;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::packet::{self, UDP};
use crate::common::{self, Cluster, DUAL, Daemon, PORT};

const VICTIM: usize = 1;
const OTHER: usize = 2;
/// Has no daemon: the test sends from it.
const STRANGER: usize = 3;

/// How often each bad datagram is sent, so that one that slips through shows in the counts.
const TIMES: u64 = 7;

/// Where the victim's pod listens.
const OPEN_PORT: u16 = 4242;

const STRANGERS_MAC: [u8; 6] = [0x0e, 0x2a, 0, 0, 0, 0x99];

/// Sends bad datagrams of every kind, each counted under its own reason, while a neighbour's traffic
/// continues.
#[test]
fn each_bad_datagram_is_counted_by_name_and_harms_nobody() {
    let Some(scene) = scene("bad-names") else { return };
    let to = &scene.address;
    let listener = scene.listen();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    thread::scope(|scope| {
        let cluster = &scene.cluster;
        let neighbour = scope.spawn(move || {
            common::every_size(cluster, OTHER, VICTIM, false, 0..=3000);
            common::verified(cluster, VICTIM, OTHER, false, 16 << 20);
        });
        for (reason, datagrams) in bad_datagrams(to) {
            for datagram in &datagrams {
                for _ in 0..TIMES {
                    scene.send(datagram);
                }
            }
            *expected.entry(format!("ingress.drop.{reason}")).or_default() += TIMES * datagrams.len() as u64;
        }
        neighbour.join().expect("the neighbour's traffic");
    });
    for (what, datagram, arrives) in unharmed(to) {
        scene.send(&datagram);
        assert_eq!(receive_due(&listener), arrives, "{what}");
    }
    assert_eq!(receive(&listener), None, "nothing else has reached the pod");
    let tunnel = scene.daemon.finish().remove(0);
    let counted: BTreeMap<String, u64> =
        tunnel.unexplained_drops().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    assert_eq!(counted, expected);
}

#[test]
fn ten_thousand_datagrams_of_noise_are_all_accounted_for() {
    const NOISE: u64 = 10_000;
    let Some(mut scene) = scene("bad-noise") else { return };
    let listener = scene.listen();
    let mut random = StdRng::seed_from_u64(0x10de);
    let good = scene.address.datagram(&scene.address.udp(b"good"));
    for number in 0..NOISE {
        // Pure noise fails at the first header; the others fail further in.
        let mut datagram = match number % 4 {
            0 => vec![0; random.random_range(0..2000)],
            1 => good[..22].iter().copied().chain(vec![0; random.random_range(0..200)]).collect(),
            2 => good[..42].iter().copied().chain(vec![0; random.random_range(0..200)]).collect(),
            _ => good.clone(),
        };
        match number % 4 {
            0 => random.fill_bytes(&mut datagram),
            1 => random.fill_bytes(&mut datagram[22..]),
            2 => random.fill_bytes(&mut datagram[42..]),
            _ => {
                let at = random.random_range(0..datagram.len());
                datagram[at] ^= 1 << random.random_range(0..8);
            }
        }
        scene.send(&datagram);
        // Before the sockets' buffers are full, however slow the victim is.
        if number.is_multiple_of(500) {
            scene.cluster.await_read(VICTIM, PORT);
        }
    }
    assert!(scene.daemon.is_running(), "{}", scene.daemon.log_text());
    common::every_size(&scene.cluster, OTHER, VICTIM, false, 0..=100);
    // Outer reserved bits are checked; the inner source MAC address is not, nor is it in any checksum. A
    // changed bit there leaves the payload intact, so only the one good payload may arrive.
    while let Some(payload) = receive(&listener) {
        assert_eq!(payload, b"good");
    }
    let words = scene.daemon.log_text();
    assert!(!words.contains("panicked") && !words.contains("WARN worker"), "{words}");
    let tunnel = scene.daemon.finish().remove(0);
    let dropped: u64 =
        tunnel.drops().iter().filter(|(name, _)| name.starts_with("ingress")).map(|(_, n)| n).sum();
    let taken = tunnel.get("ingress.packets");
    assert!(taken >= NOISE, "{taken} datagrams seen");
    assert_eq!(taken, dropped + tunnel.get("ingress.segments"), "each ends in one verdict");
}

/// The kernel delivers many datagrams as one. A bad one among them drops no other, and one with a false
/// length gets none of the others' bytes.
#[test]
fn a_bad_datagram_in_a_train_harms_no_other() {
    let Some(scene) = scene("bad-train") else { return };
    let to = &scene.address;
    let listener = scene.listen();
    let good = to.datagram(&to.udp(b"passenger"));
    let change = |at: usize| {
        let mut datagram = good.clone();
        datagram[at] ^= 1;
        datagram
    };
    // Claims the whole train as its own, with its checksum left open like a kernel's super-packet.
    let mut lying = to.udp(b"passenger");
    let whole = (4 * good.len() - 22) as u16;
    lying[2..4].copy_from_slice(&whole.to_be_bytes());
    packet::fill_ipv4_checksum(&mut lying);
    lying[24..26].copy_from_slice(&(whole - 20).to_be_bytes());
    let open = packet::open_checksum(to.source, to.pod, whole - 20);
    lying[26..28].copy_from_slice(&open.to_be_bytes());
    for (bad, reason) in [
        (change(0), "vxlan_reserved"),
        (change(6), "wrong_vni"),
        (change(8), "wrong_mac"),
        (change(32), "bad_ip_checksum"),
        (to.datagram(&lying), "truncated"),
    ] {
        for place in 0..4 {
            let train: Vec<&[u8]> =
                (0..4).map(|at| if at == place { bad.as_slice() } else { good.as_slice() }).collect();
            scene.send_train(&train.concat(), good.len());
            // In the first place it cannot be told from a super-packet whose payload looks like datagrams, so
            // the whole train is dropped.
            let rightly = if (reason, place) == ("truncated", 0) { 0 } else { 3 };
            let mut arrived: Vec<_> = (0..rightly).map(|_| receive_due(&listener)).collect();
            while let Some(payload) = receive(&listener) {
                arrived.push(payload);
            }
            assert_eq!(arrived, vec![b"passenger"; rightly], "{reason} in place {place}");
        }
    }
    let tunnel = scene.daemon.finish().remove(0);
    let counted: Vec<u64> = ["vxlan_reserved", "wrong_vni", "wrong_mac", "bad_ip_checksum", "truncated"]
        .map(|reason| tunnel.get(&format!("ingress.drop.{reason}")))
        .into();
    assert_eq!(counted, [4; 5], "{:?}", tunnel.drops());
}

/// Kernels reassemble the fragments: the host's those of the outer packet, the pod's those of the inner one.
/// Neither delivers overlapping ones, and good ones still pass.
#[test]
fn overlapping_fragments_reach_nobody() {
    let Some(scene) = scene("bad-frag") else { return };
    let listener = scene.listen();
    let payload: Vec<u8> = (0..1200u32).map(|index| index as u8).collect();
    let inner = scene.address.udp(&payload);
    let outer = packet::ip(
        scene.cluster.host(STRANGER).underlay().into(),
        scene.cluster.host(VICTIM).underlay().into(),
        UDP,
        &scene.outer_udp(&scene.address.datagram(&inner)),
    );
    for (id, overlap, arrives) in [(1, 8, false), (2, 0, true), (3, 64, false), (4, 0, true)] {
        for fragment in fragments(&outer, id, overlap) {
            scene.send_raw(&fragment);
        }
        let came = if arrives { Some(receive_due(&listener)) } else { receive(&listener) };
        assert_eq!(came.is_some(), arrives, "outer fragments that overlap by {overlap}");
        assert!(came.is_none_or(|came| came == payload));
    }
    for (id, overlap, arrives) in [(5, 8, false), (6, 0, true), (7, 64, false), (8, 0, true)] {
        for fragment in fragments(&inner, id, overlap) {
            scene.send(&scene.address.datagram(&fragment));
        }
        let came = if arrives { Some(receive_due(&listener)) } else { receive(&listener) };
        assert_eq!(came.is_some(), arrives, "inner fragments that overlap by {overlap}");
        assert!(came.is_none_or(|came| came == payload));
    }
    let tunnel = scene.daemon.finish().remove(0);
    assert!(tunnel.unexplained_drops().is_empty(), "{:?}", tunnel.drops());
}

/// Returns the datagrams that must be dropped, by drop reason.
fn bad_datagrams(to: &Address) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let good = to.datagram(&to.udp(b"good"));
    let packet = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = to.udp(b"payload");
        change(&mut packet);
        to.datagram(&packet)
    };
    // The header checksum is corrected, so that it is not the reason for the drop.
    let header = |at: usize, value: u8| {
        packet(&|packet| {
            packet[at] = value;
            packet::fill_ipv4_checksum(packet);
        })
    };
    let outer = |at: usize, value: u8| {
        let mut datagram = good.clone();
        datagram[at] = value;
        datagram
    };
    let mut short_udp = to.udp(b"payload");
    short_udp.truncate(22);
    short_udp[2..4].copy_from_slice(&22u16.to_be_bytes());
    packet::fill_ipv4_checksum(&mut short_udp);
    let [a, b] = [1, 2].map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]));
    let mut v6_in_v4 = to.datagram(&packet::udp(a, b, (1, 2), b"v6"));
    v6_in_v4[20..22].copy_from_slice(&[0x08, 0x00]);
    let mut bad_tcp = packet::tcp(to.source, to.pod, (1, OPEN_PORT), b"payload");
    *bad_tcp.last_mut().expect("a byte") ^= 1;
    let mut largest = to.udp(&[0xa5; 65_507 - 22 - 28]);
    largest[30] ^= 1;
    vec![
        (
            "truncated",
            vec![
                Vec::new(),
                good[..7].to_vec(),
                good[..21].to_vec(),
                good[..22].to_vec(),
                good[..30].to_vec(),
                good[..good.len() - 1].to_vec(),
                // A length beyond the end.
                header(3, 250),
            ],
        ),
        (
            "vxlan_reserved",
            vec![
                vec![0; 100],
                vec![0xff; 100],
                outer(0, 0x00),
                outer(0, 0x0c),
                outer(1, 0x80),
                outer(3, 0x01),
                outer(7, 0x01),
            ],
        ),
        ("wrong_vni", vec![outer(6, 2), outer(4, 1)]),
        (
            "wrong_mac",
            vec![
                packet::vxlan(1, [0xff; 6], STRANGERS_MAC, &to.udp(b"broadcast")),
                packet::vxlan(1, STRANGERS_MAC, [0; 6], &to.udp(b"elsewhere")),
            ],
        ),
        ("own_mac", vec![packet::vxlan(1, to.mac, to.mac, &to.udp(b"loop"))]),
        ("wrong_ethertype", vec![outer(21, 0x06), outer(20, 0x81)]),
        (
            "not_ip",
            vec![
                header(0, 0x55),
                packet(&|packet| packet.fill(0)),
                packet(&|packet| packet.fill(0xff)),
                // IPv6 with the Ethernet type of IPv4.
                v6_in_v4,
            ],
        ),
        (
            "bad_ip_header",
            vec![
                // Header lengths below 20, and a total length below the header.
                packet(&|packet| packet[0] = 0x44),
                packet(&|packet| packet[0] = 0x40),
                packet(&|packet| packet[2..4].copy_from_slice(&19u16.to_be_bytes())),
            ],
        ),
        ("bad_ip_checksum", vec![packet(&|packet| packet[11] ^= 1), packet(&|packet| packet[8] = 63)]),
        (
            "bad_transport_header",
            vec![
                to.datagram(&short_udp),
                // A UDP length beyond the packet.
                packet(&|packet| packet[24..26].copy_from_slice(&200u16.to_be_bytes())),
            ],
        ),
        (
            "bad_transport_checksum",
            vec![
                packet(&|packet| *packet.last_mut().expect("a byte") ^= 1),
                packet(&|packet| packet[27] ^= 1),
                to.datagram(&bad_tcp),
                to.datagram(&largest),
            ],
        ),
    ]
}

/// Returns odd but legal datagrams: a name, the datagram, and the payload that the pod must get.
fn unharmed(to: &Address) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let mut options = to.udp(b"options");
    options[0] = 0x46;
    // One word of NOP options.
    options.splice(20..20, [1, 1, 1, 0]);
    let length = (options.len() as u16).to_be_bytes();
    options[2..4].copy_from_slice(&length);
    packet::fill_ipv4_checksum(&mut options);
    let mut trailing = to.udp(b"trailing bytes");
    trailing.extend([0xee; 40]);
    let mut unsummed = to.udp(b"no checksum");
    unsummed[26..28].fill(0);
    // Leaves the tunnel whole; the host fragments it for the pod.
    let long: Vec<u8> = (0..3000u32).map(|index| (index * 3) as u8).collect();
    let mut oversized = to.udp(&long);
    oversized[6] = 0;
    packet::fill_ipv4_checksum(&mut oversized);
    let mut foreign = to.datagram(&to.udp(b"zero source MAC"));
    foreign[14..20].fill(0);
    vec![
        ("IP options", to.datagram(&options), b"options".to_vec()),
        ("bytes behind the packet's end", to.datagram(&trailing), b"trailing bytes".to_vec()),
        ("UDP without a checksum", to.datagram(&unsummed), b"no checksum".to_vec()),
        ("a MAC that nobody has", foreign, b"zero source MAC".to_vec()),
        ("a packet larger than the tunnel", to.datagram(&oversized), long),
        ("an empty datagram", to.datagram(&to.udp(b"")), Vec::new()),
    ]
}

/// Splits a packet into two fragments at 600, the second of which starts `overlap` bytes earlier.
fn fragments(packet: &[u8], id: u16, overlap: usize) -> [Vec<u8>; 2] {
    let cut = 600;
    let fragment = |from: usize, to: usize, more: bool| {
        let mut bytes = packet[..20].to_vec();
        bytes.extend(&packet[20 + from..20 + to]);
        let length = (bytes.len() as u16).to_be_bytes();
        bytes[2..4].copy_from_slice(&length);
        bytes[4..6].copy_from_slice(&id.to_be_bytes());
        let offset = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        bytes[6..8].copy_from_slice(&offset.to_be_bytes());
        packet::fill_ipv4_checksum(&mut bytes);
        bytes
    };
    [fragment(0, cut, true), fragment(cut - overlap, packet.len() - 20, false)]
}

/// Returns the next datagram that reaches the pod's port, and must.
fn receive_due(listener: &UdpSocket) -> Vec<u8> {
    let mut came = None;
    common::await_until("a datagram", || {
        came = receive(listener);
        came.is_some()
    });
    came.expect("waited for")
}

/// Returns the next datagram that reaches the pod's port, or `None` if none arrives soon.
fn receive(listener: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    let length = listener.recv(&mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

/// The addresses of the victim.
struct Address {
    mac: [u8; 6],
    pod: IpAddr,
    /// An address of the overlay that no node has.
    source: IpAddr,
}

impl Address {
    fn udp(&self, payload: &[u8]) -> Vec<u8> {
        packet::udp(self.source, self.pod, (1, OPEN_PORT), payload)
    }

    fn datagram(&self, packet: &[u8]) -> Vec<u8> {
        packet::vxlan(1, self.mac, STRANGERS_MAC, packet)
    }
}

struct Scene {
    daemon: Daemon,
    _other: Daemon,
    cluster: Cluster,
    address: Address,
    sender: UdpSocket,
}

impl Scene {
    /// Sends a datagram from the stranger to the victim's tunnel port.
    fn send(&self, datagram: &[u8]) {
        let to = SocketAddr::new(self.cluster.host(VICTIM).underlay().into(), PORT);
        self.sender.send_to(datagram, to).expect("send");
    }

    /// Sends datagrams of equal size with one call; a veth pair carries them to the victim as one.
    fn send_train(&self, bytes: &[u8], size: usize) {
        setsockopt(&self.sender, UdpGsoSegment, &(size as i32)).expect("UDP_SEGMENT");
        self.send(bytes);
        setsockopt(&self.sender, UdpGsoSegment, &0).expect("UDP_SEGMENT");
    }

    /// Sends a whole IP packet from the stranger to the victim.
    fn send_raw(&self, packet: &[u8]) {
        let to = SocketAddr::new(self.cluster.host(VICTIM).underlay().into(), 0);
        let send = || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a socket");
            socket.send_to(packet, &to.into()).expect("send");
        };
        self.cluster.host(STRANGER).namespace().run(send).expect("the stranger");
    }

    /// Builds a UDP datagram around a tunnel payload, without a checksum, which VXLAN over IPv4 allows.
    fn outer_udp(&self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::from(40_000u16.to_be_bytes());
        datagram.extend(PORT.to_be_bytes());
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }

    fn listen(&self) -> UdpSocket {
        let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, OPEN_PORT)).expect("a socket");
        let socket = self.cluster.host(VICTIM).pod().run(open).expect("the pod");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time limit");
        socket
    }
}

fn scene(name: &str) -> Option<Scene> {
    if !common::ready(&[]) {
        return None;
    }
    let mut cluster = Cluster::build(name, 3, Wiring::Switch, DUAL);
    let [daemon, other] = [VICTIM, OTHER].map(|host| cluster.start(host, &[]));
    for host in [VICTIM, OTHER] {
        cluster.connect_pod(host);
        cluster.await_routes(host, 1);
    }
    let Lease { attrs, .. } = cluster.lease(VICTIM);
    let data = attrs.backend_data.expect("vxlan data");
    let address = Address {
        mac: VxlanData::parse(data.as_str()).expect("vxlan data").mac.octets(),
        pod: cluster.pod(VICTIM, false),
        source: "10.244.255.9".parse().expect("an address"),
    };
    let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    let sender = cluster.host(STRANGER).namespace().run(open).expect("the stranger");
    Some(Scene { daemon, _other: other, cluster, address, sender })
}
