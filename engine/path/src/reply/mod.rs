//! ICMP errors to pods.

mod limit;

use wire::icmp::{self, V4Error, V6Error};

pub use self::limit::Limiter;
use crate::fib::Fib;

/// Buffer size for a reply: a virtio header and the largest ICMP error (576 bytes, RFC 1812 section 4.3.2.3;
/// 1280 for IPv6, RFC 4443 section 2.4).
pub const ROOM: usize = 1280 + wire::virtio::HEADER_LEN;
/// Bytes of the offending packet that fit into an error of 576 bytes (RFC 1812 section 4.3.2.3).
const QUOTE: usize = 548;
/// The time to live of flannel's udp proxy.
const TTL: u8 = 8;

/// The kind of ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// No peer owns the destination.
    NoRoute,
    /// The packet exceeds this MTU.
    TooBig(u16),
    /// The time to live or hop limit has expired.
    TimeExceeded,
}

/// Writes an ICMP error to `out` and returns its length. Returns 0 if no error may be sent about the
/// offending packet, or if this node has no address of its family.
pub fn build(out: &mut [u8], complaint: Complaint, fib: &Fib, offender: &[u8]) -> usize {
    match offender.first().map(|byte| byte >> 4) {
        Some(4) => {
            let kind = match complaint {
                Complaint::NoRoute => V4Error::NetUnreachable,
                Complaint::TooBig(mtu) => V4Error::TooBig { mtu },
                Complaint::TimeExceeded => V4Error::TimeExceeded,
            };
            // flannel replies from the device's own address, which the kernel drops as martian: a local
            // source that arrives from outside (net/ipv4/fib_frontend.c, fib_validate_source). The
            // offending packet's destination is accepted, because the route to it leads to this device.
            let destination = wire::ipv4::Header::parse(offender).map(|header| header.dst);
            let from = destination.ok().filter(|_| fib.reply_v4().is_some());
            from.map_or(0, |from| icmp::v4_error(out, from, kind, TTL, offender, QUOTE))
        }
        Some(6) => {
            let kind = match complaint {
                Complaint::NoRoute => V6Error::NoRoute,
                Complaint::TooBig(mtu) => V6Error::TooBig { mtu: u32::from(mtu) },
                Complaint::TimeExceeded => V6Error::TimeExceeded,
            };
            fib.reply_v6().map_or(0, |from| icmp::v6_error(out, from, kind, TTL, offender))
        }
        _ => 0,
    }
}
