//! WireGuard between two loden nodes, and between loden and `wireguard-go`, which stands for other
//! implementations.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Process, Wiring, mounts};
use model::lease::{LeaseAttrs, SubnetKey};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::capture::Capture;
use crate::common::{self, Cluster, Daemon, await_until, packet, ping, verified};

const PLAIN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#;
const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"wireguard","PersistentKeepaliveInterval":1}}"#;

#[test]
fn two_lodens_talk_in_both_families_and_nothing_is_in_clear() {
    if !common::ready(&["ip", "tcpdump"]) {
        return;
    }
    let mut cluster = Cluster::build("wg-two", 2, Wiring::Direct, DUAL);
    let daemons = [1, 2].map(|number| cluster.start(number, &[]));
    for number in [1, 2] {
        cluster.connect_pod(number);
    }
    let capture = cluster.file("capture");
    let mut tcpdump = Command::new("tcpdump");
    // Its buffer, in KiB, holds all that follows, however little time a busy machine leaves it.
    tcpdump.args(["-i", "eth0", "-s", "0", "-B", "262144", "-w"]).arg(&capture).stdout(Stdio::null());
    let mut tcpdump = Process::spawn(cluster.host(1).namespace(), &mut tcpdump).expect("tcpdump");
    await_until("tcpdump", || capture.exists());
    for ipv6 in [false, true] {
        ping(&cluster, 1, 2, ipv6);
        ping(&cluster, 2, 1, ipv6);
        verified(&cluster, 1, 2, ipv6, 20_000_000);
        verified(&cluster, 2, 1, ipv6, 20_000_000);
    }
    // It does not write what it has not read when it ends.
    await_until("80 MB", || fs::metadata(&capture).is_ok_and(|file| file.len() > 80_000_000));
    tcpdump.stop().expect("an end");
    let bytes = fs::read(&capture).expect("a capture");
    // Every packet in clear contains a pod's address.
    for ipv6 in [false, true] {
        let address = match cluster.pod(2, ipv6) {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let found = bytes.windows(address.len()).filter(|window| *window == address).count();
        // Four bytes occur by chance.
        assert!(found <= 2, "{found} times {address:?}");
    }
    for daemon in daemons {
        for counters in daemon.finish() {
            assert_eq!(counters.unexplained_drops().len(), 0, "{:?}", counters.drops());
        }
    }
}

#[test]
fn five_nodes_talk_in_every_pair() {
    if !common::ready(&["ip"]) {
        return;
    }
    let mut cluster = Cluster::build("wg-five", 5, Wiring::Switch, DUAL);
    let mut daemons: Vec<Daemon> = (1..=5).map(|number| cluster.start(number, &[])).collect();
    for (daemon, number) in daemons.iter().zip(1..) {
        for device in ["flannel-wg", "flannel-wg-v6"] {
            await_until("its peers", || daemon.logged(&format!("applied device={device} peers=4")));
        }
        cluster.connect_pod(number);
    }
    for from in 1..=5 {
        for to in (1..=5).filter(|to| *to != from) {
            ping(&cluster, from, to, false);
            ping(&cluster, from, to, true);
        }
    }
    // A node that lost its key returns with another one, and all others learn it.
    let before = cluster.lease(3);
    drop(daemons.remove(2));
    fs::remove_file(cluster.file("key3")).expect("its key");
    let third = cluster.start(3, &[]);
    // It is ready from memory, before the store has its new key.
    let published = || cluster.lease(3).attrs.backend_data != before.attrs.backend_data;
    await_until("its lease with the new key", published);
    assert_eq!(cluster.lease(3).key, before.key);
    for other in [1, 2, 4, 5] {
        for ipv6 in [false, true] {
            let (pod, address) = (cluster.host(other).pod(), cluster.pod(3, ipv6));
            let reached = || pod.ping(address, 56, Duration::from_millis(300)).is_ok();
            await_until("the one with the new key", reached);
        }
        ping(&cluster, 3, other, true);
    }
    drop((third, daemons));
}

/// Messages of strangers, replays and forgeries are counted by name, and the peer's traffic is not affected.
#[test]
fn bad_messages_end_by_name_and_harm_nobody() {
    if !common::ready(&["ip"]) {
        return;
    }
    let mut cluster = Cluster::build("wg-bad", 2, Wiring::Direct, PLAIN);
    let daemons = [1, 2].map(|number| cluster.start(number, &[]));
    for (daemon, number) in daemons.iter().zip(1..) {
        await_until("its peer", || daemon.logged("applied device=flannel-wg peers=1"));
        cluster.connect_pod(number);
    }
    let mut wire = Capture::start(cluster.host(1).namespace());
    ping(&cluster, 2, 1, false);
    let (here, there) = (cluster.host(1).underlay(), cluster.host(2).underlay());
    let from_there = |frame: &Vec<u8>| {
        let ip = frame.get(14..)?;
        let is_record = ip.len() > 60 && ip[9] == packet::UDP && ip[12..16] == there.octets() && ip[28] == 4;
        is_record.then(|| ip[28..].to_vec())
    };
    let record = wire.frames().iter().find_map(from_there).expect("a record");
    let changed = |at: usize, by: u8| {
        let mut bytes = record.clone();
        bytes[at] ^= by;
        bytes
    };
    let mut initiation = vec![0x11; 148];
    initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
    let kinds = [
        ("wg_replay", record.clone()),
        ("wg_forged", changed(40, 1)),
        ("wg_forged", changed(9, 1)),
        ("wg_unknown_session", changed(5, 0xff)),
        ("wg_malformed", changed(1, 1)),
        ("wg_malformed", record[..31].to_vec()),
        ("wg_malformed", vec![2, 0, 0, 0, 1]),
        ("wg_malformed", b"junk".to_vec()),
    ];
    let send = |bytes: &[u8]| {
        let packet = packet::udp(there.into(), here.into(), (51820, 51820), bytes);
        let raw = || {
            // IPPROTO_RAW: the header comes with the packet (raw(7)).
            let socket =
                Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket");
            let to = std::net::SocketAddr::from((here, 0));
            socket.send_to(&packet, &to.into()).expect("a packet");
        };
        cluster.host(2).namespace().run(raw).expect("the host");
    };
    for (name, bytes) in kinds {
        let counter = format!("ingress.drop.{name}");
        let before = daemons[0].fresh_counters()[0].get(&counter);
        (0..10).for_each(|_| send(&bytes));
        await_until(name, || daemons[0].next_counters()[0].get(&counter) >= before + 10);
        assert_eq!(daemons[0].next_counters()[0].get(&counter), before + 10, "{name}");
    }
    // Handshakes of strangers are neither counted as packets nor answered.
    wire.frames();
    (0..50).for_each(|_| send(&initiation));
    ping(&cluster, 1, 2, false);
    ping(&cluster, 2, 1, false);
    let frames = wire.frames();
    let answers = frames.iter().filter(|frame| {
        frame.get(14..).is_some_and(|ip| {
            ip.len() > 60 && ip[12..16] == here.octets() && ip[9] == packet::UDP && matches!(ip[28], 2 | 3)
        })
    });
    assert_eq!(answers.count(), 0, "silence to strangers");
}

#[test]
fn wireguard_go_and_loden_understand_each_other() {
    if !common::ready(&["ip", "wg", "wireguard-go"]) {
        return;
    }
    // A machine has one directory for all control sockets, so this test mounts its own.
    mounts::private(|| {
        fs::create_dir_all("/run/wireguard").expect("a directory");
        mounts::tmpfs(Path::new("/run/wireguard"), "1m").expect("a tmpfs");
        meet_wireguard_go();
    })
    .expect("private mounts");
}

fn meet_wireguard_go() {
    for secret in [None, Some("cHJlLXNoYXJlZCBrZXkgb2YgdGhpcnR5LXR3byBieXQ=")] {
        let config = match secret {
            None => PLAIN.to_owned(),
            Some(psk) => PLAIN.replace("\"wireguard\"", &format!("\"wireguard\",\"PSK\":\"{psk}\"")),
        };
        let mut cluster = Cluster::build("wg-go", 2, Wiring::Direct, &config);
        let mut daemon = cluster.start(1, &[]);
        let _other = wireguard_go(&mut cluster, 2, secret);
        await_until("its peer", || daemon.logged("applied device=flannel-wg peers=1"));
        cluster.connect_pod(1);
        // Either side initiates.
        ping(&cluster, 1, 2, false);
        ping(&cluster, 2, 1, false);
        verified(&cluster, 1, 2, false, 50_000_000);
        verified(&cluster, 2, 1, false, 50_000_000);
        assert!(daemon.is_running());
        if secret.is_none() {
            wg_shows(&cluster);
        }
        let counters = daemon.fresh_counters();
        assert_eq!(counters[0].unexplained_drops().len(), 0, "{:?}", counters[0].drops());
        lies_about_its_addresses(&cluster, &daemon);

        // The peer moves, and loden follows its first packet.
        cluster.shell(2, &format!("wg set wg{} listen-port 51999", std::process::id()));
        ping(&cluster, 2, 1, false);
        ping(&cluster, 1, 2, false);
        cluster.shell(2, &format!("wg set wg{} listen-port 51820", std::process::id()));
        ping(&cluster, 2, 1, false);

        // After a restart the peer still has a session that loden has lost.
        let handshake = || cluster.shell(2, &format!("wg show {} latest-handshakes", go_device()));
        let before = handshake();
        drop(daemon);
        // The record that reveals this is lost; the next ones are not. Without it the peer itself would begin
        // again, 15 s later (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT in section 6.1 of the paper).
        let daemon = cluster.start(1, &[]);
        let from = cluster.host(2).pod();
        let _ = from.ping(cluster.pod(1, false), 0, Duration::from_millis(200));
        let end = Instant::now() + Duration::from_secs(12);
        while handshake() == before {
            assert!(Instant::now() < end, "no handshake: {}", daemon.log_text());
            thread::sleep(Duration::from_millis(20));
        }
        ping(&cluster, 2, 1, false);
        ping(&cluster, 1, 2, false);
        is_met_with_silence(&cluster, &daemon, secret);
        drop(daemon);
    }
}

/// A peer with the right key sends from addresses of others.
fn lies_about_its_addresses(cluster: &Cluster, daemon: &Daemon) {
    let count = || daemon.next_counters()[0].get("ingress.drop.wg_source");
    let before = daemon.fresh_counters()[0].get("ingress.drop.wg_source");
    let (device, pod) = (go_device(), cluster.pod(1, false));
    let lie = format!(
        "ip addr add 10.244.77.7/32 dev {device}; ping -c 3 -i 0.2 -W 1 -I 10.244.77.7 {pod}; \
         ip addr del 10.244.77.7/32 dev {device}"
    );
    let said = cluster.shell(2, &lie);
    assert!(said.contains(" 0 received"), "{said}");
    await_until("its lies", || count() >= before + 3);
    assert_eq!(count(), before + 3);
    ping(cluster, 2, 1, false);
}

/// A stranger that knows loden's public key, and a peer with another pre-shared key, are counted and get no
/// answer.
fn is_met_with_silence(cluster: &Cluster, daemon: &Daemon, secret: Option<&str>) {
    let count = || daemon.next_counters()[0].get("ingress.drop.wg_stranger");
    let (device, pod, path) =
        (go_device(), cluster.pod(1, false), |name| cluster.file(name).display().to_string());
    let ours = cluster.shell(2, &format!("wg show {device} peers"));
    let (subnet, at) = (cluster.lease(1).subnet().expect("a subnet"), cluster.host(1).underlay());
    let make = format!("umask 077; wg genkey > {}; wg genpsk > {}", path("other.key"), path("other.psk"));
    cluster.shell(2, &make);
    let right = secret.map_or("/dev/null".to_owned(), |_| path("psk"));
    // Removing the peer removes its session.
    let become_one = |key: &str, psk: &str| {
        let line = format!(
            "wg set {device} private-key {key} peer {ours} remove; \
             wg set {device} peer {ours} preshared-key {psk} allowed-ips {subnet} endpoint {at}:51820"
        );
        cluster.shell(2, &line);
    };
    for (key, psk) in [(path("go.key"), path("other.psk")), (path("other.key"), right.clone())] {
        let before = count();
        become_one(&key, &psk);
        let said = cluster.shell(2, &format!("ping -c 3 -i 0.2 -W 1 {pod}; true"));
        assert!(said.contains(" 0 received"), "{said}");
        // With another pre-shared key loden answers, as the protocol requires, and the peer cannot read the
        // answer.
        if key == path("other.key") {
            await_until("a stranger", || count() > before);
            let received = cluster.shell(2, &format!("wg show {device} transfer"));
            assert_eq!(received.split('\t').nth(1), Some("0"), "{received}");
        }
    }
    become_one(&path("go.key"), &right);
    let reached =
        || cluster.host(2).pod().ping(cluster.pod(1, false), 56, Duration::from_millis(300)).is_ok();
    await_until("the peer that it was", reached);
}

/// The device has a name of its own, because the control socket of that name must be unique on the machine.
fn go_device() -> String {
    format!("wg{}", std::process::id())
}

/// Runs the tools of the WireGuard project on loden's device.
fn wg_shows(cluster: &Cluster) {
    let shown = cluster.shell(1, "wg show flannel-wg");
    for line in [
        "listening port: 51820",
        "endpoint: 198.18.0.2:51820",
        "allowed ips: 10.244.200.0/24",
        "latest handshake: ",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let dump = cluster.shell(1, "wg show flannel-wg dump");
    let peer: Vec<&str> = dump.lines().nth(1).expect("a peer").split('\t').collect();
    assert!(
        peer[5..7].iter().all(|bytes| bytes.parse::<u64>().is_ok_and(|bytes| bytes > 50_000_000)),
        "{dump}"
    );
    let config = cluster.shell(1, "wg showconf flannel-wg");
    assert!(config.contains("PrivateKey = ") && config.contains("AllowedIPs = 10.244.200.0/24"), "{config}");
    assert!(
        cluster.shell(1, "wg set flannel-wg listen-port 7 2>&1 || true").contains("Operation not permitted")
    );
}

/// Turns a host into a stock node: a WireGuard device of the reference implementation, its lease, a route, a
/// pod.
fn wireguard_go(cluster: &mut Cluster, number: usize, psk: Option<&str>) -> Process {
    let host = cluster.host(number);
    let key = cluster.file("go.key");
    fs::write(&key, "").expect("a file");
    let public =
        cluster.shell(number, &format!("umask 077; wg genkey > {0}; wg pubkey < {0}", key.display()));
    let mut command = Command::new("wireguard-go");
    let device = go_device();
    command.args(["-f", &device]).env("WG_PROCESS_FOREGROUND", "1").stdout(Stdio::null());
    let process = Process::spawn(host.namespace(), &mut command).expect("wireguard-go");
    // The control socket comes after the device.
    await_until("its control socket", || {
        cluster.shell(number, &format!("wg show {device} 2>/dev/null || true")).contains("interface: ")
    });
    let secret = psk.map_or_else(String::new, |psk| {
        fs::write(cluster.file("psk"), psk).expect("a file");
        format!("preshared-key {}", cluster.file("psk").display())
    });
    let lease = cluster.lease(1);
    let data = lease.attrs.backend_data.as_ref().expect("data").as_str().to_owned();
    let data = model::wireguard::WireguardData::parse(&data).expect("data");
    let ours = model::wireguard::render_key(&data.public_key);
    let subnet = lease.subnet().expect("a subnet");
    cluster.shell(
        number,
        &format!(
            "wg set {device} listen-port 51820 private-key {} \
             peer {ours} {secret} allowed-ips {subnet} endpoint {}:51820",
            key.display(),
            cluster.host(1).underlay()
        ),
    );
    cluster.shell(
        number,
        &format!(
            "ip addr add 10.244.200.0/32 dev {device}; ip link set {device} mtu 1420 up; \
             ip route add 10.244.0.0/16 dev {device}"
        ),
    );
    let value = format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{public}","Port":51820}}}}"#,
        host.underlay()
    );
    let attrs = LeaseAttrs::parse(&value).expect("attributes");
    let key: SubnetKey = "10.244.200.0-24".parse().expect("a key");
    cluster.in_store(async |store| {
        let (config, _) = model::net_config::parse(&cluster.config).expect("a configuration");
        let wish = store::Wish { config: &config, attrs, previous: Some(key), former: None };
        assert_eq!(store.acquire(&wish).await.expect("a lease").key(), key);
    });
    let network = lab::PodNetwork { ipv4: key.ipv4(), ipv6: None, mtu: 1420 };
    cluster.lab.hosts_mut()[number - 1].connect_pod(&network).expect("a pod");
    process
}
