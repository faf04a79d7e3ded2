//! ICMP errors towards a pod.

use wire::icmp::{self, V4Error, V6Error};

use crate::fib::Fib;

/// Room for a reply: the largest ICMP error (576 bytes, RFC 1812 section 4.3.2.3; 1280 for IPv6, RFC 4443
/// section 2.4) behind a virtio header.
pub const ROOM: usize = 1280 + wire::virtio::HEADER_LEN;
/// As much of the offender as fits into 576 bytes (RFC 1812 section 4.3.2.3).
const QUOTE: usize = 548;
/// flannel's udp proxy answers with this time to live.
const TTL: u8 = 8;

/// What there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Nobody owns the destination.
    NoRoute,
    /// It must not exceed this many bytes.
    TooBig(u16),
    /// It has made too many hops.
    TimeExceeded,
}

/// Writes the error to `out` and returns its length; 0 when the offender must not be answered, or this node
/// has no address to answer from.
pub fn build(out: &mut [u8], complaint: Complaint, fib: &Fib, offender: &[u8]) -> usize {
    match offender.first().map(|byte| byte >> 4) {
        Some(4) => {
            let kind = match complaint {
                Complaint::NoRoute => V4Error::NetUnreachable,
                Complaint::TooBig(mtu) => V4Error::TooBig { mtu },
                Complaint::TimeExceeded => V4Error::TimeExceeded,
            };
            // flannel answers from the device's own address, and the kernel drops that as martian: the
            // source is local, yet arrives from outside (net/ipv4/fib_frontend.c, fib_validate_source).
            // The address that was asked for is believed, because the route to it leads to this device.
            let asked = wire::ipv4::Header::parse(offender).map(|header| header.dst);
            let from = asked.ok().filter(|_| fib.reply_v4().is_some());
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
