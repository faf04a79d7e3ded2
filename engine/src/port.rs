//! The ports of a worker's wire: UDP sockets or a raw socket. One worker loop serves both, without dynamic
//! dispatch.

use std::io::Result;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use io::overflow::Overflow;
use io::udp::Features;
use io::{PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay, Waiter, raw, udp};

/// One worker's sockets for one tunnel.
#[derive(Debug)]
pub(crate) enum Port {
    /// For formats over UDP.
    Udp(udp::UdpPort),
    /// For formats over UDP with several listening addresses.
    UdpGroup(Box<udp::UdpGroup>),
    /// For formats with their own IP protocol number.
    Raw(raw::RawPort),
}

impl Port {
    pub(crate) fn features(&self) -> Features {
        match self {
            Port::Udp(port) => port.features(),
            Port::UdpGroup(port) => port.features(),
            Port::Raw(port) => port.features(),
        }
    }

    pub(crate) fn notes(&self) -> &[String] {
        match self {
            Port::Udp(port) => port.notes(),
            Port::UdpGroup(port) => port.notes(),
            Port::Raw(port) => port.notes(),
        }
    }

    /// Makes the port send datagrams singly while `paused` is set. A raw socket always does.
    pub(crate) fn pause_segmentation_by(&mut self, paused: &Arc<AtomicBool>) {
        match self {
            Port::Udp(port) => port.pause_segmentation_by(paused),
            Port::UdpGroup(port) => port.pause_segmentation_by(paused),
            Port::Raw(_) => {}
        }
    }

    /// Opens a second sender for the port's address. Returns `None` for a raw socket.
    pub(crate) fn aside(&self) -> std::result::Result<Option<udp::Aside>, io::Error> {
        match self {
            Port::Udp(port) => port.aside().map(Some),
            Port::UdpGroup(port) => port.aside().map(Some),
            Port::Raw(_) => Ok(None),
        }
    }

    /// Returns the sockets that ignore the kernel's path MTUs over IPv6.
    pub(crate) fn path_mtu_sockets(&self) -> std::result::Result<udp::PathMtuSockets, io::Error> {
        match self {
            Port::Udp(port) => port.path_mtu_sockets(),
            Port::UdpGroup(port) => port.path_mtu_sockets(),
            Port::Raw(_) => Ok(udp::PathMtuSockets::default()),
        }
    }

    /// Returns a counter of what the port's receive buffers have no room for.
    pub(crate) fn overflow(&self) -> std::result::Result<Overflow, io::Error> {
        match self {
            Port::Udp(port) => port.overflow(),
            Port::UdpGroup(port) => port.overflow(),
            Port::Raw(port) => port.overflow(),
        }
    }

    /// Returns the UDP source ports, which all workers share. A raw socket has none.
    pub(crate) fn source_ports(&self) -> Vec<u16> {
        match self {
            Port::Udp(port) => port.lane_addrs().iter().map(|address| address.port()).collect(),
            Port::UdpGroup(port) => port.lane_addrs().iter().map(|address| address.port()).collect(),
            Port::Raw(_) => Vec::new(),
        }
    }
}

impl Underlay for Port {
    #[inline]
    fn shape(&self) -> Shape {
        match self {
            Port::Udp(port) => port.shape(),
            Port::UdpGroup(port) => port.shape(),
            Port::Raw(port) => port.shape(),
        }
    }

    #[inline]
    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> Result<()> {
        match self {
            Port::Udp(port) => port.receive(arena, at, out),
            Port::UdpGroup(port) => port.receive(arena, at, out),
            Port::Raw(port) => port.receive(arena, at, out),
        }
    }

    #[inline]
    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        match self {
            Port::Udp(port) => port.transmit(arena, spans, batch),
            Port::UdpGroup(port) => port.transmit(arena, spans, batch),
            Port::Raw(port) => port.transmit(arena, spans, batch),
        }
    }

    fn counters(&self) -> &PortCounters {
        match self {
            Port::Udp(port) => port.counters(),
            Port::UdpGroup(port) => port.counters(),
            Port::Raw(port) => port.counters(),
        }
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> Result<()> {
        match self {
            Port::Udp(port) => port.register(waiter, token),
            Port::UdpGroup(port) => port.register(waiter, token),
            Port::Raw(port) => port.register(waiter, token),
        }
    }
}
