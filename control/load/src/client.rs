//! The sending side: what may be asked for, checked before anything is sent.

use std::net::SocketAddr;
use std::time::Duration;

use crate::server::MOST_STREAMS;
use crate::udp::LARGEST;
use crate::{Error, RttReport, SizesReport, Stop, TcpReport, UdpReport, VerifyReport, echo, tcp as bulk};

/// Bulk TCP for a time.
#[derive(Clone, Copy, Debug)]
pub struct TcpLoad {
    /// How many connections, each with a thread.
    pub streams: usize,
    /// Sent before the interval and not counted.
    pub warm_up: Duration,
    /// Counted.
    pub interval: Duration,
}

/// Bulk TCP of known bytes.
#[derive(Clone, Copy, Debug)]
pub struct VerifyLoad {
    /// How many connections.
    pub streams: usize,
    /// How many bytes each sends.
    pub bytes: u64,
}

/// Datagrams as fast as they go.
#[derive(Clone, Copy, Debug)]
pub struct UdpLoad {
    /// UDP payload, in bytes.
    pub size: usize,
    /// How many source ports, served in turn by one thread.
    pub flows: usize,
    /// Datagrams of one flow handed to the system at once.
    pub batch: usize,
    /// Sent before the interval and not counted.
    pub warm_up: Duration,
    /// Counted.
    pub interval: Duration,
}

/// Round trips of one datagram at a time.
#[derive(Clone, Copy, Debug)]
pub struct RttLoad {
    /// UDP payload, in bytes.
    pub size: usize,
    /// Done before the interval and not counted.
    pub warm_up: Duration,
    /// Counted.
    pub interval: Duration,
}

/// One datagram of every size, there and back.
#[derive(Clone, Copy, Debug)]
pub struct SizesLoad {
    /// Smallest UDP payload, in bytes.
    pub from: usize,
    /// Largest UDP payload, in bytes.
    pub to: usize,
}

/// The system takes no more messages at once (`UIO_MAXIOV`).
const MOST_BATCH: usize = 1024;

/// Sends bulk TCP to the server at `server` and returns what it counted.
pub fn tcp(server: SocketAddr, load: &TcpLoad, stop: &Stop) -> Result<TcpReport, Error> {
    within("streams", load.streams, 1, MOST_STREAMS)?;
    bulk::send(server, load, stop)
}

/// Sends known bytes to the server at `server` and compares digests.
pub fn verify(server: SocketAddr, load: &VerifyLoad, stop: &Stop) -> Result<VerifyReport, Error> {
    within("streams", load.streams, 1, MOST_STREAMS)?;
    crate::verify::send(server, load, stop)
}

/// Sends datagrams to the server at `server` and returns what it counted.
pub fn udp(server: SocketAddr, load: &UdpLoad, stop: &Stop) -> Result<UdpReport, Error> {
    within("size", load.size, 0, LARGEST)?;
    within("flows", load.flows, 1, MOST_STREAMS)?;
    within("batch", load.batch, 1, MOST_BATCH)?;
    crate::udp::send(server, load, stop)
}

/// Measures round trips to the server at `server`.
pub fn rtt(server: SocketAddr, load: &RttLoad, stop: &Stop) -> Result<RttReport, Error> {
    within("size", load.size, 1, LARGEST)?;
    echo::rtt(server, load, stop)
}

/// Sends one datagram of every size to the server at `server` and compares what comes back.
pub fn sizes(server: SocketAddr, load: &SizesLoad, stop: &Stop) -> Result<SizesReport, Error> {
    within("largest size", load.to, 0, LARGEST)?;
    within("smallest size", load.from, 0, load.to)?;
    echo::sizes(server, load, stop)
}

fn within(what: &str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Impossible(format!("{what} {value}: {least} to {most} are possible")))
}
