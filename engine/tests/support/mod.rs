//! A `udp` tunnel with one peer, and packets for it.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

use std::net::{Ipv4Addr, SocketAddr};

use path::{Fib, FibBuilder, Format, PeerSpec};
use wire::{ipv4, udp};

/// The overlay's MTU.
pub(crate) const MTU: u16 = 1472;
/// The tunnel's address.
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The address of a pod behind the peer.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// Builds a packet of one flow.
pub(crate) fn packet(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut bytes = vec![0x5a; 20 + 8 + 32];
    let ip = ipv4::Header {
        header_len: 20,
        tos: 0,
        total_len: bytes.len() as u16,
        id: 1,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: 17,
        checksum: 0,
        src: src.0,
        dst: dst.0,
    };
    ip.emit(&mut bytes).unwrap();
    // IPv4 allows UDP without a checksum (RFC 768).
    udp::Header { src_port: src.1, dst_port: dst.1, len: 40, checksum: 0 }.emit(&mut bytes[20..]).unwrap();
    bytes
}

/// Builds the table of a `udp` tunnel with one peer.
pub(crate) fn table(remote: SocketAddr) -> Fib {
    let mut builder = FibBuilder::new(Format::Udp);
    builder.add("198.18.1.0/24".parse().unwrap(), PeerSpec { remote, mac: None, mtu: MTU }).unwrap();
    builder.build().unwrap()
}
