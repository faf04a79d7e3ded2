//! A host that translates the source address of its own tunnel packets, towards an interface that computes no
//! checksums.

use lab::Wiring;

use crate::common::{self, Cluster, Daemon, UDP, VXLAN, await_until, ping, verified};

const WIREGUARD: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#;
const BYTES: u64 = 20_000_000;
/// The address that packets leave with.
const OTHER: &str = "198.18.7.7";

#[test]
fn vxlan_sends_singly_while_the_kernel_would_damage_trains() {
    paused_and_resumed(VXLAN, "flannel.1", 8472);
}

#[test]
fn udp_sends_singly_while_the_kernel_would_damage_trains() {
    paused_and_resumed(UDP, "flannel0", 8285);
}

#[test]
fn wireguard_sends_singly_while_the_kernel_would_damage_trains() {
    paused_and_resumed(WIREGUARD, "flannel-wg", 51_820);
}

/// Linux 6.11 and later join datagrams for such an interface, and translation makes their checksums wrong.
fn paused_and_resumed(config: &str, device: &str, port: u16) {
    if !common::ready(&["ethtool", "iptables"]) {
        return;
    }
    let mut cluster = Cluster::build(&format!("nat{port}"), 2, Wiring::Switch, config);
    // Before the first packet: what is tracked already is not translated any more.
    cluster.shell(
        1,
        &format!(
            "ip addr add {OTHER}/32 dev eth0 && iptables -t nat -A POSTROUTING -o eth0 -p udp \
             --dport {port} -j SNAT --to-source {OTHER}"
        ),
    );
    let daemons: Vec<Daemon> = [1, 2].map(|number| cluster.start(number, &[])).into();
    [1, 2].iter().for_each(|number| cluster.connect_pod(*number));
    let applied = format!("applied device={device} peers=1");
    await_until("the peers", || daemons.iter().all(|daemon| daemon.logged(&applied)));
    // A WireGuard peer answers the address that packets come from.
    cluster.shell(2, &format!("ip route add {OTHER}/32 dev eth0"));
    // Each alone is harmless.
    cluster.shell(2, "ethtool -K eth0 tx off");
    ping(&cluster, 1, 2, false);
    verified(&cluster, 1, 2, false, BYTES);
    verified(&cluster, 2, 1, false, BYTES);

    cluster.shell(1, "ethtool -K eth0 tx off");
    ping(&cluster, 1, 2, false);
    await_until("the pause", || daemons[0].logged("gso paused"));
    let errors = || {
        let text = cluster.shell(2, "awk '/^Udp: [0-9]/ { print $8 }' /proc/net/snmp");
        text.trim().parse::<u64>().expect("a number")
    };
    let before = errors();
    verified(&cluster, 1, 2, false, BYTES);
    verified(&cluster, 2, 1, false, BYTES);
    assert_eq!(errors(), before, "wrong checksums");
    assert_eq!(daemons[0].log_text().matches("gso paused").count(), 1);

    cluster.shell(1, "ethtool -K eth0 tx on");
    await_until("the end of the pause", || daemons[0].logged("gso resumed"));
    verified(&cluster, 1, 2, false, BYTES);
    assert_eq!(errors(), before, "wrong checksums");
    assert!(!daemons[1].logged("gso paused"), "{}", daemons[1].log_text());
    drop(daemons);
}
