//! The tests of the finished cluster: a ping for every pair, and load between the first two pods.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lab::Lab;
use load::{DEFAULT_PORT, RttLoad, RttReport, Server, TcpLoad, TcpReport, UdpLoad, UdpReport};
use serde::Serialize;

use super::interrupt::Interrupt;
use super::progress::Progress;

/// How long one ping may take.
const PING: Duration = Duration::from_millis(500);

/// How long the last host may take to learn the others after it has written its subnet file.
const SETTLE: Duration = Duration::from_secs(10);

/// Payload of a ping and of a small datagram, in bytes.
const SMALL: usize = 64;

/// How long to send before the measurement.
const WARM_UP: Duration = Duration::from_millis(300);

/// One ordered pair of pods in one family.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) address: IpAddr,
    /// Round trip of the ping; `None` without a reply.
    pub(crate) round_trip_us: Option<f64>,
    /// The reason for a missing reply.
    pub(crate) problem: Option<String>,
}

/// Measurements between the first two pods in one family.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) family: &'static str,
    pub(crate) tcp: Option<TcpReport>,
    pub(crate) udp: Option<UdpReport>,
    pub(crate) rtt: Option<RttReport>,
}

/// Pings every ordered pair in every family. Pairs that fail are retried until the hosts have had time to
/// learn each other. Returns an error only if interrupted: a failed pair records its own problem.
pub(crate) fn ping_pairs(lab: &Lab, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for from in lab.hosts() {
        for to in lab.hosts().iter().filter(|to| to.number() != from.number()) {
            pairs.extend(to.pod_addresses().iter().map(|address| Pair {
                from: from.number(),
                to: to.number(),
                address: *address,
                round_trip_us: None,
                problem: None,
            }));
        }
    }
    progress.step(format!("pinging {} pairs of pods", pairs.len()));
    let deadline = Instant::now() + SETTLE;
    loop {
        for pair in pairs.iter_mut().filter(|pair| pair.round_trip_us.is_none()) {
            interrupt.check()?;
            progress.detail(format!("pinging pod {} from pod {}", pair.to, pair.from));
            let Some(host) = lab.hosts().get(pair.from - 1) else { continue };
            match host.pod().ping(pair.address, SMALL, PING) {
                Ok(time) => pair.round_trip_us = Some(time.as_nanos() as f64 / 1000.0),
                Err(error) => pair.problem = Some(error.to_string()),
            }
        }
        let missing = pairs.iter().any(|pair| pair.round_trip_us.is_none());
        if !missing || Instant::now() > deadline {
            break;
        }
        interrupt.sleep(Duration::from_millis(100))?;
    }
    for pair in pairs.iter_mut().filter(|pair| pair.round_trip_us.is_some()) {
        pair.problem = None;
    }
    Ok(pairs)
}

/// Measures from the first pod to the second in every family, for `time` each. Returns the figures and the
/// failures.
pub(crate) fn measure(
    lab: &Lab,
    time: Duration,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<(Vec<Figures>, Vec<String>)> {
    let (mut figures, mut problems) = (Vec::new(), Vec::new());
    let [client, server, ..] = lab.hosts() else { return Ok((figures, problems)) };
    for address in server.pod_addresses() {
        let family = family(address);
        let at = SocketAddr::new(*address, DEFAULT_PORT);
        let answering = server.pod().run(|| Server::start(at))??;
        let at = answering.address();
        let stop = interrupt.stop();
        let mut note =
            |what: &str, error: load::Error| problems.push(format!("{what} over {family}: {error}"));

        progress.step(format!("measuring TCP over {family}"));
        let load = TcpLoad { streams: 1, warm_up: WARM_UP, interval: time };
        let tcp = client.pod().run(|| load::tcp(at, &load, stop))?;
        interrupt.check()?;
        progress.step(format!("measuring {SMALL}-byte UDP over {family}"));
        let load = UdpLoad { size: SMALL, flows: 1, batch: 32, warm_up: WARM_UP, interval: time };
        let udp = client.pod().run(|| load::udp(at, &load, stop))?;
        interrupt.check()?;
        progress.step(format!("measuring round trips over {family}"));
        let load = RttLoad { size: SMALL, warm_up: WARM_UP, interval: time };
        let rtt = client.pod().run(|| load::rtt(at, &load, stop))?;
        interrupt.check()?;

        figures.push(Figures {
            family,
            tcp: tcp.map_err(|error| note("TCP", error)).ok(),
            udp: udp.map_err(|error| note("UDP", error)).ok(),
            rtt: rtt.map_err(|error| note("round trips", error)).ok(),
        });
    }
    Ok((figures, problems))
}

/// Returns `IPv4` or `IPv6`.
pub(crate) fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
