//! Traffic between pods, and the assertions on it.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::time::Duration;

use lab::Host;
use load::{Server, SizesLoad, Stop, VerifyLoad};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Cluster;

/// A packet that has not arrived by then is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pings the pod of `to` from the pod of `from`, with sizes up to nearly the MTU.
pub fn ping(cluster: &Cluster, from: usize, to: usize, ipv6: bool) {
    let address = cluster.pod(to, ipv6);
    for payload in [0, 56, 1300] {
        let answer = cluster.host(from).pod().ping(address, payload, Duration::from_secs(5));
        answer.unwrap_or_else(|error| panic!("{payload} bytes from host {from} to host {to}: {error}"));
    }
}

/// Sends `bytes` by TCP from pod to pod; both ends must have the same digest.
pub fn verified(cluster: &Cluster, from: usize, to: usize, ipv6: bool, bytes: u64) {
    let (server, address) = serve(cluster.host(to), cluster.pod(to, ipv6));
    let load = VerifyLoad { streams: 1, bytes };
    let report = cluster.host(from).pod().run(|| load::verify(address, &load, &Stop::default()));
    let what = format!("{bytes} bytes from host {from} to host {to}, {}", if ipv6 { "IPv6" } else { "IPv4" });
    let report = report.expect("the pod").unwrap_or_else(|error| panic!("{what}: {error}"));
    println!("{what}: {:.2} Gbit/s", report.gbit_per_s);
    assert_eq!(report.received, bytes, "{what}");
    assert_eq!(report.sha256_sent, report.sha256_received, "{what}");
    drop(server);
}

/// Sends one datagram of every size from pod to pod and back: each must return once, unchanged.
pub fn every_size(cluster: &Cluster, from: usize, to: usize, ipv6: bool, sizes: RangeInclusive<usize>) {
    let (server, address) = serve(cluster.host(to), cluster.pod(to, ipv6));
    let load = SizesLoad { from: *sizes.start(), to: *sizes.end() };
    let report = cluster.host(from).pod().run(|| load::sizes(address, &load, &Stop::default()));
    let what = format!("sizes {sizes:?} from host {from} to host {to} and back");
    let report = report.expect("the pod").unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.missing.is_empty(), "{what}: missing {:?}", report.missing);
    assert!(report.wrong.is_empty(), "{what}: wrong {:?}", report.wrong);
    assert_eq!((report.right, report.duplicates), (sizes.count(), 0), "{what}");
    drop(server);
}

/// Sets the size of a socket's receive buffer, beyond `net.core.rmem_max` if the user may.
pub fn enlarge_buffer(socket: &impl AsFd, bytes: usize) {
    if setsockopt(socket, RcvBufForce, &bytes).is_err() {
        SockRef::from(socket).set_recv_buffer_size(bytes).expect("a receive buffer");
    }
}

/// Starts a load server in the pod of `host` and returns its address too.
fn serve(host: &Host, address: IpAddr) -> (Server, SocketAddr) {
    let server = host.pod().run(|| Server::start(SocketAddr::new(address, 0))).expect("the pod");
    let server = server.expect("a load server");
    let address = server.address();
    (server, address)
}

/// Sends one UDP packet of exactly `length` IP bytes, DF set, from pod to pod. Returns whether it arrives
/// unfragmented and unchanged.
pub fn unfragmented(cluster: &Cluster, from: usize, to: usize, ipv6: bool, length: u32) -> bool {
    let (source, target) = (cluster.pod(from, ipv6), cluster.pod(to, ipv6));
    let receiver = cluster.host(to).pod().run(|| bind(target)).expect("the pod");
    let target = receiver.local_addr().expect("an address");
    let (packet, payload) = udp_packet(source, target, length as usize);
    cluster.host(from).pod().run(|| send_whole(&packet, target)).expect("the pod");
    let mut buffer = [0; 4096];
    receiver.recv(&mut buffer).is_ok_and(|length| buffer[..length] == payload)
}

/// Sends one UDP packet of `length` IP bytes, DF set, and returns the MTU in the ICMP error. The error must
/// quote the packet.
pub fn too_big(cluster: &Cluster, from: usize, to: usize, ipv6: bool, length: u32) -> u32 {
    let (source, target) = (cluster.pod(from, ipv6), SocketAddr::new(cluster.pod(to, ipv6), 9));
    let (packet, _) = udp_packet(source, target, length as usize);
    let answer = cluster.host(from).pod().run(|| {
        let (domain, protocol) =
            if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let mut listener = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
        listener.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        send_whole(&packet, target);
        let mut buffer = [0; 4096];
        loop {
            let length = listener.read(&mut buffer).expect("an answer to a packet that is too big");
            // A raw IPv4 socket returns the IP header, an IPv6 one does not.
            let message = if ipv6 { &buffer[..length] } else { &buffer[20..length] };
            // RFC 792 with RFC 1191; RFC 4443 section 3.2.
            if matches!((ipv6, message[0], message[1]), (false, 3, 4) | (true, 2, 0)) {
                break message.to_vec();
            }
        }
    });
    let message = answer.expect("the pod");
    // Addresses and ports, after the fields that a router changes.
    let quoted = if ipv6 { 8..44 } else { 12..24 };
    assert_eq!(message[8..][quoted.clone()], packet[quoted], "another packet is quoted");
    u32::from_be_bytes([if ipv6 { message[4] } else { 0 }, message[5], message[6], message[7]])
}

fn bind(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(address, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket
}

/// Sends a packet with its own IP header, so that the kernel does not fragment it.
fn send_whole(packet: &[u8], to: SocketAddr) {
    let domain = if to.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    // IPPROTO_RAW: the header comes with the packet (raw(7)).
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).expect("a raw socket");
    socket.send_to(packet, &SocketAddr::new(to.ip(), 0).into()).expect("send");
}

/// Builds a UDP packet of `length` bytes and returns its payload too.
fn udp_packet(source: IpAddr, target: SocketAddr, length: usize) -> (Vec<u8>, Vec<u8>) {
    let header = if target.is_ipv6() { 40 } else { 20 };
    let payload: Vec<u8> = (0..length - header - 8).map(|index| (index * 7) as u8).collect();
    (super::packet::udp(source, target.ip(), (4000, target.port()), &payload), payload)
}

/// What became of a flow of datagrams of which one in [`DAMAGED`] was changed after it had been summed.
#[derive(Debug, PartialEq, Eq)]
pub struct Damaged {
    pub sent: u64,
    pub arrived: u64,
    /// Datagrams that arrived although they were changed.
    pub changed: u64,
}

/// One in so many datagrams is changed.
pub const DAMAGED: usize = 40;

/// Sends `count` datagrams from pod to pod, each [`DAMAGED`]th with a changed payload and the checksum of the
/// unchanged one.
pub fn damaged_flow(cluster: &Cluster, from: usize, to: usize, ipv6: bool, count: usize) -> Damaged {
    let (source, target) = (cluster.pod(from, ipv6), cluster.pod(to, ipv6));
    let receiver = cluster.host(to).pod().run(|| bind(target)).expect("the pod");
    enlarge_buffer(&receiver, 16 << 20);
    receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
    let target = receiver.local_addr().expect("an address");
    let payload = |number: usize| -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..1000).map(|index| (index * 7 + number) as u8).collect();
        bytes[..4].copy_from_slice(&(number as u32).to_be_bytes());
        bytes
    };
    let header = if ipv6 { 48 } else { 28 };
    let packet = |number: usize| {
        let mut packet = super::packet::udp(source, target.ip(), (4000, target.port()), &payload(number));
        if number % DAMAGED == DAMAGED / 2 {
            packet[header + 500] ^= 0x10;
        }
        packet
    };
    let packets: Vec<_> = (0..count).map(packet).collect();
    let send = || {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).expect("a raw socket");
        let to = SocketAddr::new(target.ip(), 0).into();
        for burst in packets.chunks(32) {
            burst.iter().for_each(|packet| assert!(socket.send_to(packet, &to).is_ok(), "sent"));
            // Spares the queues: a lost datagram proves nothing.
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    cluster.host(from).pod().run(send).expect("the pod");
    let mut report = Damaged { sent: count as u64, arrived: 0, changed: 0 };
    let mut buffer = [0; 2048];
    while let Ok(length) = receiver.recv(&mut buffer) {
        let number = u32::from_be_bytes(buffer[..4].try_into().expect("four bytes")) as usize;
        report.arrived += 1;
        report.changed += u64::from(buffer[..length] != payload(number));
    }
    report
}
