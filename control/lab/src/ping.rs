//! ICMP echo from inside a namespace, without the `ping` program.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, Namespace};

/// Length of type, code, checksum, identifier and sequence number (RFC 792, RFC 4443).
const HEADER_LEN: usize = 8;
const V4_REQUEST: u8 = 8;
const V4_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_TIME_EXCEEDED: u8 = 11;
const V6_REQUEST: u8 = 128;
const V6_REPLY: u8 = 129;

/// The first type that is not an error; lower types are (RFC 4443 section 2.1).
const V6_FIRST_QUERY: u8 = 128;

/// The next echo identifier; distinct ones keep parallel pings in one namespace apart.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

impl Namespace {
    /// Sends one echo request with `payload` bytes and waits at most `limit` for the reply. Returns the
    /// round-trip time; an ICMP error becomes part of the error.
    pub fn ping(&self, to: IpAddr, payload: usize, limit: Duration) -> Result<Duration, Error> {
        let tried = format!("ping {to} from {}", self.name());
        self.run(|| echo(to, payload, limit))?.map_err(|error| match error {
            Failure::System(error) => Error::system(tried, error),
            Failure::Timeout => Error::new(tried, format!("no reply within {} ms", limit.as_millis())),
            Failure::Icmp { from, kind, code } => {
                Error::new(tried, format!("{from} replied with ICMP type {kind} code {code}"))
            }
        })
    }
}

enum Failure {
    System(std::io::Error),
    Timeout,
    Icmp { from: IpAddr, kind: u8, code: u8 },
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::System(error)
    }
}

fn echo(to: IpAddr, payload: usize, limit: Duration) -> Result<Duration, Failure> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let request = request(to, id, payload);
    let begin = Instant::now();
    socket.send_to(&request, &SocketAddr::new(to, 0).into())?;
    let mut buffer = vec![0u8; usize::from(u16::MAX)];
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(Failure::Timeout);
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => continue,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        };
        match verdict(to, &request, &buffer[..length]) {
            Some(Ok(())) => return Ok(begin.elapsed()),
            Some(Err(failure)) => return Err(failure),
            None => {}
        }
    }
}

fn request(to: IpAddr, id: u16, payload: usize) -> Vec<u8> {
    let kind = if to.is_ipv4() { V4_REQUEST } else { V6_REQUEST };
    let [high, low] = id.to_be_bytes();
    let mut message = vec![kind, 0, 0, 0, high, low, 0, 1];
    message.extend((0..payload).map(|index| index as u8));
    // The kernel fills in ICMPv6 checksums (RFC 3542 section 3.1).
    if to.is_ipv4() {
        let checksum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
    }
    message
}

/// Evaluates a received packet; `None` if it does not concern our request.
fn verdict(to: IpAddr, request: &[u8], packet: &[u8]) -> Option<Result<(), Failure>> {
    // A raw IPv4 socket includes the IP header, an IPv6 one does not.
    let (from, message) = if to.is_ipv4() {
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
        (IpAddr::from(source), packet.get(header_len..)?)
    } else {
        (to, packet)
    };
    let (&kind, &code) = (message.first()?, message.get(1)?);
    match (to, kind) {
        (IpAddr::V4(_), V4_REPLY) | (IpAddr::V6(_), V6_REPLY) => {
            let same = message.get(4..) == request.get(4..);
            (same && from == to).then_some(Ok(()))
        }
        (IpAddr::V4(_), V4_UNREACHABLE | V4_TIME_EXCEEDED) => {
            let quoted = message.get(HEADER_LEN..)?;
            let inner = quoted.get(usize::from(quoted.first()? & 0x0f) * 4..)?;
            let ours = inner.get(..HEADER_LEN) == request.get(..HEADER_LEN);
            ours.then_some(Err(Failure::Icmp { from, kind, code }))
        }
        (IpAddr::V6(_), kind) if kind < V6_FIRST_QUERY => {
            // The error quotes our IPv6 header, then our message with the kernel's checksum.
            let inner = message.get(HEADER_LEN + 40..)?;
            let ours = inner.first() == request.first() && inner.get(4..8) == request.get(4..8);
            ours.then_some(Err(Failure::Icmp { from, kind, code }))
        }
        _ => None,
    }
}

/// Computes the Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_does_not_concern_the_request() {
        let to = IpAddr::from([10, 0, 0, 1]);
        let sent = request(to, 7, 8);
        for length in 0..64 {
            assert!(verdict(to, &sent, &vec![0xff; length]).is_none());
            assert!(verdict("fd00::1".parse().unwrap(), &sent, &vec![0x00; length]).is_none());
        }
    }

    #[test]
    fn a_request_sums_to_zero() {
        assert_eq!(checksum(&request(IpAddr::from([10, 0, 0, 1]), 0x1234, 33)), 0);
    }
}
