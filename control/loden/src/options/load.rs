//! The options of `loden load`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand};

/// `loden load`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadOptions {
    /// What to do.
    #[command(subcommand)]
    pub mode: LoadMode,
}

/// The kinds of load.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LoadMode {
    /// Answer the others until killed.
    Server {
        /// Where to listen for clients.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
    },
    /// Bulk TCP: for a time, or known bytes with `--bytes`.
    Tcp {
        /// Where the server listens.
        server: SocketAddr,
        /// Connections at once.
        #[arg(long, default_value_t = 1)]
        streams: usize,
        /// How long.
        #[command(flatten)]
        times: Times,
        /// Send this many bytes over each connection and compare them by SHA-256, instead of measuring a
        /// rate for a time; exit 1 if they differ.
        #[arg(long, value_name = "N", requires = "verify")]
        bytes: Option<u64>,
        /// Compare what arrives with what was sent.
        #[arg(long, requires = "bytes")]
        verify: bool,
    },
    /// Datagrams as fast as they go.
    Udp {
        /// Where the server listens.
        server: SocketAddr,
        /// Payload, in bytes.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Source ports, served in turn.
        #[arg(long, default_value_t = 1)]
        flows: usize,
        /// Datagrams of one flow handed to the system at once.
        #[arg(long, default_value_t = 32)]
        batch: usize,
        /// How long.
        #[command(flatten)]
        times: Times,
    },
    /// Round trips of one datagram at a time.
    Rtt {
        /// Where the server listens.
        server: SocketAddr,
        /// Payload, in bytes.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long.
        #[command(flatten)]
        times: Times,
    },
    /// One datagram of every size, there and back; exit 1 unless all come back once with equal bytes.
    Sizes {
        /// Where the server listens.
        server: SocketAddr,
        /// Smallest payload, in bytes.
        #[arg(long, default_value_t = 0)]
        from: usize,
        /// Largest payload, in bytes.
        #[arg(long, default_value_t = 9000)]
        to: usize,
    },
}

/// How long a run lasts.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Times {
    /// Seconds that count.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub seconds: Duration,
    /// Seconds before them that do not.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,
}

/// Seconds with a fraction, at most an hour.
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
