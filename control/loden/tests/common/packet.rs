//! Packets built by hand, on purpose without the parsers and emitters under test.

use std::net::IpAddr;

/// Protocol numbers.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Builds a UDP packet with correct checksums, for IPv4 with DF set.
pub fn udp(source: IpAddr, target: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut datagram = Vec::from(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let check = transport_sum(source, target, UDP, &datagram);
    // RFC 768: a sum of zero is sent as all ones.
    let check = if check == 0 { 0xffff } else { check };
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
    ip(source, target, UDP, &datagram)
}

/// Builds a TCP segment without options, with the flags ACK and PSH and correct checksums.
pub fn tcp(source: IpAddr, target: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::from(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    // Sequence, acknowledgement, five words of header with ACK and PSH, window, checksum, urgent.
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let check = transport_sum(source, target, TCP, &segment);
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    ip(source, target, TCP, &segment)
}

/// Builds an IP packet around a transport payload, for IPv4 with DF set.
pub fn ip(source: IpAddr, target: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let mut packet = vec![0x45, 0];
            packet.extend((20 + transport.len() as u16).to_be_bytes());
            packet.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(target.octets());
            fill_ipv4_checksum(&mut packet);
            packet.extend(transport);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(target.octets());
            packet.extend(transport);
            packet
        }
        _ => panic!("{source} and {target} are of two families"),
    }
}

/// Fills in the checksum of an IPv4 header, whatever its length field says.
pub fn fill_ipv4_checksum(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let check = !sum(0, &packet[..length]);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
}

/// Builds the payload of a VXLAN datagram: header, Ethernet header, packet (RFC 7348 section 5).
pub fn vxlan(vni: u32, target: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(target);
    bytes.extend(source);
    let ethertype: u16 = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(packet);
    bytes
}

/// Returns the checksum field of a UDP packet whose checksum the sender leaves to the hardware: the sum of
/// the pseudo header. `length` covers header and payload.
pub fn open_checksum(source: IpAddr, target: IpAddr, length: u16) -> u16 {
    sum(0, &pseudo_header(source, target, UDP, length.into()))
}

/// Returns whether the checksum of a UDP datagram between these addresses is correct.
pub fn is_summed(source: &[u8], target: &[u8], datagram: &[u8]) -> bool {
    let mut pseudo = [source, target].concat();
    pseudo.extend((datagram.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, UDP]);
    sum(sum(0, &pseudo).into(), datagram) == 0xffff
}

/// Returns the checksum over pseudo header and transport bytes, whose own checksum field is zero.
pub fn transport_sum(source: IpAddr, target: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let pseudo = pseudo_header(source, target, protocol, bytes.len() as u32);
    !sum(sum(0, &pseudo).into(), bytes)
}

/// RFC 8200 section 8.1; the sum of RFC 768's and RFC 9293's for IPv4 is the same.
fn pseudo_header(source: IpAddr, target: IpAddr, protocol: u8, length: u32) -> Vec<u8> {
    let mut pseudo = Vec::new();
    for address in [source, target] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo
}

/// RFC 1071.
fn sum(start: u32, bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = pairs.fold(start, |sum, pair| sum + pair);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
