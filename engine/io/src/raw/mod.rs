//! A worker's raw IPv4 socket, which sends and receives whole packets of one IP protocol, IP header included.
//!
//! Every raw socket gets a copy of every packet: raw sockets have no SO_REUSEPORT group. Each worker's socket
//! therefore has a filter that keeps its share of the flows, see [`share`]. An open socket also stops the
//! kernel from replying "protocol unreachable" (net/ipv4/ip_input.c, ip_protocol_deliver_rcu), whatever its
//! filter drops.
//!
//! The kernel delivers packets reassembled from their fragments. Segments of one flow that a device has
//! joined arrive as one packet.

mod share;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::overflow::Overflow;
use crate::udp::{self, Features, receive, transmit};
use crate::wait::Waiter;
use crate::{Error, PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay, sys};

/// The maximum number of sockets that receive. Each packet is offered to all of them, so workers beyond this
/// number only send.
pub const MAX_RECEIVERS: usize = 8;

/// How to open the sockets.
#[derive(Clone, Debug)]
pub struct RawConfig {
    /// The IP protocol.
    pub protocol: u8,
    /// The local address that packets are sent to.
    pub local: Ipv4Addr,
    /// The slots of one receive call, up to [`udp::MAX_SLOTS`]. A packet that a device joined needs 64 KiB.
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
/// Packets begin with the outer IP header in both directions. When sending, the kernel fills in the length,
/// the checksum, and the id if it is 0; the address of a [`Transmit`] only selects the route.
#[derive(Debug)]
pub struct RawPort {
    socket: Socket,
    receiver: receive::Receiver,
    sender: transmit::Sender,
    shape: Shape,
    notes: Vec<String>,
    counters: PortCounters,
}

/// Opens `queues` ports (0 counts as 1), one per worker, and divides the inner flows among them.
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
                Some(libc::EMFILE | libc::ENFILE) => crate::files::ADVICE,
                _ => "",
            };
            Error::new(format!("creating a raw socket for IP protocol {protocol}"), cause).advise(advice)
        })?;
        let doing = |what: &str| format!("setting {what} on the raw socket at {local}");
        // The filter comes before the address: an unbound socket would queue packets outside its share.
        match share::program(index, queues.min(MAX_RECEIVERS)) {
            Some(mut program) => sys::attach_filter(socket.as_fd(), &mut program),
            None => sys::attach_drop_all(socket.as_fd()),
        }
        .map_err(|e| Error::new(doing("the filter"), e))?;
        for (option, what) in [(libc::IP_HDRINCL, "IP_HDRINCL"), (libc::IP_RECVTOS, "ECN reporting")] {
            sys::set_option(socket.as_fd(), libc::IPPROTO_IP, option, 1)
                .map_err(|e| Error::new(doing(what), e))?;
        }
        // OMIT (Linux 3.15) and PROBE only compare a packet with the device's MTU. By default the kernel also
        // obeys "fragmentation needed" messages, which anyone can forge.
        let discover =
            |value| sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value);
        discover(libc::IP_PMTUDISC_OMIT)
            .or_else(|_| discover(libc::IP_PMTUDISC_PROBE))
            .map_err(|e| Error::new(doing("IP_MTU_DISCOVER"), e))?;
        let mut notes = Vec::new();
        udp::size_buffers(&socket, config.receive_buffer, config.send_buffer, &mut notes);
        socket.bind(&SocketAddr::new(IpAddr::V4(local), 0).into()).map_err(|cause| {
            let advice = match cause.raw_os_error() {
                Some(libc::EADDRNOTAVAIL) => "no interface on this host has this address",
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

    /// Returns the features in use now.
    pub fn features(&self) -> Features {
        Features { segment: false, gro: false, mmsg: self.receiver.mmsg() && self.sender.mmsg() }
    }

    /// Returns a counter of what the socket's buffer has no room for.
    pub fn overflow(&self) -> Result<Overflow, Error> {
        let socket = self.socket.try_clone().map_err(|cause| Error::new("sharing a raw socket", cause))?;
        Ok(Overflow::new(vec![socket]))
    }

    /// Returns one sentence for each requested feature that was not granted.
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
