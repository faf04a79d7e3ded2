//! Every kind of load over the loopback device of a namespace: the counts match what was sent.

// clippy.toml allows unwrap only in test functions, not in their helpers.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use lab::{Namespace, Needs};
use load::{Error, RttLoad, Server, SizesLoad, Stop, TcpLoad, UdpLoad, VerifyLoad};

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn tcp_counts_every_stream() {
    on_both_families("tcp", |server| {
        let load = TcpLoad { streams: 3, warm_up: SHORT, interval: SHORT };
        let report = load::tcp(server, &load, &Stop::default()).unwrap();
        assert_eq!(report.bytes_by_stream.len(), 3);
        assert_eq!(report.bytes_by_stream.iter().sum::<u64>(), report.bytes);
        assert!(report.bytes > 0 && report.gbit_per_s > 0.0);
    });
}

#[test]
fn verify_compares_every_byte() {
    on_both_families("verify", |server| {
        for (streams, bytes) in [(1, 0), (1, 1), (3, 5_000_001)] {
            let report = load::verify(server, &VerifyLoad { streams, bytes }, &Stop::default()).unwrap();
            assert!(report.equal, "{report:?}");
            assert_eq!(report.received, bytes * streams as u64);
            assert_eq!(report.sha256_sent.len(), streams);
        }
    });
}

#[test]
fn udp_delivers_no_more_than_was_sent() {
    on_both_families("udp", |server| {
        for (size, flows) in [(64, 1), (64, 16), (1, 1), (1400, 2)] {
            let load = UdpLoad { size, flows, batch: 16, warm_up: SHORT, interval: SHORT };
            let report = load::udp(server, &load, &Stop::default()).unwrap();
            assert!(report.delivered > 0, "{report:?}");
            assert!(report.delivered <= report.received, "{report:?}");
            assert!(report.received <= report.sent, "{report:?}");
        }
    });
}

#[test]
fn udp_counts_only_this_runs_datagrams() {
    on_both_families("udp-strangers", |server| {
        // Two concurrent runs share the receiver's address, but neither port nor token.
        let load = UdpLoad { size: 64, flows: 1, batch: 8, warm_up: SHORT, interval: SHORT };
        std::thread::scope(|scope| {
            let runs = [(); 2].map(|()| scope.spawn(|| load::udp(server, &load, &Stop::default()).unwrap()));
            for report in runs.map(|run| run.join().unwrap()) {
                assert!(report.received <= report.sent, "{report:?}");
            }
        });
    });
}

#[test]
fn rtt_orders_its_percentiles() {
    on_both_families("rtt", |server| {
        let load = RttLoad { size: 64, warm_up: Duration::ZERO, interval: SHORT };
        let report = load::rtt(server, &load, &Stop::default()).unwrap();
        assert!(report.round_trips > 0 && report.lost == 0, "{report:?}");
        let ordered = [report.min_us, report.p50_us, report.p90_us, report.p99_us, report.max_us];
        assert!(ordered.is_sorted(), "{report:?}");
    });
}

#[test]
fn every_size_comes_back_once() {
    on_both_families("sizes", |server| {
        let report = load::sizes(server, &SizesLoad { from: 0, to: 3000 }, &Stop::default()).unwrap();
        assert_eq!((report.right, report.duplicates), (3001, 0), "{report:?}");
        assert!(report.missing.is_empty() && report.wrong.is_empty());
    });
}

#[test]
fn a_run_can_be_stopped() {
    on_both_families("stop", |server| {
        let stop = Stop::default();
        let load = TcpLoad { streams: 1, warm_up: Duration::ZERO, interval: Duration::from_secs(3600) };
        std::thread::scope(|scope| {
            let run = scope.spawn(|| load::tcp(server, &load, &stop));
            std::thread::sleep(SHORT);
            stop.request();
            assert!(matches!(run.join().unwrap(), Err(Error::Stopped)));
        });
    });
}

#[test]
fn impossible_loads_are_rejected() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let udp = UdpLoad { size: 65508, flows: 1, batch: 1, warm_up: SHORT, interval: SHORT };
    let error = load::udp(nowhere, &udp, &Stop::default()).unwrap_err().to_string();
    assert_eq!(error, "size 65508: must be 0 to 65507");
    let tcp = TcpLoad { streams: 0, warm_up: SHORT, interval: SHORT };
    assert!(matches!(load::tcp(nowhere, &tcp, &Stop::default()), Err(Error::Impossible(_))));
}

#[test]
fn a_server_survives_nonsense() {
    on_both_families("nonsense", |server| {
        use std::io::{Read, Write};
        for nonsense in ["\n", "{}\n", "{\"tcp\":{\"streams\":0,\"warm_up_ms\":0,\"interval_ms\":0}}\n", "x"]
        {
            let mut stream = TcpStream::connect(server).unwrap();
            stream.write_all(nonsense.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.is_empty() || answer.starts_with("{\"failed\""), "{answer}");
        }
        let load = VerifyLoad { streams: 1, bytes: 10 };
        assert!(load::verify(server, &load, &Stop::default()).unwrap().equal);
    });
}

/// Runs `test` against a server on the loopback device of a new namespace, over IPv4 and over IPv6.
fn on_both_families(name: &str, test: impl Fn(SocketAddr) + Send + Sync) {
    if !Needs::root().are_met() {
        return;
    }
    let namespace = Namespace::create(&format!("loadtest{}-{name}", std::process::id())).unwrap();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        namespace
            .run(|| {
                let server = Server::start(SocketAddr::new(address, 0)).unwrap();
                test(server.address());
            })
            .unwrap();
    }
}
