//! A loden host and a host with the kernel's ipip understand each other, and their outer headers follow the
//! same rules.

use std::process::Command;
use std::time::Duration;

use lab::{Needs, Wiring};
use load::{Stop, VerifyLoad};
use model::lease::{Lease, LeaseAttrs};
use model::net_config;
use store::Wish;

use crate::common::Cluster;
use crate::common::capture::Capture;
use crate::common::guest::{self, Guest};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;
/// The kernel host on the lab's underlay, beside host 1.
const KERNEL: &str = "198.18.0.200";
const PORT: u16 = 5299;

#[test]
fn a_kernel_ipip_peer_and_loden_understand_each_other() {
    if !guest::needs(Needs::hosts().programs(&["ping"])).are_met() {
        return;
    }
    let mut cluster = Cluster::build("iop-ipip", 1, Wiring::Switch, CONFIG);
    let kernel = lease(&cluster);
    let daemon = cluster.start(1, &[]);
    cluster.connect_pod(1);
    let own = cluster.lease(1);
    let pod = cluster.pod(1, false);
    let mut wire = Capture::start(cluster.lab.switch().expect("a switch"));
    let mut guest = Guest::boot(&cluster, &["ipip"], &[]);
    set_up(&mut guest, &kernel, &own);
    let far = kernel.subnet().expect("IPv4").nth(2).expect("an address").into();

    let answer = |payload| cluster.host(1).pod().ping(far, payload, Duration::from_secs(5));
    for payload in [0, 56, 1400, 1452] {
        answer(payload).unwrap_or_else(|error| panic!("{payload} bytes: {error}"));
    }
    for options in ["-M do -s 1452", "-M dont -s 600", "-t 9 -M do", "-Q 0xba -M dont", "-Q 0xb9 -t 200"] {
        let line = format!("ping -q -c 2 -W 5 {options} -I {pod} {far}");
        let mut command = Command::new("sh");
        let output = cluster.host(1).pod().output(command.args(["-c", &line])).expect("ping");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
    }
    for options in ["-M do -s 1452", "-M dont -s 600", "-M do -t 9", "-M dont -Q 0xba", "-Q 0xb9 -t 200"] {
        guest.shell(&format!("ping -q -c 2 -W 5 {options} {pod}"));
    }
    let load = VerifyLoad { streams: 1, bytes: 16 << 20 };
    let server = std::net::SocketAddr::new(far, PORT);
    guest.shell(&format!("/programs/loden load server --listen {server} >/dev/null 2>&1 &"));
    guest.await_listener(server);
    let report = cluster.host(1).pod().run(|| load::verify(server, &load, &Stop::default()));
    let report = report.expect("the pod").expect("a transfer");
    assert_eq!((report.received, &report.sha256_sent), (load.bytes, &report.sha256_received));

    let seen = ipip(&wire.frames());
    for (who, source) in [("loden", cluster.host(1).underlay()), ("the kernel", KERNEL.parse().expect("IP"))]
    {
        let from: Vec<&Outer> = seen.iter().filter(|packet| packet.source == source.octets()).collect();
        assert!(from.iter().any(|packet| packet.df) && from.iter().any(|packet| !packet.df), "{who}: DF");
        for ttl in [9, 200] {
            assert!(
                from.iter().any(|packet| packet.ttl.abs_diff(ttl) <= 2) || who == "the kernel",
                "{who}: {ttl}"
            );
        }
        for ecn in [0, 1, 2] {
            assert!(from.iter().any(|packet| packet.tos == ecn), "{who}: no TOS {ecn}");
        }
    }
    let drops = daemon.finish().remove(0);
    assert!(drops.unexplained_drops().is_empty(), "{:#?}", drops.nonzero());
}

/// Acquires the kernel host's lease, in flannel's form.
fn lease(cluster: &Cluster) -> Lease {
    let (config, _) = net_config::parse(CONFIG).expect("a network configuration");
    let attrs = LeaseAttrs {
        public_ip: KERNEL.parse().expect("IP"),
        public_ipv6: None,
        backend_type: "ipip".to_owned(),
        backend_data: None,
        backend_v6_data: None,
    };
    cluster.in_store(async |store| {
        store.set_net_config(CONFIG).await.expect("the configuration");
        store
            .acquire(&Wish { config: &config, attrs, previous: None, former: None })
            .await
            .expect("a lease")
            .published
    })
}

/// Creates the kernel host's tunnel as flannel does, and an address that stands for a pod.
fn set_up(guest: &mut Guest, own: &Lease, peer: &Lease) {
    let subnet = own.subnet().expect("IPv4");
    let (base, address) = (subnet.network(), subnet.nth(2).expect("an address"));
    let (peer_subnet, peer_ip) = (peer.subnet().expect("IPv4"), peer.attrs.public_ip);
    guest.shell(&format!(
        "ip addr add {KERNEL}/24 dev eth0 && ip link set eth0 up && \
         ip link add flannel.ipip type ipip local {KERNEL} ttl inherit nopmtudisc && \
         ip addr add {base}/32 dev flannel.ipip && ip link set flannel.ipip mtu 1480 up && \
         ip addr add {address}/32 dev lo && \
         ip route add {peer_subnet} via {peer_ip} dev flannel.ipip onlink src {address}"
    ));
}

/// An ipip packet on the wire, checked against the packet inside.
struct Outer {
    source: [u8; 4],
    tos: u8,
    ttl: u8,
    df: bool,
}

/// Returns every ipip packet, once for each device it crossed, and checks each outer header against its inner
/// one.
fn ipip(frames: &[Vec<u8>]) -> Vec<Outer> {
    let mut seen = Vec::new();
    for frame in frames {
        let Some(ip) = frame.get(14..).filter(|ip| ip.len() >= 40 && ip[0] == 0x45) else { continue };
        assert!(!(ip[9] == 1 && ip[20] == 3), "an ICMP \"unreachable\": {:?}", &ip[..40]);
        if ip[9] != 4 {
            continue;
        }
        let inner = &ip[20..];
        assert_eq!((ip[1], ip[8]), (inner[1] & 3, inner[8]), "TOS and TTL of {:?}", &ip[..40]);
        assert_eq!(ip[6] & 0x40, inner[6] & 0x40, "DF of {:?}", &ip[..40]);
        let source = [ip[12], ip[13], ip[14], ip[15]];
        seen.push(Outer { source, tos: ip[1], ttl: ip[8], df: ip[6] & 0x40 != 0 });
    }
    seen
}
