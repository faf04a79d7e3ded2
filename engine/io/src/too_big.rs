//! The ICMP messages that announce a path MTU: "fragmentation needed" (RFC 1191) and "packet too big" (RFC
//! 4443 section 3.2).
//!
//! A raw socket sees every such message that this host receives, whichever socket it concerns. The kernel
//! checks little of what a message quotes, so the caller must judge it.

use std::io::{self, Read};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::wait::Waiter;
use crate::{Error, sys};

/// Longest message: an IPv4 header and a whole packet of the IPv6 minimum MTU. Longer ones are truncated.
pub const ROOM: usize = 2048;

/// Receive buffer in bytes: what arrives during a short pause of the reader, even in a flood.
const BUFFER: usize = 200 << 10;

// linux/bpf_common.h
const LDX_HEADER_LEN: u16 = 0xb1;
const LD_H_ABS: u16 = 0x28;
const LD_H_IND: u16 = 0x48;
const JEQ_K: u16 = 0x15;
const RET_K: u16 = 0x06;

/// A socket for the messages of one address family.
#[derive(Debug)]
pub struct TooBigSocket {
    socket: Socket,
    ipv6: bool,
}

impl TooBigSocket {
    /// Opens a socket. Needs CAP_NET_RAW.
    pub fn open(ipv6: bool) -> Result<TooBigSocket, Error> {
        let (domain, protocol) =
            if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let make = || {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            sys::attach_filter(socket.as_fd(), &mut program(ipv6))?;
            socket.set_recv_buffer_size(BUFFER)?;
            Ok(socket)
        };
        let socket = make().map_err(|cause: io::Error| {
            let advice = match cause.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "run as root or grant CAP_NET_RAW",
                _ => "",
            };
            Error::new("opening a socket for ICMP messages about path MTUs", cause).advise(advice)
        })?;
        Ok(TooBigSocket { socket, ipv6 })
    }

    /// Whether the messages are ICMPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Receives a message and returns its length. An ICMP message begins with its IPv4 header, an ICMPv6
    /// message does not. Fails with `WouldBlock` if there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(buffer)
    }

    /// Makes `waiter` report `token` when there may be a message; see [`crate::Overlay::register`].
    pub fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        waiter.register(self.socket.as_fd(), token)
    }
}

/// Returns a filter that keeps only the wanted type and code, so that other messages wake nobody.
fn program(ipv6: bool) -> Vec<libc::sock_filter> {
    let one = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let unless = |k| libc::sock_filter { code: JEQ_K, jt: 0, jf: 1, k };
    let mut program = match ipv6 {
        false => vec![one(LDX_HEADER_LEN, 0), one(LD_H_IND, 0), unless(0x0304)],
        true => vec![one(LD_H_ABS, 0), unless(0x0200)],
    };
    program.extend([one(RET_K, u32::MAX), one(RET_K, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::scratch;

    #[test]
    fn only_messages_about_sizes_are_received() {
        scratch::run(|| {
            for (ipv6, loopback, kinds) in [
                (false, "127.0.0.1:0", [(3, 4), (3, 3), (0, 0), (11, 0)]),
                (true, "[::1]:0", [(2, 0), (1, 4), (129, 0), (3, 0)]),
            ] {
                let to: SocketAddr = loopback.parse().unwrap();
                if UdpSocket::bind(to).is_err() {
                    continue;
                }
                let socket = TooBigSocket::open(ipv6).unwrap();
                let (domain, protocol) =
                    if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
                let sender = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
                let mut waiter = Waiter::new().unwrap();
                socket.register(&mut waiter, 0).unwrap();
                for (kind, code) in kinds.into_iter().rev() {
                    sender.send_to(&[kind, code, 0, 0, 0, 0, 5, 0, 9], &to.into()).unwrap();
                }
                assert!(waiter.wait(Some(Duration::from_secs(20))).unwrap().contains(0));
                let mut buffer = [0; ROOM];
                let len = socket.receive(&mut buffer).unwrap();
                let message = if ipv6 { &buffer[..len] } else { &buffer[20..len] };
                assert_eq!((message[0], message[1]), kinds[0]);
                assert_eq!(socket.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        });
    }
}
