//! The options of `loden load`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand};

/// The options of `loden load`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadOptions {
    /// The kind of load.
    #[command(subcommand)]
    pub mode: LoadMode,
}

/// The kinds of load.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LoadMode {
    /// Serve the other kinds until killed.
    Server {
        /// Address to listen on.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
    },
    /// Send bulk TCP for a time, or known bytes with `--bytes`.
    Tcp {
        /// Address of the server.
        server: SocketAddr,
        /// Number of connections.
        #[arg(long, default_value_t = 1)]
        streams: usize,
        /// How long to run.
        #[command(flatten)]
        times: Times,
        /// Send this many bytes over each connection and compare them by SHA-256, instead of measuring a
        /// rate; exit 1 if they differ.
        #[arg(long, value_name = "N", requires = "verify")]
        bytes: Option<u64>,
        /// Compare the received bytes with the sent ones.
        #[arg(long, requires = "bytes")]
        verify: bool,
    },
    /// Send datagrams as fast as possible.
    Udp {
        /// Address of the server.
        server: SocketAddr,
        /// Payload in bytes.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Number of source ports, used in turn.
        #[arg(long, default_value_t = 1)]
        flows: usize,
        /// Datagrams of one flow per system call.
        #[arg(long, default_value_t = 32)]
        batch: usize,
        /// How long to run.
        #[command(flatten)]
        times: Times,
    },
    /// Measure round trips of one datagram at a time.
    Rtt {
        /// Address of the server.
        server: SocketAddr,
        /// Payload in bytes.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long to run.
        #[command(flatten)]
        times: Times,
    },
    /// Echo one datagram of every size; exit 1 unless each comes back once with equal bytes.
    Sizes {
        /// Address of the server.
        server: SocketAddr,
        /// Smallest payload in bytes.
        #[arg(long, default_value_t = 0)]
        from: usize,
        /// Largest payload in bytes.
        #[arg(long, default_value_t = 9000)]
        to: usize,
    },
}

/// The length of a run.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Times {
    /// Seconds to measure.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub seconds: Duration,
    /// Seconds to run before the measurement.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,
}

/// Parses seconds with a fraction, at most an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = "seconds from 0 to 3600, such as 2.5";
    match text.parse::<f64>() {
        Ok(value) if (0.0..=3600.0).contains(&value) => Ok(Duration::from_secs_f64(value)),
        _ => Err(wanted.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for bad in ["-1", "3601", "NaN", "inf", "", "1s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
