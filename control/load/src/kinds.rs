//! The kinds of load, each with what may be asked for.

use std::time::Duration;

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
