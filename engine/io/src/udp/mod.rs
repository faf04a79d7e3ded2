//! A worker's UDP sockets: one that listens, and a fan that sends.
//!
//! The listening sockets of all workers share one port (SO_REUSEPORT). The kernel distributes senders over
//! them and keeps each sender's flow on one socket. All workers share the fan. It sends each flow from the
//! source port of the flow's lane, as RFC 7348 section 5 recommends for VXLAN; its sockets drop everything
//! they receive.

mod address;
mod control;
mod group;
pub(crate) mod receive;
pub(crate) mod transmit;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use socket2::{Domain, Protocol, Socket, Type};

pub use self::group::{UdpGroup, open_groups};
use crate::overflow::Overflow;
use crate::wait::Waiter;
use crate::{Error, PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay, files, sys};

/// Maximum datagrams in one joined send: UDP_MAX_SEGMENTS (linux/udp.h), 64 until Linux 6.9.
pub const MAX_SEGMENTS: usize = 64;

/// Maximum payload bytes of one send, joined or not: 65,535 minus an IPv4 and a UDP header.
pub const MAX_PAYLOAD: usize = 65_507;

/// Maximum receive slots that one call fills.
pub const MAX_SLOTS: usize = receive::MAX_MESSAGES;

// linux/in6.h
const IPV6_AUTOFLOWLABEL: i32 = 70;

/// How to open the sockets.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// The address to listen on. An IPv6 socket is IPv6-only.
    pub listen: SocketAddr,
    /// The address to send from, with a separate port for each lane. `None`: all lanes send from the
    /// listening socket.
    pub send_from: Option<IpAddr>,
    /// Number of sending sockets, shared by all workers, if `send_from` is set; 0 counts as 1.
    pub fan: usize,
    /// The slots of one receive call, up to [`MAX_SLOTS`]. A run of joined datagrams needs 64 KiB.
    pub shape: Shape,
    /// Whether to send a run of datagrams in one call (UDP_SEGMENT).
    pub segment: bool,
    /// Whether to receive a run of datagrams joined (UDP_GRO).
    pub gro: bool,
    /// Whether to move several messages per call (sendmmsg, recvmmsg).
    pub mmsg: bool,
    /// Whether IPv6 sockets ignore the kernel's path MTUs, which anyone can forge. The caller must then learn
    /// them, see [`crate::too_big`].
    pub own_path_mtu: bool,
    /// Bytes of each listening socket's receive buffer; 0 keeps the system's default.
    pub receive_buffer: usize,
    /// Bytes of each socket's send buffer; 0 keeps the system's default.
    pub send_buffer: usize,
}

/// One worker's sockets: its [`Underlay`].
#[derive(Debug)]
pub struct UdpPort {
    listen: Socket,
    lanes: Vec<Socket>,
    receiver: receive::Receiver,
    sender: transmit::Sender,
    shape: Shape,
    ipv4: bool,
    gro: bool,
    own_path_mtu: bool,
    notes: Vec<String>,
    counters: PortCounters,
}

/// Sends single datagrams from a port's addresses, outside the worker that owns the port.
#[derive(Debug)]
pub struct Aside {
    /// One socket for each address family of the port, and whether it is IPv4.
    sockets: Vec<(bool, Socket)>,
}

impl Aside {
    /// Sends one datagram. If it cannot be sent immediately, it is lost, as on any network.
    pub fn send(&self, bytes: &[u8], to: SocketAddr) {
        let socket = self.sockets.iter().find(|(ipv4, _)| *ipv4 == to.is_ipv4());
        let _ = socket.map(|(_, socket)| socket.send_to(bytes, &to.into()));
    }
}

/// The IPv6 sockets of a tunnel that ignore the kernel's path MTUs. By default there are none.
#[derive(Debug, Default)]
pub struct PathMtuSockets(Vec<Socket>);

impl PathMtuSockets {
    /// Adds another port's sockets.
    pub fn join(&mut self, other: PathMtuSockets) {
        self.0.extend(other.0);
    }

    /// Makes all sockets follow the kernel's path MTUs, or ignore them again. While they follow, the kernel
    /// fragments what is sent singly to the path, and refuses what is joined with `EMSGSIZE`.
    pub fn follow(&self, follow: bool) {
        let value = if follow { libc::IPV6_PMTUDISC_DONT } else { libc::IPV6_PMTUDISC_OMIT };
        for socket in &self.0 {
            // The socket has already accepted both values, or it never ignores path MTUs.
            let _ = sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value);
        }
    }
}

/// The features that a port uses now. A feature that the kernel rejected in use is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// UDP_SEGMENT.
    pub segment: bool,
    /// UDP_GRO.
    pub gro: bool,
    /// sendmmsg and recvmmsg.
    pub mmsg: bool,
}

/// Opens `queues` ports (0 counts as 1) that share `config.listen`, one per worker.
///
/// Outer packets are sent without DF and with flow label 0, as by a kernel vxlan device. Fails if any other
/// socket has the port, even one that would share it.
pub fn open(config: &UdpConfig, queues: usize) -> Result<Vec<UdpPort>, Error> {
    let queues = queues.max(1);
    if let Some(from) = config.send_from
        && from.is_ipv4() != config.listen.is_ipv4()
    {
        let doing = format!("sending from {from} and listening on {}", config.listen);
        return Err(Error::new(doing, io::ErrorKind::InvalidInput.into())
            .advise("both addresses must have the same family"));
    }
    let mut listen = config.listen;
    let shared = queues > 1;
    if shared {
        // Two daemons could both bind a shared port, and each would get half of the packets. Binding a
        // socket without SO_REUSEPORT first detects the other daemon.
        let exclusive = socket(&listen)?;
        bind(&exclusive, &listen)?;
        listen = exclusive.local_addr().ok().and_then(|address| address.as_socket()).unwrap_or(listen);
    }
    let lanes = lanes(config)?;
    let mut ports = Vec::with_capacity(queues);
    for _ in 0..queues {
        let port = UdpPort::open(config, listen, shared, share(&lanes)?)?;
        // For port 0 the kernel chooses a port for the first socket; the others use the same one.
        listen = port.local_addr().unwrap_or(listen);
        ports.push(port);
    }
    Ok(ports)
}

impl UdpPort {
    fn open(
        config: &UdpConfig,
        address: SocketAddr,
        shared: bool,
        lanes: Vec<Socket>,
    ) -> Result<UdpPort, Error> {
        let mut notes = Vec::new();
        let listen = socket(&address)?;
        let doing = |what: &str| format!("setting {what} on the UDP socket for {address}");
        if shared {
            listen.set_reuse_port(true).map_err(|e| Error::new(doing("SO_REUSEPORT"), e))?;
        }
        set_outer_header(&listen, &address, config.own_path_mtu)
            .map_err(|e| Error::new(doing("the outer IP options"), e))?;
        let ecn = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
        };
        sys::set_option(listen.as_fd(), ecn.0, ecn.1, 1)
            .map_err(|e| Error::new(doing("ECN reporting"), e))?;
        size_buffers(&listen, config.receive_buffer, config.send_buffer, &mut notes);
        let gro = config.gro && try_option(&listen, libc::UDP_GRO, 1, "UDP_GRO", &mut notes);
        let segment = config.segment && try_option(&listen, libc::UDP_SEGMENT, 0, "UDP_SEGMENT", &mut notes);
        bind(&listen, &address)?;

        let mut port = UdpPort {
            receiver: receive::Receiver::new(config.mmsg),
            sender: transmit::Sender::new(segment, config.mmsg, address.is_ipv6()),
            shape: config.shape,
            ipv4: address.is_ipv4(),
            listen,
            lanes,
            gro,
            own_path_mtu: config.own_path_mtu,
            notes,
            counters: PortCounters::default(),
        };
        if config.mmsg {
            port.try_batch_calls();
        }
        Ok(port)
    }

    /// Makes the port send datagrams singly while `paused` is set, even if it can send them joined.
    pub fn pause_segmentation_by(&mut self, paused: &Arc<AtomicBool>) {
        self.sender.pause_by(paused);
    }

    /// Whether the port's address family is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    /// Returns the address and port that the socket listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listen.local_addr().ok()?.as_socket()
    }

    /// Returns a second sender for the listening socket's address, for threads other than workers.
    pub fn aside(&self) -> Result<Aside, Error> {
        let socket =
            self.listen.try_clone().map_err(|cause| Error::new("sharing a listening socket", cause))?;
        Ok(Aside { sockets: vec![(self.ipv4, socket)] })
    }

    /// Returns the port's sockets if they ignore the kernel's path MTUs. All ports share the fan.
    pub fn path_mtu_sockets(&self) -> Result<PathMtuSockets, Error> {
        if self.ipv4 || !self.own_path_mtu {
            return Ok(PathMtuSockets::default());
        }
        let own = std::slice::from_ref(&self.listen);
        share(if self.lanes.is_empty() { own } else { &self.lanes }).map(PathMtuSockets)
    }

    /// Returns a counter of what the listening socket's buffer has no room for.
    pub fn overflow(&self) -> Result<Overflow, Error> {
        let socket =
            self.listen.try_clone().map_err(|cause| Error::new("sharing a listening socket", cause))?;
        Ok(Overflow::new(vec![socket]))
    }

    /// Returns the source address and port of each lane, in order.
    pub fn lane_addrs(&self) -> Vec<SocketAddr> {
        let own = std::slice::from_ref(&self.listen);
        let sockets = if self.lanes.is_empty() { own } else { &self.lanes };
        sockets.iter().filter_map(|socket| socket.local_addr().ok()?.as_socket()).collect()
    }

    /// Returns the features in use now.
    pub fn features(&self) -> Features {
        let mmsg = self.receiver.mmsg() && self.sender.mmsg();
        Features { segment: self.sender.segment(), gro: self.gro, mmsg }
    }

    /// Returns one sentence for each requested feature that was not granted.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Receives like [`Underlay::receive`], but keeps the records that are already in `out`.
    fn receive_more(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()> {
        self.receiver.receive(self.listen.as_fd(), arena, at, self.shape, out, &mut self.counters)
    }

    /// Disables batching if a seccomp filter hides either call. Without messages both calls do nothing and
    /// return 0.
    fn try_batch_calls(&mut self) {
        // SAFETY: an empty slice has no pointers to follow.
        if let Err(error) = unsafe { sys::receive_many(self.listen.as_fd(), &mut []) } {
            self.notes.push(format!("recvmmsg is unavailable, receiving one datagram per call: {error}"));
            self.receiver.stop_batching();
        }
        // SAFETY: an empty slice has no pointers to follow.
        if let Err(error) = unsafe { sys::send_many(self.listen.as_fd(), &mut []) } {
            self.notes.push(format!("sendmmsg is unavailable, sending one message per call: {error}"));
            self.sender.stop_batching();
        }
    }
}

impl Underlay for UdpPort {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()> {
        out.clear();
        self.receive_more(arena, at, out)
    }

    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        let sockets = if self.lanes.is_empty() { std::slice::from_ref(&self.listen) } else { &self.lanes };
        self.sender.transmit(sockets, arena, spans, batch, &mut self.counters)
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        waiter.register(self.listen.as_fd(), token)
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listen.as_fd()
    }
}

/// Creates a non-blocking socket of the address's family.
fn socket(address: &SocketAddr) -> Result<Socket, Error> {
    let make = || {
        let socket = Socket::new(Domain::for_address(*address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    };
    make().map_err(|cause: io::Error| {
        let advice = match cause.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => "IPv6 is not available on this host: use an IPv4 underlay",
            Some(libc::EMFILE | libc::ENFILE) => files::ADVICE,
            _ => "",
        };
        Error::new(format!("creating a UDP socket for {address}"), cause).advise(advice)
    })
}

fn bind(socket: &Socket, address: &SocketAddr) -> Result<(), Error> {
    socket.bind(&(*address).into()).map_err(|cause| {
        let port = address.port();
        let advice = match cause.raw_os_error() {
            Some(libc::EADDRINUSE) => format!(
                "UDP port {port} is in use by another process (see `ss -ulpn sport = {port}`) or by a kernel \
                 tunnel, which ss does not list (see `ip -d link show type vxlan`): stop or remove it, or \
                 use another port"
            ),
            Some(libc::EADDRNOTAVAIL) => {
                format!("no interface on this host has the address {}", address.ip())
            }
            Some(libc::EACCES) => format!("binding port {port} needs CAP_NET_BIND_SERVICE"),
            _ => String::new(),
        };
        Error::new(format!("binding UDP {address}"), cause).advise(advice)
    })
}

/// Opens the fan, which is empty if the listening socket sends.
fn lanes(config: &UdpConfig) -> Result<Vec<Socket>, Error> {
    let Some(from) = config.send_from else { return Ok(Vec::new()) };
    (0..config.fan.max(1)).map(|_| lane(SocketAddr::new(from, 0), config)).collect()
}

/// Clones the sending sockets for another worker. A flow's source port must not depend on the worker: each
/// side selects its worker by the other's port, so a flow could otherwise change workers with every round
/// trip and its packets could overtake one another.
fn share(lanes: &[Socket]) -> Result<Vec<Socket>, Error> {
    let shared: io::Result<Vec<Socket>> = lanes.iter().map(Socket::try_clone).collect();
    shared.map_err(|cause| {
        Error::new("sharing the sending sockets among the workers", cause).advise(files::ADVICE)
    })
}

/// Opens a socket that only sends. The filter is attached before the bind, so no packet gets in between.
fn lane(from: SocketAddr, config: &UdpConfig) -> Result<Socket, Error> {
    let lane = socket(&from)?;
    let doing = |what: &str| format!("setting {what} on a sending socket for {}", from.ip());
    sys::attach_drop_all(lane.as_fd()).map_err(|e| Error::new(doing("the drop-all filter"), e))?;
    set_outer_header(&lane, &from, config.own_path_mtu)
        .map_err(|e| Error::new(doing("the outer IP options"), e))?;
    // The listening socket already reports a buffer size that is not granted.
    size_buffers(&lane, 1, config.send_buffer, &mut Vec::new());
    bind(&lane, &from)?;
    Ok(lane)
}

/// Clears DF and the flow label, which are a kernel vxlan's defaults; the kernel fragments if necessary.
fn set_outer_header(socket: &Socket, address: &SocketAddr, own_path_mtu: bool) -> io::Result<()> {
    let fd = socket.as_fd();
    match address {
        SocketAddr::V4(_) => {
            // OMIT (Linux 3.15) also ignores "fragmentation needed" messages, which anyone can forge: one
            // accepted forgery would make the kernel reject every joined send to that peer and fragment it.
            let set = |value| sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value);
            set(libc::IP_PMTUDISC_OMIT).or_else(|_| set(libc::IP_PMTUDISC_DONT))
        }
        SocketAddr::V6(_) => {
            let set = |value| sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value);
            if !own_path_mtu || set(libc::IPV6_PMTUDISC_OMIT).is_err() {
                set(libc::IPV6_PMTUDISC_DONT)?;
            }
            match sys::set_option(fd, libc::IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0) {
                // Before Linux 3.17 there is no automatic flow label to disable.
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
                other => other,
            }
        }
    }
}

/// Sets buffer sizes, beyond the system's limits where that is permitted, and notes any shortfall.
pub(crate) fn size_buffers(socket: &Socket, receive: usize, send: usize, notes: &mut Vec<String>) {
    let wanted = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
    let fd = socket.as_fd();
    if receive > 0 && sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted(receive)).is_err() {
        let _ = socket.set_recv_buffer_size(receive);
        // The kernel doubles the requested size and reports the doubled value (socket(7)).
        let got = socket.recv_buffer_size().unwrap_or(0) / 2;
        if got < receive {
            notes.push(format!(
                "receive buffer limited to {got} of {receive} bytes: raise sysctl net.core.rmem_max"
            ));
        }
    }
    if send > 0 && sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted(send)).is_err() {
        let _ = socket.set_send_buffer_size(send);
        let got = socket.send_buffer_size().unwrap_or(0) / 2;
        if got < send {
            notes.push(format!(
                "send buffer limited to {got} of {send} bytes: raise sysctl net.core.wmem_max"
            ));
        }
    }
}

/// Sets a UDP option. Returns false, with a note, if the kernel rejects it.
fn try_option(socket: &Socket, option: i32, value: i32, name: &str, notes: &mut Vec<String>) -> bool {
    match sys::set_option(socket.as_fd(), libc::SOL_UDP, option, value) {
        Ok(()) => true,
        Err(error) => {
            notes.push(format!("{name} is unavailable: {error}"));
            false
        }
    }
}

#[cfg(test)]
mod tests;
