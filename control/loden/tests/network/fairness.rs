//! What a pod that sends as much as it can leaves to its neighbours, and to the host's memory.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use io::mask::Feature;
use ipnetwork::IpNetwork;
use lab::{Namespace, Needs, Route, Wiring, veth};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use crate::common::{self, Cluster, DUAL, Daemon, VXLAN, await_until};

/// IP in IP, through raw sockets.
const IPIP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;

/// Kernel memory for packets that wait for the workers, by default and with up to four sockets.
const BOUND: u64 = 64 << 20;
/// The largest packet that the kernel puts into a queue.
const LARGEST: u64 = 64 << 10;

/// Datagrams of one joined send, and their size.
const SEGMENTS: usize = 45;
const SEGMENT: u16 = 1400;
const TRAIN: usize = SEGMENTS * SEGMENT as usize;

/// Flows of the neighbour, and round trips of each.
const FLOWS: u16 = 16;
const ROUND_TRIPS: u64 = 15;
/// A datagram that has not returned by then is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// Without bpf(2) the kernel limits only the number of packets, and bursts of small ones must find room.
#[test]
fn queues_limited_in_packets_are_few_and_as_long_as_the_drivers_own() {
    if !common::ready(&["ss"]) {
        return;
    }
    for (config, name) in [(VXLAN, "a"), (DUAL, "b")] {
        let cluster = Cluster::build(&format!("fair-mem-{name}"), 1, Wiring::Switch, config);
        let daemon = cluster.start_without(1, &[Feature::Bpf]);
        let devices = waiting_packets(&cluster, &daemon);
        let workers = thread::available_parallelism().expect("cores").get() as u64;
        for (queues, length) in &devices {
            assert_eq!(*queues, workers, "{devices:?}: {config}");
            assert!(*length == 500 || *length > 500 && length * queues * LARGEST <= BOUND, "{devices:?}");
        }
        assert!(receive_buffers(&cluster) <= BOUND / 2, "{config}");
        assert_eq!(daemon.log_text().matches("; grant CAP_BPF").count(), 1, "one warning");
        daemon.finish();
    }
}

#[test]
fn packets_that_wait_for_the_workers_take_bounded_memory() {
    if !common::ready(&["ss"]) {
        return;
    }
    for (workers, options, bound) in
        [("1", None, BOUND), ("2", None, BOUND), ("16", None, 112 << 20), ("2", Some("8"), 8 << 20)]
    {
        let mut cluster = Cluster::build(&format!("fair-wait-{workers}"), 2, Wiring::Direct, VXLAN);
        let more: Vec<&str> = options.iter().flat_map(|mib| ["--queue-memory", *mib]).collect();
        let mut daemon = cluster.start(1, &[&["--workers", workers][..], &more].concat());
        let other = cluster.start(2, &[]);
        for host in [1, 2] {
            cluster.connect_pod(host);
            cluster.await_routes(host, 1);
        }
        // A worker that is not running reads nothing, so what it reads afterwards has waited for it.
        daemon.suspend();
        let target = SocketAddr::new(cluster.pod(2, false), 9);
        let train = [0x5a; TRAIN];
        let offered = cluster.host(1).pod().run(|| {
            let flows: Vec<_> = (0..64).map(|_| UdpSocket::bind("0.0.0.0:0").expect("a socket")).collect();
            if !Needs::default().and("UDP_SEGMENT", flows.iter().all(segments)).are_met() {
                return 0;
            }
            let sends = flows.iter().cycle().take(64 * 64).map(|flow| flow.send_to(&train, target));
            sends.map(|sent| sent.unwrap_or(0) as u64).sum()
        });
        let offered: u64 = offered.expect("the pod");
        // While the daemon cannot look, the kernel counts what finds no room.
        daemon.resume();
        if offered == 0 {
            return;
        }
        let mut waited = 0;
        await_until("the queues to be read", || {
            let before = waited;
            waited = daemon.next_counters()[0].get("egress.bytes");
            waited > 0 && waited == before
        });
        let counters = daemon.fresh_counters().remove(0);
        let (read, [lost, _]) = (counters.get("egress.packets"), counters.unread);
        let trains = offered / train.len() as u64;
        assert!(lost > 0 && read + lost <= trains + 100, "{read} read and {lost} lost of {trains}");
        println!("{workers} workers, {bound} bytes: {waited} of {offered} bytes waited");
        let receive = receive_buffers(&cluster);
        assert!(
            waited + receive <= bound,
            "{workers} workers: {waited} bytes in queues, {receive} in sockets"
        );
        assert!(waited >= bound / 5, "{workers} workers: only {waited} of {bound} bytes were used");
        daemon.finish();
        other.finish();
    }
}

#[test]
fn what_finds_no_room_is_counted_for_each_format() {
    if !common::ready(&[]) {
        return;
    }
    for (config, name) in [(VXLAN, "vxlan"), (IPIP, "ipip")] {
        let mut cluster = Cluster::build(&format!("fair-drop-{name}"), 2, Wiring::Direct, config);
        let healthz = ["--healthz-ip", "127.0.0.1", "--healthz-port", "9180"];
        let [sender, mut receiver] = [1, 2].map(|host| {
            let daemon = cluster.start(host, &[&["--queue-memory", "1"][..], &healthz].concat());
            cluster.connect_pod(host);
            daemon
        });
        await_until("the peer", || sender.logged("peers=1"));
        let before = receiver.fresh_counters()[0].clone();
        assert_eq!(before.unread, [0, 0], "{name}");
        receiver.suspend();
        let target = SocketAddr::new(cluster.pod(2, false), 9);
        let send = || {
            let flow = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            for number in 0..20_000 {
                let _ = flow.send_to(&[0x5a; 1000], target);
                // The sending host must keep up, or its own queue overflows.
                if number % 32 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        };
        cluster.host(1).pod().run(send).expect("the pod");
        receiver.resume();
        let mut counters = receiver.fresh_counters().remove(0);
        await_until("the queue to be read", || {
            let before = counters.nonzero();
            let now = receiver.next_counters().remove(0);
            let is_settled = now.nonzero() == before && now.unread == counters.unread;
            counters = now;
            is_settled && counters.unread[1] > 0
        });
        let (_, metrics) = common::get(&cluster, 2, "9180", "/metrics").expect("metrics");
        let line = metrics.lines().find(|line| {
            line.starts_with("loden_unread_drops_total") && line.contains(r#"direction="ingress""#)
        });
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        assert_eq!(value, Some(counters.unread[1]), "{name}: {metrics}");
        let place = cluster.place.path().display();
        let status = cluster.shell(2, &format!("{} status --run-dir {place}", env!("CARGO_BIN_EXE_loden")));
        assert!(status.contains("by the kernel, before a worker read them"), "{status}");
    }
}

#[test]
fn three_senders_of_super_packets_do_not_silence_a_neighbour() {
    let Some(counts) = returned_beside("fair-flood", 3, TRAIN, &[]) else { return };
    // Not all: on a busy machine the receiving host may drop one.
    assert!(unharmed(&counts) >= usize::from(FLOWS * 3 / 4), "{counts:?}");
}

/// So many flows are in every queue, and small packets have no part of a queue that these may not fill.
#[test]
fn many_flows_of_small_packets_do_not_silence_a_neighbour() {
    let Some(counts) = returned_beside("fair-many", 64, usize::from(SEGMENT), &[]) else { return };
    // The receiving host has as many packets to read, and drops some of every flow's.
    assert!(counts.iter().sum::<u64>() >= u64::from(FLOWS) * ROUND_TRIPS * 3 / 4, "{counts:?}");
}

#[test]
fn many_flows_of_super_packets_do_not_silence_a_neighbour() {
    let Some(counts) = returned_beside("fair-trains", 64, TRAIN, &[]) else { return };
    assert!(unharmed(&counts) >= usize::from(FLOWS * 3 / 4), "{counts:?}");
}

/// Without bpf(2) a neighbour shares its queues with the super-packets. It is harmed, but not cut off.
#[test]
fn a_neighbour_is_not_cut_off_without_bpf() {
    let Some(counts) = returned_beside("fair-plain", 3, TRAIN, &[Feature::Bpf]) else { return };
    let reached = counts.iter().filter(|count| **count > 0).count();
    assert!(reached >= usize::from(FLOWS / 2), "{counts:?}");
}

/// Returns how many flows lost nothing.
fn unharmed(counts: &[u64]) -> usize {
    counts.iter().filter(|count| **count == ROUND_TRIPS).count()
}

/// Runs flows of packets of `len` bytes, as fast as three threads of a pod can, and a neighbour's flows of
/// small datagrams. Returns how many round trips each of the neighbour's flows made; `None` if the test
/// cannot run here.
fn returned_beside(name: &str, flows: usize, len: usize, hidden: &[Feature]) -> Option<Vec<u64>> {
    if !common::ready(&[]) {
        return None;
    }
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, VXLAN);
    let daemons = [1, 2].map(|host| cluster.start_without(host, hidden));
    for host in [1, 2] {
        cluster.connect_pod(host);
        cluster.await_routes(host, 1);
    }
    let neighbour = neighbour(&cluster);
    let bind = |host: usize| {
        let address = SocketAddr::new(cluster.pod(host, false), 0);
        cluster.host(host).pod().run(|| UdpSocket::bind(address)).expect("the pod").expect("a socket")
    };
    let (unread, echo) = (bind(2), bind(2));
    let sink = unread.local_addr().expect("an address");
    echo.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit");
    let target = echo.local_addr().expect("an address");
    let senders: Vec<_> = (0..flows).map(|_| bind(1)).collect();
    if !Needs::default().and("UDP_SEGMENT", senders.iter().all(segments)).are_met() {
        return None;
    }
    let (stop, flooded) = (AtomicBool::new(false), AtomicU64::new(0));
    let counts = thread::scope(|scope| {
        for senders in senders.chunks(flows.div_ceil(3)) {
            let (stop, flooded) = (&stop, &flooded);
            scope.spawn(move || {
                let train = vec![0x5a; len];
                for sender in senders.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                    // A full queue of the pod's own device is an error, and no reason to stop.
                    flooded.fetch_add(sender.send_to(&train, sink).unwrap_or(0) as u64, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..length], from).expect("send back");
                }
            }
        });
        let flows: Vec<_> = (0..FLOWS)
            .map(|_| {
                let flow =
                    neighbour.run(|| UdpSocket::bind("0.0.0.0:0")).expect("the pod").expect("a socket");
                scope.spawn(move || returned(&flow, target))
            })
            .collect();
        let counts: Vec<u64> = flows.into_iter().map(|flow| flow.join().expect("a flow")).collect();
        stop.store(true, Ordering::Relaxed);
        println!("returned of {ROUND_TRIPS}: {counts:?}");
        counts
    });
    let flooded = flooded.into_inner();
    let [sender, _] = daemons.map(|daemon| daemon.finish().remove(0));
    println!("{flooded} bytes offered, {} forwarded", sender.get("egress.bytes"));
    Some(counts)
}

/// Makes a socket send trains of datagrams. Returns whether the kernel can.
fn segments(socket: &UdpSocket) -> bool {
    setsockopt(&socket.as_fd(), UdpGsoSegment, &i32::from(SEGMENT)).is_ok()
}

/// Makes round trips one after another and returns how many succeeded.
fn returned(flow: &UdpSocket, target: SocketAddr) -> u64 {
    flow.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let answered = |number: u64| {
        flow.send_to(&number.to_be_bytes(), target).expect("send");
        let mut buffer = [0; 8];
        // An answer that comes too late is not the next one's.
        while flow.recv(&mut buffer).is_ok() {
            if u64::from_be_bytes(buffer) == number {
                return true;
            }
        }
        false
    };
    (0..ROUND_TRIPS).filter(|number| answered(*number)).count() as u64
}

/// Creates a second pod on host 1.
fn neighbour(cluster: &Cluster) -> Namespace {
    let host = cluster.host(1);
    let pod = Namespace::create(&format!("{}-n", host.namespace().name())).expect("a namespace");
    veth((host.namespace(), "pod1"), (&pod, "eth0"), 1450).expect("a link");
    let IpAddr::V4(first) = cluster.pod(1, false) else { panic!("not IPv4") };
    let own = IpNetwork::from(IpAddr::from(Ipv4Addr::from(u32::from(first) + 1)));
    let gateway = IpAddr::from(Ipv4Addr::from(u32::from(first) - 1));
    let route = |destination, via, device| Route { destination, via, device, onlink: via.is_some() };
    host.namespace().set_up("pod1").expect("up");
    host.namespace().add_route(&route(own, None, Some("pod1"))).expect("a route to the pod");
    pod.add_address("eth0", own).expect("an address");
    let any = "0.0.0.0/0".parse().expect("a network");
    pod.add_route(&route(any, Some(gateway), Some("eth0"))).expect("a default route");
    pod
}

/// Returns the number of queues of each of a daemon's devices, and how many packets may wait in each.
fn waiting_packets(cluster: &Cluster, daemon: &Daemon) -> Vec<(u64, u64)> {
    let links: serde_json::Value = serde_json::from_str(&cluster.shell(1, "ip -j link")).expect("JSON");
    let names = ["flannel.1", "flannel-v6.1"];
    let ours = links.as_array().expect("links").iter().filter_map(|link| {
        let name = link["ifname"].as_str().filter(|name| names.contains(name))?;
        let length = link["txqlen"].as_u64().expect("a queue length");
        let attached = fs::read_dir(format!("/proc/{}/fdinfo", daemon.process.id())).expect("descriptors");
        let of_device = attached.filter(|file| {
            let path = file.as_ref().expect("a descriptor").path();
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().any(|line| line.split_whitespace().eq(["iff:", name]))
        });
        // One more descriptor holds the device and shares a queue.
        let queues = of_device.count() as u64 - 1;
        Some((queues, length))
    });
    ours.collect()
}

/// Returns the sum of the receive buffers of all UDP sockets in the host's namespace.
fn receive_buffers(cluster: &Cluster) -> u64 {
    let text = cluster.shell(1, "ss -uamnH");
    // skmem:(r0,rb212992,t0,...)
    let sizes = text.split(['(', ',']).filter_map(|field| field.strip_prefix("rb")?.parse::<u64>().ok());
    sizes.sum()
}
