//! The sending side: validates a load before anything is sent.

use std::net::SocketAddr;

use crate::error::Error;
use crate::kinds::{RttLoad, SizesLoad, TcpLoad, UdpLoad, VerifyLoad};
use crate::report::{RttReport, SizesReport, TcpReport, UdpReport, VerifyReport};
use crate::stop::Stop;
use crate::streams::MAX_STREAMS;
use crate::udp::LARGEST;
use crate::{echo, tcp as bulk};

/// Maximum number of messages in one system call (`UIO_MAXIOV`).
const MAX_BATCH: usize = 1024;

/// Sends bulk TCP to the server at `server` and returns the server's count.
pub fn tcp(server: SocketAddr, load: &TcpLoad, stop: &Stop) -> Result<TcpReport, Error> {
    check_range("streams", load.streams, 1, MAX_STREAMS)?;
    bulk::send(server, load, stop)
}

/// Sends known bytes to the server at `server` and compares digests.
pub fn verify(server: SocketAddr, load: &VerifyLoad, stop: &Stop) -> Result<VerifyReport, Error> {
    check_range("streams", load.streams, 1, MAX_STREAMS)?;
    crate::verify::send(server, load, stop)
}

/// Sends datagrams to the server at `server` and returns the server's count.
pub fn udp(server: SocketAddr, load: &UdpLoad, stop: &Stop) -> Result<UdpReport, Error> {
    check_range("size", load.size, 0, LARGEST)?;
    check_range("flows", load.flows, 1, MAX_STREAMS)?;
    check_range("batch", load.batch, 1, MAX_BATCH)?;
    crate::udp::send(server, load, stop)
}

/// Measures round trips to the server at `server`.
pub fn rtt(server: SocketAddr, load: &RttLoad, stop: &Stop) -> Result<RttReport, Error> {
    check_range("size", load.size, 1, LARGEST)?;
    echo::rtt(server, load, stop)
}

/// Sends one datagram of every size to the server at `server` and compares what comes back.
pub fn sizes(server: SocketAddr, load: &SizesLoad, stop: &Stop) -> Result<SizesReport, Error> {
    check_range("largest size", load.to, 0, LARGEST)?;
    check_range("smallest size", load.from, 0, load.to)?;
    echo::sizes(server, load, stop)
}

fn check_range(what: &str, value: usize, min: usize, max: usize) -> Result<(), Error> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Impossible(format!("{what} {value}: must be {min} to {max}")))
}
