//! The kinds of load and their parameters.

use std::time::Duration;

/// Bulk TCP for a given time.
#[derive(Clone, Copy, Debug)]
pub struct TcpLoad {
    /// Number of connections, each with its own thread.
    pub streams: usize,
    /// Time before the interval, not counted.
    pub warm_up: Duration,
    /// Time that is counted.
    pub interval: Duration,
}

/// Bulk TCP of known bytes.
#[derive(Clone, Copy, Debug)]
pub struct VerifyLoad {
    /// Number of connections.
    pub streams: usize,
    /// Number of bytes that each connection sends.
    pub bytes: u64,
}

/// Datagrams at full speed.
#[derive(Clone, Copy, Debug)]
pub struct UdpLoad {
    /// UDP payload, in bytes.
    pub size: usize,
    /// Number of source ports, served in turn by one thread.
    pub flows: usize,
    /// Number of datagrams of one flow per system call.
    pub batch: usize,
    /// Time before the interval, not counted.
    pub warm_up: Duration,
    /// Time that is counted.
    pub interval: Duration,
}

/// Round trips of one datagram at a time.
#[derive(Clone, Copy, Debug)]
pub struct RttLoad {
    /// UDP payload, in bytes.
    pub size: usize,
    /// Time before the interval, not counted.
    pub warm_up: Duration,
    /// Time that is counted.
    pub interval: Duration,
}

/// One echoed datagram of every size.
#[derive(Clone, Copy, Debug)]
pub struct SizesLoad {
    /// Smallest UDP payload, in bytes.
    pub from: usize,
    /// Largest UDP payload, in bytes.
    pub to: usize,
}
