//! A WireGuard rekey by the real clock: a session is replaced after two minutes, and traffic must not be
//! affected.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Process, Wiring};

use crate::common::steady::Steady;
use crate::common::{self, Cluster, await_until, verified};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#;
/// REKEY_AFTER_TIME is 120 s (section 6.1 of the paper); the handshake takes no time here.
const LONG: Duration = Duration::from_secs(127);
/// From here on both directions are saturated.
const BUSY_FROM: Duration = Duration::from_secs(112);

#[test]
fn a_rekey_under_load_loses_and_reorders_nothing() {
    if !common::ready(&["ip", "tcpdump"]) {
        return;
    }
    let mut cluster = Cluster::build("wg-rekey", 2, Wiring::Direct, CONFIG);
    // Pinned, for the reason given in `steady`.
    let daemons = [1, 2].map(|number| cluster.start(number, &["--pin"]));
    for (daemon, number) in daemons.iter().zip(1..) {
        await_until("its peer", || daemon.logged("applied device=flannel-wg peers=1"));
        cluster.connect_pod(number);
    }
    // Type 2: handshake responses, each of which starts a session.
    let capture = cluster.file("responses");
    let mut tcpdump = Command::new("tcpdump");
    tcpdump.args(["-i", "eth0", "-U", "-w"]).arg(&capture).arg("udp[8:4] = 0x02000000");
    let mut tcpdump =
        Process::spawn(cluster.host(1).namespace(), tcpdump.stdout(Stdio::null())).expect("tcpdump");
    await_until("tcpdump", || capture.exists());

    let began = Instant::now();
    let flows = [Steady::start(&cluster, 1, 2), Steady::start(&cluster, 2, 1)];
    std::thread::sleep(BUSY_FROM);
    let mut bulk = 0;
    while began.elapsed() < LONG {
        verified(&cluster, 1, 2, false, 200_000_000);
        verified(&cluster, 2, 1, false, 200_000_000);
        bulk += 2;
    }
    for outcome in flows.map(Steady::finish) {
        assert!(outcome.sent > 50_000, "{outcome:?}");
        assert!(outcome.lost.is_empty() && outcome.late.is_empty(), "{outcome:?}");
    }
    tcpdump.stop().expect("an end");
    let bytes = std::fs::read(&capture).expect("a capture");
    // A pcap header of 24 bytes; each packet has 16 for its record header, 14 for Ethernet, 20 for IPv4, 8
    // for UDP and 92.
    let responses = (bytes.len() - 24) / (16 + 14 + 20 + 8 + 92);
    assert!(responses >= 2, "{responses} handshakes, {bulk} bulk transfers");
    for daemon in daemons {
        for counters in daemon.finish() {
            assert_eq!(counters.unexplained_drops().len(), 0, "{:?}", counters.drops());
        }
    }
}
