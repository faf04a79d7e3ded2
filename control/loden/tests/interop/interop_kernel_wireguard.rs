//! A loden host and a host with the kernel's WireGuard, set up as flannel sets it up, understand each other:
//! both families inside and outside, handshakes from either side, a pre-shared key, keepalives, bulk
//! transfers in both directions, and either side moving to another address or port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{Needs, Wiring};
use load::{Stop, VerifyLoad};
use model::lease::{Lease, LeaseAttrs};
use model::net_config;
use model::wireguard::{WireguardData, render_key};
use path::wireguard::SecretKey;
use store::Wish;

use crate::common::guest::{self, Guest};
use crate::common::{Cluster, await_until};

const PSK: &str = "cHJlLXNoYXJlZCBrZXkgb2YgdGhpcnR5LXR3byBieXQ=";
/// The kernel host on the lab's underlay, beside host 1.
const KERNEL: [&str; 2] = ["198.18.0.200", "fd00:10de::200"];
const MOVED: &str = "198.18.0.201";
const PORTS: [u16; 2] = [51820, 51821];
const LOAD: u16 = 5299;

#[test]
fn a_kernel_wireguard_peer_and_loden_understand_each_other() {
    if !guest::needs(Needs::hosts().programs(&["wg"])).are_met() {
        return;
    }
    let config = format!(
        r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{{"Type":"wireguard","PSK":"{PSK}","PersistentKeepaliveInterval":1}}}}"#
    );
    let mut cluster = Cluster::build("iop-wg", 1, Wiring::Switch, &config);
    let secret = SecretKey([0x3c; 32]);
    let kernel = lease(&cluster, &secret);
    let daemon = cluster.start(1, &[]);
    cluster.connect_pod(1);
    let own = cluster.lease(1);
    let mut guest = Guest::boot(&cluster, &["wireguard"], &[]);
    set_up(&mut guest, &secret, &kernel, &own);
    let far = [pod(&kernel, false), pod(&kernel, true)];

    for ipv6 in [false, true] {
        let (far, near) = (far[usize::from(ipv6)], cluster.pod(1, ipv6));
        // loden initiates: the kernel has nothing to send.
        let device = device(ipv6);
        let shaken =
            |guest: &mut Guest| guest.shell(&format!("wg show {device} latest-handshakes | cut -f2")) != "0";
        await_until("loden's handshake", || shaken(&mut guest));
        reach(&cluster, far);
        // The kernel initiates: it has lost its sessions, and does not wait for loden.
        guest.shell(&format!(
            "ip link set {device} down; ip link set {device} up; {}",
            routes(ipv6, &own, &kernel)
        ));
        guest.shell(&format!("ping -c 3 -i 0.2 -W 5 -I {far} {near}"));
        reach(&cluster, far);
        for payload in [0, 56, 1300, 1372] {
            let answer = cluster.host(1).pod().ping(far, payload, Duration::from_secs(5));
            answer.unwrap_or_else(|error| panic!("{payload} bytes: {error}"));
        }
        bulk(&cluster, &mut guest, far, near);
        // loden's keepalives arrive every second although no pod sends anything.
        let received = |guest: &mut Guest| -> u64 {
            guest.shell(&format!("wg show {device} transfer | cut -f2")).parse().expect("bytes")
        };
        let before = received(&mut guest);
        await_until("a keepalive", || received(&mut guest) > before);
    }

    // The kernel moves to another port and another address, and loden follows its first packet.
    guest.shell(&format!(
        "wg set flannel-wg listen-port 51999 && ip addr del {}/24 dev eth0 && \
         ip addr add {MOVED}/24 dev eth0",
        KERNEL[0]
    ));
    guest.shell(&format!("ping -c 3 -i 0.2 -W 5 -I {} {}", far[0], cluster.pod(1, false)));
    reach(&cluster, far[0]);

    // loden moves, and the kernel follows.
    let here = cluster.host(1).underlay();
    cluster.shell(1, &format!("ip addr del {here}/24 dev eth0; ip addr add 198.18.0.77/24 dev eth0"));
    let moved = || cluster.leases().iter().any(|lease| lease.attrs.public_ip.to_string() == "198.18.0.77");
    await_until("loden's lease with the new address", moved);
    reach(&cluster, far[0]);
    let endpoint = guest.shell("wg show flannel-wg endpoints | cut -f2");
    assert_eq!(endpoint, format!("198.18.0.77:{}", PORTS[0]));
    guest.shell(&format!("ping -c 3 -i 0.2 -W 5 -I {} {}", far[0], cluster.pod(1, false)));
    for counters in daemon.finish() {
        assert_eq!(counters.unexplained_drops().len(), 0, "{:?}", counters.drops());
    }
}

fn device(ipv6: bool) -> &'static str {
    if ipv6 { "flannel-wg-v6" } else { "flannel-wg" }
}

/// Returns the pod address that the kernel host itself answers for.
fn pod(lease: &Lease, ipv6: bool) -> IpAddr {
    match ipv6 {
        false => IpAddr::V4(lease.subnet().and_then(|subnet| subnet.nth(2)).expect("IPv4")),
        true => {
            let base = lease.ipv6_subnet().expect("IPv6").network();
            IpAddr::V6((base.to_bits() + 2).into())
        }
    }
}

/// Creates devices, keys, peers, addresses and routes as flannel does, and an address that stands for a pod.
fn set_up(guest: &mut Guest, secret: &SecretKey, kernel: &Lease, own: &Lease) {
    guest.shell(&format!(
        "ip addr add {}/24 dev eth0 && ip addr add {}/64 dev eth0 nodad && ip link set eth0 up && \
         umask 077 && \
         echo {} > /run/key && echo {PSK} > /run/psk",
        KERNEL[0],
        KERNEL[1],
        render_key(&secret.0)
    ));
    let data = own.attrs.backend_data.as_ref().expect("data").as_str();
    let ours = render_key(&WireguardData::parse(data).expect("data").public_key);
    for ipv6 in [false, true] {
        let device = device(ipv6);
        let (allowed, public) = match ipv6 {
            false => (own.subnet().expect("IPv4").to_string(), own.attrs.public_ip.to_string()),
            true => {
                let public = own.attrs.public_ipv6.expect("IPv6");
                (own.ipv6_subnet().expect("IPv6").to_string(), format!("[{public}]"))
            }
        };
        let port = PORTS[usize::from(ipv6)];
        guest.shell(&format!(
            "ip link add {device} type wireguard && wg set {device} listen-port {port} private-key /run/key \
             peer {ours} preshared-key /run/psk endpoint {public}:{port} allowed-ips {allowed} && \
             ip addr add {} dev lo && ip link set {device} mtu 1420 up && {}",
            pod(kernel, ipv6),
            routes(ipv6, own, kernel)
        ));
    }
}

/// Returns the command that adds a device's routes, which it loses when it goes down.
fn routes(ipv6: bool, own: &Lease, kernel: &Lease) -> String {
    let to = match ipv6 {
        false => own.subnet().expect("IPv4").to_string(),
        true => own.ipv6_subnet().expect("IPv6").to_string(),
    };
    format!("ip route replace {to} dev {} src {}", device(ipv6), pod(kernel, ipv6))
}

fn reach(cluster: &Cluster, far: IpAddr) {
    await_until("an answer", || cluster.host(1).pod().ping(far, 56, Duration::from_millis(500)).is_ok());
}

/// Transfers bytes in both directions and checks that they arrive unchanged.
fn bulk(cluster: &Cluster, guest: &mut Guest, far: IpAddr, near: IpAddr) {
    let load = VerifyLoad { streams: 1, bytes: 8 << 20 };
    let there = SocketAddr::new(far, LOAD);
    guest.shell(&format!("/programs/loden load server --listen {there} >/dev/null 2>&1 &"));
    guest.await_listener(there);
    let report = cluster.host(1).pod().run(|| load::verify(there, &load, &Stop::default()));
    let report = report.expect("the pod").expect("a transfer");
    assert_eq!((report.received, &report.sha256_sent), (load.bytes, &report.sha256_received));
    let here = SocketAddr::new(near, LOAD);
    let _server =
        cluster.host(1).pod().run(|| load::Server::start(here)).expect("the pod").expect("a server");
    guest.shell(&format!("/programs/loden load tcp {here} --verify --bytes {}", load.bytes));
}

/// Acquires the kernel host's lease, in flannel's form.
fn lease(cluster: &Cluster, secret: &SecretKey) -> Lease {
    let (config, _) = net_config::parse(&cluster.config).expect("a network configuration");
    let data = |port| Some(WireguardData { public_key: secret.public().0, port: Some(port) }.to_json());
    let attrs = LeaseAttrs {
        public_ip: KERNEL[0].parse().expect("IP"),
        public_ipv6: Some(KERNEL[1].parse().expect("IP")),
        backend_type: "wireguard".to_owned(),
        backend_data: data(PORTS[0]),
        backend_v6_data: data(PORTS[1]),
    };
    cluster.in_store(async |store| {
        store.set_net_config(&cluster.config).await.expect("the configuration");
        store
            .acquire(&Wish { config: &config, attrs, previous: None, former: None })
            .await
            .expect("a lease")
            .published
    })
}
