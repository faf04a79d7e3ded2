//! Datagrams that were changed after a pod, or a node in front of it, had summed them. Their checksum is
//! all that tells the receiving pod, so no tunnel may replace it by a right one.

use lab::Wiring;

use crate::common::{self, Cluster, DAMAGED, DUAL, Daemon, UDP, VXLAN, await_until};

const IPIP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;
const WIREGUARD: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#;
const COUNT: usize = 4000;

#[test]
fn vxlan_delivers_no_changed_datagram() {
    nothing_changed_arrives("sum-vx", VXLAN, "flannel.1", false);
}

#[test]
fn vxlan_over_ipv6_delivers_no_changed_datagram() {
    nothing_changed_arrives("sum-vx6", DUAL, "flannel-v6.1", true);
}

#[test]
fn udp_delivers_no_changed_datagram() {
    nothing_changed_arrives("sum-udp", UDP, "flannel0", false);
}

#[test]
fn ipip_delivers_no_changed_datagram() {
    nothing_changed_arrives("sum-ipip", IPIP, "flannel.ipip", false);
}

#[test]
fn wireguard_delivers_no_changed_datagram() {
    nothing_changed_arrives("sum-wg", WIREGUARD, "flannel-wg", false);
}

fn nothing_changed_arrives(name: &str, config: &str, device: &str, ipv6: bool) {
    if !common::ready(&[]) {
        return;
    }
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, config);
    let daemons: Vec<Daemon> = [1, 2].map(|number| cluster.start(number, &[])).into();
    [1, 2].iter().for_each(|number| cluster.connect_pod(*number));
    let applied = format!("applied device={device} peers=1");
    await_until("the peers", || daemons.iter().all(|daemon| daemon.logged(&applied)));
    common::ping(&cluster, 1, 2, ipv6);
    let report = common::damaged_flow(&cluster, 1, 2, ipv6, COUNT);
    let damaged = (COUNT / DAMAGED) as u64;
    assert_eq!(report.changed, 0, "{report:?}");
    assert_eq!(report.arrived, COUNT as u64 - damaged, "{report:?}");
    let mut tunnels = daemons.into_iter().map(|daemon| {
        daemon.finish().into_iter().find(|tunnel| tunnel.device == device).expect("the tunnel")
    });
    let sender = tunnels.next().expect("the sender");
    assert_eq!(sender.get("egress.drop.bad_transport_checksum"), damaged, "{:#?}", sender.nonzero());
}
