//! Packets captured from a kernel: parsing returns the values sent, and writing reproduces the bytes.
// Clippy exempts test functions but not their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::addr::{Mac, Vni};
use wire::checksum::{Sum, pseudo_v4, pseudo_v6};
use wire::icmp::{self, V4Error, V6Error};
use wire::virtio::Gso;
use wire::{Malformed, ethernet, ipv4, ipv6, tcp, udp, virtio, vxlan};

const HOST_4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER_4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
const ROUTER_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
const HOST_MAC: Mac = Mac::new([0x0e, 0, 0, 0, 0, 1]);
const ROUTER_MAC: Mac = Mac::new([0x0e, 0, 0, 0, 0, 2]);
const HOST_VTEP: Mac = Mac::new([0x0e, 0x2a, 0, 0, 0, 1]);
const ROUTER_VTEP: Mac = Mac::new([0x0e, 0x2a, 0, 0, 0, 2]);

#[test]
fn vxlan_over_v4() {
    let bytes = load("vxlan_v4_echo");
    let payload = from_host(&bytes, ethernet::IPV4);
    let (outer, payload) = v4(payload);
    assert_eq!((outer.src, outer.dst, outer.protocol), (HOST_4, ROUTER_4, udp::PROTOCOL));
    assert_eq!((outer.tos, outer.ttl, outer.dont_fragment), (0, 64, false), "the kernel's defaults");
    let (datagram, payload) = udp_v4(&outer, payload);
    assert_eq!(datagram.dst_port, 8472);
    let (header, payload) = tunnel(payload, false);
    assert_eq!(header, vxlan::Header { vni: Vni::new(1).unwrap(), policy: None });

    let (frame, payload) = ether(payload);
    assert_eq!(frame, ethernet::Header { dst: ROUTER_VTEP, src: HOST_VTEP, ethertype: ethernet::IPV4 });
    let (inner, payload) = v4(payload);
    assert_eq!((inner.src, inner.dst), (Ipv4Addr::new(10, 244, 1, 0), Ipv4Addr::new(10, 244, 2, 0)));
    assert_eq!((inner.total_len, inner.protocol, inner.ttl), (52, icmp::V4_PROTOCOL, 64));
    assert_eq!(payload[0], 8, "echo request");
    assert_eq!(Sum::of(payload).finish(), 0);
}

#[test]
fn vxlan_over_v6() {
    let bytes = load("vxlan_v6_echo");
    let payload = from_host(&bytes, ethernet::IPV6);
    let (outer, payload) = v6(payload);
    assert_eq!((outer.src, outer.dst, outer.next_header), (HOST_6, ROUTER_6, udp::PROTOCOL));
    assert_eq!((outer.flow_label, outer.hop_limit), (0, 64));
    let (datagram, payload) = udp_v6(&outer, payload);
    assert_eq!(datagram.dst_port, 8472);
    let (header, payload) = tunnel(payload, true);
    assert_eq!(header, vxlan::Header { vni: Vni::new(1).unwrap(), policy: None });

    let (frame, payload) = ether(payload);
    assert_eq!(frame, ethernet::Header { dst: ROUTER_VTEP, src: HOST_VTEP, ethertype: ethernet::IPV6 });
    let (inner, echo) = v6(payload);
    assert_eq!(inner.src, Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0));
    let expected = ipv6::Transport { protocol: icmp::V6_PROTOCOL, offset: ipv6::HEADER_LEN, fragment: None };
    assert_eq!(ipv6::transport(payload), Ok(expected));
    assert_eq!(echo[0], 128, "echo request");
    let pseudo = pseudo_v6(inner.src, inner.dst, icmp::V6_PROTOCOL, echo.len() as u32);
    assert_eq!(pseudo.add(echo).finish(), 0);
}

#[test]
fn vxlan_with_group_policy() {
    let bytes = load("vxlan_gbp_udp");
    let (outer, payload) = v4(from_host(&bytes, ethernet::IPV4));
    let (_, payload) = udp_v4(&outer, payload);
    assert_eq!(vxlan::Header::parse(payload, false), Err(Malformed::Reserved), "without gbp");
    let (header, payload) = tunnel(payload, true);
    assert_eq!(header, vxlan::Header { vni: Vni::new(0x1234).unwrap(), policy: Some(0x1234) });
    let (_, payload) = ether(payload);
    let (inner, payload) = v4(payload);
    let (datagram, payload) = udp_v4(&inner, payload);
    assert_eq!(datagram.dst_port, 9);
    assert_eq!(payload, b"policy");
}

#[test]
fn tcp_syn() {
    let bytes = load("tcp_v4_syn");
    let (ip, segment) = v4(from_host(&bytes, ethernet::IPV4));
    assert!(ip.dont_fragment && !ip.is_fragment());
    let header = syn(segment);
    assert_eq!((header.src_port, header.dst_port, header.window), (0xa134, 80, 0xfaf0));
    let pseudo = pseudo_v4(ip.src, ip.dst, tcp::PROTOCOL, segment.len() as u32);
    assert_eq!(pseudo.add(segment).finish(), 0);

    let bytes = load("tcp_v6_syn");
    let (ip, segment) = v6(from_host(&bytes, ethernet::IPV6));
    assert_eq!(ip.flow_label, 0x01af8);
    let header = syn(segment);
    assert_eq!((header.src_port, header.dst_port, header.window), (0xac66, 80, 0xfd20));
    let pseudo = pseudo_v6(ip.src, ip.dst, tcp::PROTOCOL, segment.len() as u32);
    assert_eq!(pseudo.add(segment).finish(), 0);
}

#[test]
fn udp_with_an_odd_payload() {
    let bytes = load("udp_v4");
    let (ip, payload) = v4(from_host(&bytes, ethernet::IPV4));
    let (header, payload) = udp_v4(&ip, payload);
    assert_eq!((header.src_port, header.dst_port, header.len), (40000, 5353, 25));
    assert_eq!(payload, b"an odd payload!!!");

    let bytes = load("udp_v6");
    let (ip, payload) = v6(from_host(&bytes, ethernet::IPV6));
    let (header, payload) = udp_v6(&ip, payload);
    assert_eq!((header.src_port, header.dst_port, header.len), (40000, 5353, 25));
    assert_eq!(payload, b"an odd payload!!!");
}

#[test]
fn fragments() {
    let bytes = load("fragment_v4_last");
    let (ip, _) = v4(from_host(&bytes, ethernet::IPV4));
    assert!(ip.is_fragment() && !ip.more_fragments);
    assert_eq!((ip.fragment_offset, ip.id), (1480 / 8, 0xf831));

    let bytes = load("fragment_v6_last");
    let packet = from_host(&bytes, ethernet::IPV6);
    let (ip, _) = v6(packet);
    assert_eq!(ip.next_header, 44);
    let fragment = ipv6::Fragment { offset: 1448 / 8, more: false, id: 0xd27f_9812 };
    let expected = ipv6::Transport { protocol: icmp::V6_PROTOCOL, offset: 48, fragment: Some(fragment) };
    assert_eq!(ipv6::transport(packet), Ok(expected));
}

#[test]
fn v4_errors_have_the_kernels_bytes() {
    same_error_v4("icmp_v4_too_big", V4Error::TooBig { mtu: 600 });
    same_error_v4("icmp_v4_time_exceeded", V4Error::TimeExceeded);
}

#[test]
fn v6_errors_have_the_kernels_bytes() {
    let (offender, answer) = (load("icmp_v6_too_big_offender"), load("icmp_v6_too_big"));
    let (theirs, their_message) = v6(&answer[ethernet::HEADER_LEN..]);
    let mut out = [0; icmp::V6_MAX_LEN];
    let kind = V6Error::TooBig { mtu: 1280 };
    let len = icmp::v6_error(&mut out, ROUTER_6, kind, 64, &offender[ethernet::HEADER_LEN..]);
    let (ours, our_message) = v6(&out[..len]);
    // The kernel generates a flow label.
    assert_eq!(ours, ipv6::Header { flow_label: 0, ..theirs });
    assert_eq!(our_message, their_message);
}

#[test]
#[cfg(target_endian = "little")]
fn virtio_headers() {
    let bytes = load("virtio_uso_v4");
    let (header, packet) = vnet(&bytes);
    assert_eq!((header.flags, header.gso, header.ecn), (virtio::NEEDS_CSUM, Gso::UdpL4, false));
    assert_eq!((header.hdr_len, header.gso_size), (28, 100));
    assert_eq!((header.csum_start, header.csum_offset), (20, udp::CHECKSUM_OFFSET as u16));
    let (ip, datagram) = v4(packet);
    let udp = udp::Header::parse(datagram).unwrap();
    assert_eq!((udp.len, ip.total_len), (258, 278));
    let pseudo = pseudo_v4(ip.src, ip.dst, udp::PROTOCOL, datagram.len() as u32);
    assert_eq!(udp.checksum, pseudo.fold(), "left to be completed");

    let bytes = load("virtio_tso_v4");
    let (header, packet) = vnet(&bytes);
    assert_eq!((header.flags, header.gso, header.gso_size), (virtio::NEEDS_CSUM, Gso::Tcp4, 536));
    assert_eq!((header.csum_start, header.csum_offset), (20, tcp::CHECKSUM_OFFSET as u16));
    let (ip, segment) = v4(packet);
    let tcp = tcp::Header::parse(segment).unwrap();
    assert_eq!(segment.len() - tcp.header_len, 1400);
    assert_eq!(tcp.flags, tcp::PSH | tcp::ACK);
    let pseudo = pseudo_v4(ip.src, ip.dst, tcp::PROTOCOL, segment.len() as u32);
    assert_eq!(tcp.checksum, pseudo.fold());

    let bytes = load("virtio_csum_v6");
    let (header, packet) = vnet(&bytes);
    assert_eq!((header.flags, header.gso), (virtio::NEEDS_CSUM, Gso::None));
    assert_eq!((header.csum_start, header.csum_offset), (40, tcp::CHECKSUM_OFFSET as u16));
    let (ip, segment) = v6(packet);
    let pseudo = pseudo_v6(ip.src, ip.dst, tcp::PROTOCOL, segment.len() as u32);
    assert_eq!(syn(segment).checksum, pseudo.fold());
}

/// Loads the bytes of one fixture.
fn load(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {path}: {e}"));
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!digits.is_empty() && digits.is_ascii());
    let pair = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// Returns the payload of a frame that the host sent to the router.
fn from_host(bytes: &[u8], ethertype: u16) -> &[u8] {
    let (header, payload) = ether(bytes);
    assert_eq!(header, ethernet::Header { dst: ROUTER_MAC, src: HOST_MAC, ethertype });
    payload
}

fn ether(bytes: &[u8]) -> (ethernet::Header, &[u8]) {
    let header = ethernet::Header::parse(bytes).unwrap();
    let mut out = [0xee; ethernet::HEADER_LEN];
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes[..ethernet::HEADER_LEN]);
    (header, &bytes[ethernet::HEADER_LEN..])
}

fn v4(bytes: &[u8]) -> (ipv4::Header, &[u8]) {
    let header = ipv4::Header::parse(bytes).unwrap();
    assert!(ipv4::checksum_is_valid(&bytes[..header.header_len]));
    let mut out = [0xee; ipv4::MIN_HEADER_LEN];
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes[..ipv4::MIN_HEADER_LEN]);
    (header, &bytes[header.header_len..usize::from(header.total_len)])
}

fn v6(bytes: &[u8]) -> (ipv6::Header, &[u8]) {
    let header = ipv6::Header::parse(bytes).unwrap();
    let mut out = [0xee; ipv6::HEADER_LEN];
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes[..ipv6::HEADER_LEN]);
    (header, &bytes[ipv6::HEADER_LEN..][..usize::from(header.payload_len)])
}

fn udp_v4<'a>(ip: &ipv4::Header, bytes: &'a [u8]) -> (udp::Header, &'a [u8]) {
    udp_with(pseudo_v4(ip.src, ip.dst, udp::PROTOCOL, bytes.len() as u32), bytes)
}

fn udp_v6<'a>(ip: &ipv6::Header, bytes: &'a [u8]) -> (udp::Header, &'a [u8]) {
    udp_with(pseudo_v6(ip.src, ip.dst, udp::PROTOCOL, bytes.len() as u32), bytes)
}

fn udp_with(pseudo: Sum, bytes: &[u8]) -> (udp::Header, &[u8]) {
    let header = udp::Header::parse(bytes).unwrap();
    assert_eq!(usize::from(header.len), bytes.len());
    assert_ne!(header.checksum, 0);
    assert_eq!(pseudo.add(bytes).finish(), 0);
    let mut out = [0xee; udp::HEADER_LEN];
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes[..udp::HEADER_LEN]);
    (header, &bytes[udp::HEADER_LEN..])
}

fn tunnel(bytes: &[u8], gbp: bool) -> (vxlan::Header, &[u8]) {
    let header = vxlan::Header::parse(bytes, gbp).unwrap();
    let mut out = [0xee; vxlan::HEADER_LEN];
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes[..vxlan::HEADER_LEN]);
    (header, &bytes[vxlan::HEADER_LEN..])
}

fn syn(segment: &[u8]) -> tcp::Header {
    let header = tcp::Header::parse(segment).unwrap();
    assert_eq!((header.flags, header.ack, header.urgent), (tcp::SYN, 0, 0));
    assert_eq!((header.header_len, segment.len()), (40, 40));
    let mut out = segment.to_vec();
    out[..tcp::MIN_HEADER_LEN].fill(0xee);
    header.emit(&mut out).unwrap();
    assert_eq!(out, segment);
    header
}

fn vnet(bytes: &[u8]) -> (virtio::Header, &[u8]) {
    let header = virtio::Header::parse(bytes).unwrap();
    let mut out = [0xee; virtio::HEADER_LEN];
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes[..virtio::HEADER_LEN]);
    (header, &bytes[virtio::HEADER_LEN..])
}

/// Checks that the error built for a captured offender equals the captured error.
fn same_error_v4(name: &str, kind: V4Error) {
    let (offender, answer) = (load(&format!("{name}_offender")), load(name));
    let (theirs, their_message) = v4(&answer[ethernet::HEADER_LEN..]);
    let mut out = [0; icmp::V4_MAX_LEN];
    let offender = &offender[ethernet::HEADER_LEN..];
    let len = icmp::v4_error(&mut out, ROUTER_4, kind, 64, offender, usize::MAX);
    let (ours, our_message) = v4(&out[..len]);
    // The kernel sets an identification and leaves DF clear.
    let expected = ipv4::Header { id: 0, dont_fragment: true, checksum: ours.checksum, ..theirs };
    assert_eq!(ours, expected, "{name}");
    assert_eq!(our_message, their_message, "{name}");
}
