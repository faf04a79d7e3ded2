//! `loden load`: the load generator as a process, for benchmarks and for hand work. One JSON object on
//! stdout per run.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use load::{Report, RttLoad, Server, SizesLoad, Stop, TcpLoad, UdpLoad, VerifyLoad};

/// `loden load`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub mode: Mode,
}

/// The kinds of load.
#[derive(Clone, Debug, Subcommand)]
pub enum Mode {
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
pub struct Times {
    /// Seconds that count.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub seconds: Duration,
    /// Seconds before them that do not.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,
}

/// Runs one kind of load to its end, or the server for ever. An error means that there are no figures.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let stop = Stop::default();
    let (report, right) = match options.mode {
        Mode::Server { listen } => {
            let server = Server::start(listen)?;
            eprintln!("loden load: listening on {}", server.address());
            loop {
                std::thread::park();
            }
        }
        Mode::Tcp { server, streams, bytes: Some(bytes), .. } => {
            let report = load::verify(server, &VerifyLoad { streams, bytes }, &stop)?;
            let right = report.equal;
            (Report::Verify(report), right)
        }
        Mode::Tcp { server, streams, times: Times { seconds: interval, warm_up }, .. } => {
            (Report::Tcp(load::tcp(server, &TcpLoad { streams, warm_up, interval }, &stop)?), true)
        }
        Mode::Udp { server, size, flows, batch, times: Times { seconds: interval, warm_up } } => {
            let load = UdpLoad { size, flows, batch, warm_up, interval };
            (Report::Udp(load::udp(server, &load, &stop)?), true)
        }
        Mode::Rtt { server, size, times: Times { seconds: interval, warm_up } } => {
            (Report::Rtt(load::rtt(server, &RttLoad { size, warm_up, interval }, &stop)?), true)
        }
        Mode::Sizes { server, from, to } => {
            let report = load::sizes(server, &SizesLoad { from, to }, &stop)?;
            let right = report.right == to - from + 1 && report.duplicates == 0;
            (Report::Sizes(report), right)
        }
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
