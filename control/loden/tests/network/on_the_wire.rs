//! Compares loden's packets on the wire with those of the kernel's vxlan for the same inner packets, field by
//! field, and checks that they survive address translation on the way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lab::Wiring;
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::capture::Capture;
use crate::common::packet;
use crate::common::{self, Cluster, DUAL, KernelNode, PORT, UDP, VXLAN, await_until, ping, verified};

/// The first destination port. Each inner packet has its own.
const FIRST: u16 = 20_000;

/// One inner packet's header fields.
#[derive(Clone, Copy, Debug)]
struct Variant {
    tos: u8,
    ttl: u8,
    df: bool,
    payload: usize,
}

/// The fields that are compared, of an outer packet and of its inner one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    outer: Outer,
    vxlan: [u8; 8],
    ethertype: [u8; 2],
    inner: (u8, u8, bool),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Outer {
    tos: u8,
    ttl: u8,
    df: bool,
    flow_label: u32,
    port_in_range: bool,
    target_port: u16,
    checksum: bool,
}

#[test]
fn outer_headers_are_the_kernels_but_for_what_rfc_6040_says() {
    if !common::needs(&["ethtool"]).and("the kernel's vxlan", common::has_vxlan()).are_met() {
        return;
    }
    let mut cluster = Cluster::build("wire", 2, Wiring::Direct, DUAL);
    // Complete checksums, as on a wire.
    [1, 2].iter().for_each(|number| cluster.make_wire_like(*number));
    let kernel = KernelNode::join(&mut cluster, 2);
    let daemon = cluster.start(1, &[]);
    cluster.connect_pod(1);
    kernel.add_peer(&cluster, &cluster.lease(1));
    cluster.await_routes(1, 1);
    let mut variants = Vec::new();
    for tos in [0, 1, 2, 3, 46 << 2, 46 << 2 | 1] {
        for (ttl, df, payload) in [(64, true, 10), (2, false, 600), (255, true, 1300), (9, false, 1)] {
            variants.push(Variant { tos, ttl, df, payload });
        }
    }
    for ipv6 in [false, true] {
        ping(&cluster, 1, 2, ipv6);
        ping(&cluster, 2, 1, ipv6);
        let mut wire = Capture::start(cluster.host(2).namespace());
        for (from, to) in [(1, 2), (2, 1)] {
            for (at, variant) in variants.iter().enumerate() {
                // Twice: a flow keeps its source port.
                (0..2).for_each(|_| send(&cluster, from, to, ipv6, FIRST + at as u16, variant));
            }
        }
        let mut frames = Vec::new();
        await_until("all of them", || {
            frames.extend(wire.frames());
            [1, 2].iter().all(|host| by_port(&cluster, *host, ipv6, &frames).len() == variants.len())
        });
        let [ours, theirs] = [1, 2].map(|host| by_port(&cluster, host, ipv6, &frames));
        for (at, variant) in variants.iter().enumerate() {
            let port = FIRST + at as u16;
            let (ours, mut theirs) = (ours[&port].clone(), theirs[&port].clone());
            assert!(ours.outer.checksum && theirs.outer.checksum && ours.outer.port_in_range, "{ours:?}");
            // decisions/0009: loden copies a congestion mark to the outer header, where the kernel sets
            // ECT(0).
            if variant.tos & 3 == 3 {
                assert_eq!((ours.outer.tos & 3, theirs.outer.tos & 3), (3, 2), "{variant:?}");
                theirs.outer.tos = ours.outer.tos;
            }
            assert_eq!(ours, theirs, "{variant:?}");
        }
    }
    assert!(daemon.finish().iter().all(|counters| counters.unexplained_drops().is_empty()));
}

/// Both nodes publish an address that their host does not have, like flannel's public-ip behind NAT: each
/// packet is translated twice.
#[test]
fn packets_survive_two_translations() {
    if !common::ready(&["nft", "ethtool"]) {
        return;
    }
    for (config, port, device) in [(VXLAN, PORT, "flannel.1"), (UDP, 8285, "flannel0")] {
        for wire_like in [false, true] {
            let mut cluster = Cluster::build("nat", 2, Wiring::Direct, config);
            let mut daemons = Vec::new();
            for number in [1, 2] {
                if wire_like {
                    cluster.make_wire_like(number);
                }
                let (inside, outside) = (cluster.host(number).underlay(), format!("198.18.0.10{number}"));
                let rules = format!(
                    "add table ip nat\n\
                     add chain ip nat before {{ type nat hook prerouting priority -100; }}\n\
                     add chain ip nat after {{ type nat hook postrouting priority 100; }}\n\
                     add rule ip nat before ip daddr {outside} udp dport {port} counter dnat to {inside}\n\
                     add rule ip nat after ip saddr {inside} udp dport {port} counter snat to {outside}\n"
                );
                cluster.shell(number, &format!("printf '{rules}' | nft -f -"));
                // No host has the address, so none answers ARP for it.
                let link = cluster.shell(number, "ip -o link show eth0");
                let mac =
                    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a MAC");
                cluster.shell(3 - number, &format!("ip neigh add {outside} lladdr {mac} dev eth0"));
                // When the kernel translates UDP_SEGMENT sends to a device without checksum offload, it
                // corrupts their checksums: net/ipv4/udp.c leaves a partial sum in a packet that it does not
                // mark as partial.
                let without: &[&str] = if wire_like { &["--without", "gso"] } else { &[] };
                daemons.push(cluster.start(number, &[&["--public-ip", &outside], without].concat()));
            }
            for number in [1, 2] {
                cluster.connect_pod(number);
            }
            let peers = |daemon: &common::Daemon| daemon.logged(&format!("applied device={device} peers=1"));
            await_until("the peers", || daemons.iter().all(peers));
            ping(&cluster, 1, 2, false);
            ping(&cluster, 2, 1, false);
            verified(&cluster, 1, 2, false, 30_000_000);
            verified(&cluster, 2, 1, false, 30_000_000);
            // A rule counts the first packet of a flow: udp has one flow, vxlan one in each direction.
            let rules = cluster.shell(1, "nft list table ip nat");
            let used = rules.lines().filter(|rule| rule.contains("counter") && !rule.contains("packets 0 "));
            assert!(used.count() >= if port == PORT { 2 } else { 1 }, "{rules}");
            for daemon in daemons {
                let drops = daemon.finish().remove(0);
                assert!(drops.unexplained_drops().is_empty(), "{:?}", drops.drops());
            }
        }
    }
}

fn send(cluster: &Cluster, from: usize, to: usize, ipv6: bool, port: u16, variant: &Variant) {
    let (source, target) = (cluster.pod(from, ipv6), cluster.pod(to, ipv6));
    let mut bytes = packet::udp(source, target, (7, port), &vec![0x5a; variant.payload]);
    if ipv6 {
        bytes[0] |= variant.tos >> 4;
        bytes[1] |= variant.tos << 4;
        bytes[7] = variant.ttl;
    } else {
        bytes[1] = variant.tos;
        bytes[6] = if variant.df { 0x40 } else { 0 };
        bytes[8] = variant.ttl;
        packet::fill_ipv4_checksum(&mut bytes);
    }
    let raw = || {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        // IPPROTO_RAW: the header comes with the packet (raw(7)).
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).expect("a raw socket");
        socket.send_to(&bytes, &SocketAddr::new(target, 0).into()).expect("a packet");
    };
    cluster.host(from).pod().run(raw).expect("the pod");
}

/// Returns the packets that a host has sent, by inner destination port. All packets of a flow must look the
/// same.
fn by_port(cluster: &Cluster, host: usize, ipv6: bool, frames: &[Vec<u8>]) -> BTreeMap<u16, Seen> {
    let source: IpAddr = match ipv6 {
        true => cluster.host(host).underlay6().into(),
        false => cluster.host(host).underlay().into(),
    };
    let mut seen: BTreeMap<u16, (u16, Seen)> = BTreeMap::new();
    for frame in frames {
        let Some((port, outer_port, packet)) = read(frame, source) else { continue };
        let (known_port, known) = seen.entry(port).or_insert_with(|| (outer_port, packet.clone()));
        assert_eq!((*known_port, &*known), (outer_port, &packet), "of one flow");
    }
    seen.into_iter().map(|(port, (_, packet))| (port, packet)).collect()
}

/// Returns the inner port, the outer source port and the compared fields of a vxlan frame from `source`.
fn read(frame: &[u8], source: IpAddr) -> Option<(u16, u16, Seen)> {
    let ip = frame.get(14..).filter(|ip| ip.len() > 60)?;
    let (header, outer_source, outer_target, tos, ttl, df, flow_label) = match (source, ip[0] >> 4) {
        (IpAddr::V4(source), 4) if ip[9] == packet::UDP && ip[12..16] == source.octets() => {
            (20, &ip[12..16], &ip[16..20], ip[1], ip[8], ip[6] & 0x40 != 0, 0)
        }
        (IpAddr::V6(source), 6) if ip[6] == packet::UDP && ip[8..24] == source.octets() => {
            let word = u32::from_be_bytes([ip[0], ip[1], ip[2], ip[3]]);
            (40, &ip[8..24], &ip[24..40], (word >> 20) as u8, ip[7], false, word & 0xf_ffff)
        }
        _ => return None,
    };
    let udp = &ip[header..];
    let (outer_port, target_port) =
        (u16::from_be_bytes([udp[0], udp[1]]), u16::from_be_bytes([udp[2], udp[3]]));
    let inner = udp.get(8 + 8 + 14..)?;
    let (inner_header, inner_tos, inner_ttl, inner_df) = match inner.first()? >> 4 {
        4 => (20, inner[1], inner[8], inner[6] & 0x40 != 0),
        _ => (40, inner[0] << 4 | inner[1] >> 4, inner[7], false),
    };
    let port = inner.get(inner_header + 2..inner_header + 4)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    // ICMP errors quote UDP packets.
    let protocol = if inner_header == 20 { inner[9] } else { inner[6] };
    if protocol != packet::UDP || target_port != PORT || !(FIRST..FIRST + 1000).contains(&port) {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    let outer = Outer {
        tos,
        ttl,
        df,
        flow_label,
        port_in_range: (32_768..=60_999).contains(&outer_port),
        target_port,
        checksum: udp[6..8] != [0, 0] && packet::is_summed(outer_source, outer_target, &udp[..length]),
    };
    let vxlan = udp[8..16].try_into().ok()?;
    let ethertype = [udp[28], udp[29]];
    Some((port, outer_port, Seen { outer, vxlan, ethertype, inner: (inner_tos, inner_ttl, inner_df) }))
}
