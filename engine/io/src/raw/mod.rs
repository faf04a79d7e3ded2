//! A worker's raw IPv4 socket: whole packets of one IP protocol, their IP headers included both ways.
//!
//! Every raw socket gets a copy of every packet: there is no group that shares them. So each worker's socket
//! has a filter that keeps the flows of its share, see [`share`]. That a socket is open at all also keeps the
//! kernel from answering with "protocol unreachable" (net/ipv4/ip_input.c, ip_protocol_deliver_rcu), whatever
//! the filter says.
//!
//! The kernel hands over packets after putting fragments together, and, where a device joined segments of one
//! flow, those too in one piece.

mod share;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::udp::{self, Features, receive, transmit};
use crate::wait::Waiter;
use crate::{Error, PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay, sys};

/// Sockets that share the packets at most. Each packet is offered to all of them, so more workers than this
/// only send.
pub const MAX_RECEIVERS: usize = 8;

/// What to open.
#[derive(Clone, Debug)]
pub struct RawConfig {
    /// The IP protocol.
    pub protocol: u8,
    /// The address at which packets arrive.
    pub local: Ipv4Addr,
    /// What one receive call may bring: up to [`udp::MAX_SLOTS`] slots. What a device joined needs one of 64 KiB.
    pub shape: Shape,
    /// Whether to move several packets per call (sendmmsg, recvmmsg).
    pub mmsg: bool,
    /// Bytes of each socket's receive buffer; 0 keeps the system's default.
    pub receive_buffer: usize,
    /// Bytes of each socket's send buffer; 0 keeps the system's default.
    pub send_buffer: usize,
}

/// One worker's socket: its [`Underlay`].
///
/// What it receives and sends begins with the outer IP header. Of the one to be sent the kernel fills in
/// length, checksum, and an id of 0; the address of a [`Transmit`] only chooses the route.
#[derive(Debug)]
pub struct RawPort {
    socket: Socket,
    receiver: receive::Receiver,
    sender: transmit::Sender,
    shape: Shape,
    notes: Vec<String>,
    counters: PortCounters,
}

/// Opens `queues` ports (0 counts as 1), one per worker, that share the packets by the flows inside them.
pub fn open(config: &RawConfig, queues: usize) -> Result<Vec<RawPort>, Error> {
    let queues = queues.max(1);
    (0..queues).map(|index| RawPort::open(config, index, queues)).collect()
}

impl RawPort {
    fn open(config: &RawConfig, index: usize, queues: usize) -> Result<RawPort, Error> {
        let RawConfig { protocol, local, .. } = *config;
        let make = || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = make().map_err(|cause: io::Error| {
            let advice = match cause.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "run as root or grant CAP_NET_RAW",
                Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files",
                _ => "",
            };
            Error::new(format!("making a raw socket for IP protocol {protocol}"), cause).advise(advice)
        })?;
        let doing = |what: &str| format!("setting {what} on the raw socket at {local}");
        // The filter comes before the address: an unbound socket would queue what is not its share.
        match share::program(index, queues.min(MAX_RECEIVERS)) {
            Some(mut program) => sys::attach_filter(socket.as_fd(), &mut program),
            None => sys::attach_drop_all(socket.as_fd()),
        }
        .map_err(|e| Error::new(doing("the filter"), e))?;
        for (option, what) in [(libc::IP_HDRINCL, "IP_HDRINCL"), (libc::IP_RECVTOS, "ECN reporting")] {
            sys::set_option(socket.as_fd(), libc::IPPROTO_IP, option, 1)
                .map_err(|e| Error::new(doing(what), e))?;
        }
        let mut notes = Vec::new();
        udp::size_buffers(&socket, config.receive_buffer, config.send_buffer, &mut notes);
        socket.bind(&SocketAddr::new(IpAddr::V4(local), 0).into()).map_err(|cause| {
            let advice = match cause.raw_os_error() {
                Some(libc::EADDRNOTAVAIL) => "no interface here has this address",
                _ => "",
            };
            Error::new(format!("binding a raw socket to {local}"), cause).advise(advice)
        })?;
        Ok(RawPort {
            receiver: receive::Receiver::new(config.mmsg),
            sender: transmit::Sender::new(false, config.mmsg, false),
            shape: config.shape,
            socket,
            notes,
            counters: PortCounters::default(),
        })
    }

    /// The features in use now.
    pub fn features(&self) -> Features {
        Features { segment: false, gro: false, mmsg: self.receiver.mmsg() && self.sender.mmsg() }
    }

    /// What was asked for and not granted, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl Underlay for RawPort {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()> {
        out.clear();
        self.receiver.receive(self.socket.as_fd(), arena, at, self.shape, out, &mut self.counters)
    }

    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        let sockets = std::slice::from_ref(&self.socket);
        self.sender.transmit(sockets, arena, spans, batch, &mut self.counters)
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        waiter.register(self.socket.as_fd(), token)
    }
}

#[cfg(test)]
mod tests;
