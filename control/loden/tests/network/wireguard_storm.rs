//! Ten thousand WireGuard peers initiate a handshake at once: all are answered, some only with a cookie, and
//! traffic between two nodes with a session is not affected.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::Wiring;
use model::wireguard::WireguardData;
use path::PeerId;
use path::wireguard::peer::{Action, Moment};
use path::wireguard::{Peer, PublicKey, SecretKey, SessionIndex};

use crate::common::steady::Steady;
use crate::common::{self, Cluster, Daemon, await_until};

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"wireguard"}}"#;
const PEERS: u32 = 10_000;
const PORT: u16 = 51820;
/// The network of the peers, with one address each, all on the third host.
const NETWORK: u32 = Ipv4Addr::new(198, 19, 0, 0).to_bits();
/// How many sockets are read between two looks at the clock.
const CHUNK: usize = 500;
/// All must be answered by then; it takes a few seconds.
const LIMIT: Duration = Duration::from_secs(90);
const BUFFER: usize = 256;

/// A peer that is only a state machine and a socket.
struct Stormer {
    peer: Peer,
    private: SecretKey,
    socket: UdpSocket,
    done: bool,
}

#[test]
fn ten_thousand_handshakes_are_answered_and_disturb_nobody() {
    // The soft limit is low on many machines.
    let mut raise = Command::new("prlimit");
    raise.args(["--pid", &std::process::id().to_string(), &format!("--nofile={}:", PEERS + 1000)]);
    let raised = raise.status().is_ok_and(|status| status.success());
    if !common::needs(&[]).and("11,000 open files (ulimit -Hn)", raised).are_met() {
        return;
    }
    let mut cluster = Cluster::build("wg-storm", 3, Wiring::Switch, CONFIG);
    // The third host has every address of the network (AnyIP), and the first has a route.
    cluster.shell(3, "ip route add local 198.19.0.0/16 dev lo");
    cluster.shell(1, &format!("ip route add 198.19.0.0/16 via {}", cluster.host(3).underlay()));
    let daemons = [1, 2].map(|number| cluster.start(number, &[]));
    for number in [1, 2] {
        cluster.connect_pod(number);
    }
    await_until("the session", || {
        cluster.host(1).pod().ping(cluster.pod(2, false), 0, Duration::from_millis(300)).is_ok()
    });
    let before = resident(&daemons[0]);
    enroll(&cluster);
    await_until("the peers", || daemons[0].logged(&format!("applied device=flannel-wg peers={}", PEERS + 1)));
    let configured = resident(&daemons[0]);

    let lease = cluster.lease(1);
    let data = WireguardData::parse(lease.attrs.backend_data.unwrap().as_str()).unwrap();
    let ours = PublicKey(data.public_key);
    let flow = Steady::start(&cluster, 2, 1);
    let target = SocketAddr::from((cluster.host(1).underlay(), PORT));
    let storm = || storm(ours, target);
    let (answered, cookies, took) = cluster.host(3).namespace().run(storm).unwrap();
    let outcome = flow.finish();
    println!(
        "{answered} of {PEERS} answered in {took:?}, {cookies} cookies; \
         {} datagrams there and back meanwhile; \
         KiB resident: {before} with one peer, {configured} with all, {} with all sessions",
        outcome.sent,
        resident(&daemons[0])
    );
    assert_eq!(answered, PEERS, "{cookies} cookies, in {took:?}");
    assert!(cookies > 0, "no peer was sent a cookie");
    assert!(outcome.lost.is_empty(), "{outcome:?}");
    for daemon in daemons {
        for counters in daemon.finish() {
            // Messages dropped unread are counted. The flow lost nothing, so they were handshakes.
            let mut drops = counters.unexplained_drops();
            drops.retain(|name, _| !name.ends_with("wg_busy"));
            assert!(drops.is_empty(), "{drops:?}");
        }
    }
}

/// Stores a lease for each peer, in one transaction.
fn enroll(cluster: &Cluster) {
    let mut connection = rusqlite::Connection::open(cluster.store()).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    let step = connection.transaction().unwrap();
    for number in 0..PEERS {
        let key = WireguardData { public_key: secret(number).public().0, port: Some(PORT) }.to_json();
        let subnet = Ipv4Addr::from(Ipv4Addr::new(10, 32, 0, 0).to_bits() + (number << 8));
        let value = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{}}}"#,
            Ipv4Addr::from(NETWORK + number + 1),
            key.as_str()
        );
        let row = (format!("{subnet}-24"), value, i64::from(u32::MAX));
        step.execute("INSERT INTO leases VALUES (?1, ?2, ?3)", row).unwrap();
    }
    step.commit().unwrap();
}

/// Initiates all handshakes at once and follows the protocol from there. Returns how many were answered, how
/// many got a cookie first, and how long that took.
fn storm(ours: PublicKey, target: SocketAddr) -> (u32, u32, Duration) {
    let mut stormers: Vec<Stormer> = (0..PEERS)
        .map(|number| {
            let address = Ipv4Addr::from(NETWORK + number + 1);
            let socket = UdpSocket::bind((address, PORT)).unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut peer = Peer::new(PeerId(number), ours);
            peer.endpoint = Some(target);
            Stormer { peer, private: secret(number), socket, done: false }
        })
        .collect();
    let began = Instant::now();
    let (mut answered, mut cookies) = (0, 0);
    let mut begun = false;
    while answered < PEERS && began.elapsed() < LIMIT {
        for (chunk, at) in stormers.chunks_mut(CHUNK).zip(0u32..) {
            for (stormer, number) in chunk.iter_mut().zip(at * CHUNK as u32..).filter(|(one, _)| !one.done) {
                let now = began.elapsed().as_millis() as u64 + 1;
                let mut stamp = [0; 12];
                stamp[..8].copy_from_slice(&now.to_be_bytes());
                let moment =
                    Moment { now, stamp, index: SessionIndex(number + 1), jitter: u64::from(number % 334) };
                let mut actions = Vec::new();
                if !begun {
                    stormer.peer.begin(&stormer.private, &moment, &mut actions);
                }
                cookies += stormer.receive(now, &mut actions);
                stormer.peer.handle_timeout(&stormer.private, &moment, &mut actions);
                for action in actions {
                    match action {
                        Action::Send(to, message) => _ = stormer.socket.send_to(&message, to).unwrap(),
                        Action::Use(_) => {
                            stormer.done = true;
                            answered += 1;
                        }
                        _ => {}
                    }
                }
            }
        }
        begun = true;
        thread::sleep(Duration::from_millis(1));
    }
    (answered, cookies, began.elapsed())
}

impl Stormer {
    /// Receives one message. Returns the number of cookies.
    fn receive(&mut self, now: u64, actions: &mut Vec<Action>) -> u32 {
        let mut buffer = [0; BUFFER];
        match self.socket.recv_from(&mut buffer) {
            Ok((92, from)) => {
                let message = buffer[..92].try_into().unwrap();
                assert!(self.peer.handle_response(&message, from, now, actions), "a false response");
                0
            }
            Ok((64, _)) => {
                let message = buffer[..64].try_into().unwrap();
                u32::from(self.peer.handle_cookie(&message, now))
            }
            Ok((length, from)) => panic!("{length} bytes from {from}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                0
            }
        }
    }
}

fn secret(number: u32) -> SecretKey {
    let mut bytes = [0x5a; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SecretKey(bytes)
}

/// Returns a daemon's resident memory in KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
