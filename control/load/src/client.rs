//! The sending side: what may be asked for, checked before anything is sent.

use std::net::SocketAddr;

use crate::error::Error;
use crate::kinds::{RttLoad, SizesLoad, TcpLoad, UdpLoad, VerifyLoad};
use crate::report::{RttReport, SizesReport, TcpReport, UdpReport, VerifyReport};
use crate::stop::Stop;
use crate::streams::MOST_STREAMS;
use crate::udp::LARGEST;
use crate::{echo, tcp as bulk};

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
