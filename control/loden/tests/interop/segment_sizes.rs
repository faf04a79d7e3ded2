//! TCP from a kernel vxlan peer on a plain veth, whose super-packets arrive uncut, to pods whose links carry
//! less than the overlay. The host's kernel discards segments that are too long for the pod's link
//! (`FragFails`), so none may be.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use lab::Wiring;
use nix::sys::signal::Signal;

use crate::common::capture::Capture;
use crate::common::{self, Cluster, DUAL, Daemon, KernelNode, packet};

const LODEN: usize = 1;
const KERNEL: usize = 2;
const BYTES: usize = 200 << 20;

struct Pair {
    daemon: Daemon,
    cluster: Cluster,
}

#[test]
fn a_pod_on_a_link_of_1300_gets_segments_that_fit() {
    for (ipv6, name) in [(false, "seg-p4"), (true, "seg-p6")] {
        let Some(pair) = pair(name) else { return };
        pair.narrow(LODEN, 1300);
        pair.nothing_is_refused(ipv6, || common::verified(&pair.cluster, KERNEL, LODEN, ipv6, BYTES as u64));
        pair.nothing_is_refused(ipv6, || common::verified(&pair.cluster, LODEN, KERNEL, ipv6, BYTES as u64));
    }
}

/// The sender has less room than the receiver: its segments stay as short as it has made them.
#[test]
fn a_sender_on_a_link_of_1300_keeps_its_segments() {
    for (ipv6, name) in [(false, "seg-s4"), (true, "seg-s6")] {
        let Some(pair) = pair(name) else { return };
        pair.narrow(KERNEL, 1300);
        pair.make_pod_wire_like();
        let largest = pair.largest_segment(ipv6, || {
            common::verified(&pair.cluster, KERNEL, LODEN, ipv6, 20 << 20);
        });
        assert_eq!(largest, 1300);
    }
}

/// `advmss` of the pod's route, and a clamp in the host's firewall.
#[test]
fn a_negotiated_size_below_every_mtu_is_kept() {
    let Some(pair) = pair("seg-adv") else { return };
    let pod = pair.cluster.host(LODEN).pod();
    let route = "ip route change $(ip route show default | sed 's/ advmss.*//') advmss 500";
    let output = pod.output(std::process::Command::new("sh").args(["-c", route])).expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    pair.make_pod_wire_like();
    let largest = pair.largest_segment(false, || {
        common::verified(&pair.cluster, KERNEL, LODEN, false, 20 << 20);
    });
    assert_eq!(largest, 540);
}

/// Connections of different sizes to one pod, one after the other and older than the daemon.
#[test]
fn a_connection_may_be_older_than_the_daemon() {
    for (ipv6, name) in [(false, "seg-o4"), (true, "seg-o6")] {
        let Some(mut pair) = pair(name) else { return };
        pair.narrow(LODEN, 1300);
        let streams: Vec<_> = (0..3).map(|_| pair.connect(ipv6)).collect();
        assert!(pair.daemon.end(Signal::SIGTERM).success());
        pair.daemon = pair.cluster.start(LODEN, &[]);
        pair.nothing_is_refused(ipv6, || streams.into_iter().for_each(transfer));
    }
}

/// The pod's link gets narrower while connections live: the peer is told once, and all goes on.
#[test]
fn a_links_mtu_may_shrink_below_a_living_connection() {
    for (ipv6, name) in [(false, "seg-m4"), (true, "seg-m6")] {
        let Some(pair) = pair(name) else { return };
        let streams = pair.connect(ipv6);
        pair.narrow(LODEN, 1300);
        let before = pair.refused(ipv6);
        transfer(streams);
        let refused = pair.refused(ipv6) - before;
        // What was under way when the peer was told.
        assert!((1..200).contains(&refused), "{refused} super-packets refused");
    }
}

impl Pair {
    /// Sets the MTU of a host's pod link, at both ends.
    fn narrow(&self, number: usize, mtu: u32) {
        let host = self.cluster.host(number);
        host.namespace().set_mtu(host.pod_side(), mtu).expect("MTU");
        host.pod().set_mtu(host.uplink(), mtu).expect("MTU");
    }

    /// Has the host cut super-packets before they enter the pod's link.
    fn make_pod_wire_like(&self) {
        let side = self.cluster.host(LODEN).pod_side();
        self.cluster.shell(LODEN, &format!("ethtool -K {side} tso off gso off"));
        let pod = self.cluster.host(LODEN).pod();
        let gro = pod.output(std::process::Command::new("ethtool").args(["-K", "eth0", "gro", "off"]));
        assert!(gro.expect("ethtool").status.success());
    }

    /// Returns how many packets the host could neither forward nor fragment.
    fn refused(&self, ipv6: bool) -> u64 {
        let line = if ipv6 {
            "grep Ip6InTooBigErrors /proc/net/snmp6 | tr -s ' \t' ' ' | cut -d' ' -f2"
        } else {
            // FragFails is the 18th value.
            "grep '^Ip: [0-9]' /proc/net/snmp | cut -d' ' -f19"
        };
        self.cluster.shell(LODEN, line).parse().expect("a number")
    }

    fn nothing_is_refused(&self, ipv6: bool, work: impl FnOnce()) {
        let before = self.refused(ipv6);
        work();
        assert_eq!(self.refused(ipv6), before, "the host refused segments");
    }

    /// Returns the length of the longest TCP packet that reaches the pod.
    fn largest_segment(&self, ipv6: bool, work: impl FnOnce()) -> usize {
        let mut capture = Capture::start(self.cluster.host(LODEN).pod());
        work();
        let target = self.cluster.pod(LODEN, ipv6);
        let to_pod = |frame: &Vec<u8>| {
            let ip = frame.get(14..)?;
            let (protocol, found) = match target {
                IpAddr::V4(address) => (ip.get(9)?, ip.get(16..20)? == address.octets()),
                IpAddr::V6(address) => (ip.get(6)?, ip.get(24..40)? == address.octets()),
            };
            (found && *protocol == packet::TCP).then_some(ip.len())
        };
        capture.frames().iter().filter_map(to_pod).max().expect("a segment")
    }

    /// Connects a process in the kernel host's pod to one in ours.
    fn connect(&self, ipv6: bool) -> (TcpStream, TcpStream) {
        let target = SocketAddr::new(self.cluster.pod(LODEN, ipv6), 0);
        let listen = || TcpListener::bind(target).expect("a listener");
        let listener = self.cluster.host(LODEN).pod().run(listen).expect("the pod");
        let target = listener.local_addr().expect("an address");
        let connect = || TcpStream::connect_timeout(&target, common::LIMIT).expect("a connection");
        let sender = self.cluster.host(KERNEL).pod().run(connect).expect("the pod");
        (sender, listener.accept().expect("a connection").0)
    }
}

/// Sends bytes over a connection and checks that they arrive.
fn transfer((mut sender, mut receiver): (TcpStream, TcpStream)) {
    let block: Vec<u8> = (0..1 << 20).map(|index: usize| (index * 7 + (index >> 8)) as u8).collect();
    receiver.set_read_timeout(Some(common::LIMIT)).expect("a time limit");
    sender.set_write_timeout(Some(common::LIMIT)).expect("a time limit");
    let (sent, start) = (block.clone(), Instant::now());
    let send = thread::spawn(move || {
        (0..BYTES / sent.len()).for_each(|_| sender.write_all(&sent).expect("sent"));
    });
    let mut read = vec![0; block.len()];
    for number in 0..BYTES / block.len() {
        receiver.read_exact(&mut read).unwrap_or_else(|error| panic!("block {number}: {error}"));
        assert!(read == block, "block {number} has changed");
    }
    send.join().expect("the sender");
    println!("{BYTES} bytes: {:.2} Gbit/s", BYTES as f64 * 8e-9 / start.elapsed().as_secs_f64());
}

fn pair(name: &str) -> Option<Pair> {
    let needs = common::needs(&["ethtool"]).and("the kernel's vxlan", common::has_vxlan());
    if !needs.are_met() {
        return None;
    }
    let mut cluster = Cluster::build(name, 2, Wiring::Direct, DUAL);
    let kernel = KernelNode::join(&mut cluster, KERNEL);
    let daemon = cluster.start(LODEN, &[]);
    cluster.connect_pod(LODEN);
    kernel.add_peer(&cluster, &cluster.lease(LODEN));
    cluster.await_routes(LODEN, 1);
    common::ping(&cluster, LODEN, KERNEL, false);
    common::ping(&cluster, LODEN, KERNEL, true);
    Some(Pair { daemon, cluster })
}
