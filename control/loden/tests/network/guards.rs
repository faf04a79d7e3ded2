//! Limits on the cost of the datapath, from the daemon's own counters.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use lab::{Needs, Wiring};

use crate::common::{self, Cluster, Counters, Daemon, VXLAN};

const GIB: u64 = 1 << 30;

/// The most system calls per GiB on a host whose underlay carries super-packets whole.
const MOST_SYSCALLS: u64 = 50_000;

/// Sends one TCP stream at full speed over a plain veth pair: testbed I of the bench.
#[test]
fn a_gib_costs_each_host_at_most_fifty_thousand_system_calls() {
    let Some((cluster, daemons)) = pair("guard-calls") else { return };
    let target = SocketAddr::new(cluster.pod(2, false), 0);
    let server = cluster.host(2).pod().run(|| load::Server::start(target)).expect("the pod");
    let server = server.expect("a load server");
    let (address, stop) = (server.address(), load::Stop::default());
    let load = load::TcpLoad { streams: 1, warm_up: Duration::ZERO, interval: Duration::from_secs(5) };
    let mut bytes = 0;
    // By volume, not by time: the machine may be slow.
    while bytes < GIB {
        let report = cluster.host(1).pod().run(|| load::tcp(address, &load, &stop));
        bytes += report.expect("the pod").expect("a transfer").bytes;
    }
    let [sender, receiver] = daemons.map(|daemon| daemon.finish().remove(0));
    // Without one of these features super-packets are split.
    let whole =
        [&sender, &receiver].iter().all(|tunnel| ["tso", "gso", "gro"].iter().all(|f| tunnel.features[*f]));
    if !Needs::default().and("a kernel with TUN offloads, UDP_SEGMENT and UDP_GRO", whole).are_met() {
        return;
    }
    for (role, tunnel) in [("sender", &sender), ("receiver", &receiver)] {
        let calls = tunnel.syscalls * 1024 / (bytes >> 20);
        println!("{role}: {calls} system calls per GiB");
        assert!(calls <= MOST_SYSCALLS, "{role}: {calls} system calls per GiB: {:#?}", tunnel.nonzero());
    }
}

#[test]
fn a_gib_is_summed_once_at_most_and_nothing_of_it_is_dropped() {
    let Some((cluster, daemons)) = pair("guard-tcp") else { return };
    common::verified(&cluster, 1, 2, false, GIB);
    let [sender, receiver] = daemons.map(|daemon| daemon.finish().remove(0));
    assert!(sender.get("egress.bytes") >= GIB && receiver.get("ingress.bytes") >= GIB);
    for (role, tunnel) in [("sender", &sender), ("receiver", &receiver)] {
        assert!(tunnel.unexplained_drops().is_empty(), "{role}: {:?}", tunnel.drops());
        summed_at_most_once(role, tunnel);
    }
}

/// A worker keeps its packets in order, so a flow stays in order as long as it stays on its worker: from the
/// first answer on, in both directions, whichever worker of the peer answers. Several flows, because one may
/// be lucky.
#[test]
fn a_flow_stays_on_one_worker_in_both_directions() {
    const BULK: u64 = 16 << 20;
    let cores = io::thread::allowed_cores().expect("cores").len();
    if !Needs::default().and("two cores, for one worker each", cores >= 2).are_met() {
        return;
    }
    let Some((cluster, daemons)) = pair("guard-stay") else { return };
    let mut before = [0, 1].map(|_| [[0; 2]; 2]);
    for _ in 0..12 {
        common::verified(&cluster, 1, 2, false, BULK);
        for (daemon, before) in daemons.iter().zip(&mut before) {
            let tunnel = daemon.fresh_counters().remove(0);
            for (direction, before) in ["egress.bytes", "ingress.bytes"].into_iter().zip(before) {
                let now = tunnel.by_worker(direction);
                let mut moved: Vec<u64> =
                    now.iter().zip(before.iter()).map(|(now, then)| now - then).collect();
                before.copy_from_slice(&now[..2]);
                moved.sort_unstable();
                let (most, rest) = (moved[1], moved[0]);
                // The rest: bytes before the first answer, and the load's control connection.
                assert!(rest <= most / 8, "{direction}: {most} and {rest} bytes");
            }
        }
    }
}

#[test]
fn datagrams_of_a_flow_arrive_in_the_order_they_left() {
    const FLOWS: usize = 8;
    const ROUNDS: u32 = 2_000;
    let Some((cluster, daemons)) = pair("guard-order") else { return };
    let target = SocketAddr::new(cluster.pod(2, false), 0);
    let receiver = cluster.host(2).pod().run(|| UdpSocket::bind(target).expect("a socket")).expect("the pod");
    common::enlarge_buffer(&receiver, 8 << 20);
    receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("a time limit");
    let target = receiver.local_addr().expect("an address");

    let order = thread::spawn(move || {
        let mut last: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        let (mut arrived, mut disordered) = (0, 0);
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = receiver.recv_from(&mut buffer) {
            let number = u32::from_be_bytes(buffer[..4].try_into().expect("four bytes"));
            assert!(length >= 4 && buffer[4..length].iter().all(|byte| *byte == number as u8), "other bytes");
            arrived += 1;
            disordered += u32::from(last.insert(from, number).is_some_and(|before| before >= number));
        }
        (arrived, disordered)
    });
    let send = || {
        let flows: Vec<UdpSocket> =
            (0..FLOWS).map(|_| UdpSocket::bind("0.0.0.0:0").expect("a socket")).collect();
        for round in 0..ROUNDS {
            for (index, flow) in flows.iter().enumerate() {
                // Runs of equal size, which the kernel coalesces, with breaks.
                let size = if (round as usize + index).is_multiple_of(7) { 200 } else { 1200 };
                let mut datagram = vec![round as u8; size];
                datagram[..4].copy_from_slice(&round.to_be_bytes());
                flow.send_to(&datagram, target).expect("send");
            }
            if round.is_multiple_of(16) {
                // Spares the receiver: a lost datagram proves nothing about order.
                thread::sleep(Duration::from_millis(1));
            }
        }
    };
    cluster.host(1).pod().run(send).expect("the pod");
    let (arrived, disordered) = order.join().expect("the receiver");
    let [sender, receiver] = daemons.map(|daemon| daemon.finish().remove(0));
    assert_eq!(disordered, 0, "of {arrived}");
    let sent = FLOWS as u32 * ROUNDS;
    assert!(
        arrived > sent / 2,
        "{arrived} of {sent} arrived: {:#?} {:#?}",
        sender.nonzero(),
        receiver.nonzero()
    );
}

/// Checks that loden sums each payload byte at most once on egress and once on ingress.
fn summed_at_most_once(role: &str, tunnel: &Counters) {
    for direction in ["egress", "ingress"] {
        let summed = tunnel.get(&format!("{direction}.summed_bytes"));
        let bytes = tunnel.get(&format!("{direction}.bytes"));
        assert!(summed <= bytes, "{role}: {direction} summed {summed} of {bytes} bytes");
    }
}

/// Builds two loden hosts on a plain veth pair.
fn pair(name: &str) -> Option<(Cluster, [Daemon; 2])> {
    if !common::ready(&[]) {
        return None;
    }
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, VXLAN);
    let daemons = [1, 2].map(|host| cluster.start(host, &["--workers", "2"]));
    for host in [1, 2] {
        cluster.connect_pod(host);
        cluster.await_routes(host, 1);
    }
    Some((cluster, daemons))
}
