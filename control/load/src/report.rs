//! The figures of one run, as one JSON object with a `mode`.

use serde::{Deserialize, Serialize};

/// A report of any kind; in JSON, `mode` names the kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Report {
    /// Bulk TCP for a given time.
    Tcp(TcpReport),
    /// Bulk TCP of known bytes.
    Verify(VerifyReport),
    /// Datagrams at full speed.
    Udp(UdpReport),
    /// Round trips.
    Rtt(RttReport),
    /// Echoed datagrams of every size.
    Sizes(SizesReport),
}

/// Bulk TCP, as counted by the receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TcpReport {
    /// Number of connections.
    pub streams: usize,
    /// The receiver's interval, in seconds.
    pub seconds: f64,
    /// Bytes received in the interval.
    pub bytes: u64,
    /// Bytes received in the interval, by connection.
    pub bytes_by_stream: Vec<u64>,
    /// `bytes` over `seconds`.
    pub gbit_per_s: f64,
}

/// A transfer whose bytes were compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Number of connections.
    pub streams: usize,
    /// Bytes sent by each connection.
    pub bytes_by_stream: u64,
    /// Bytes received by all connections together.
    pub received: u64,
    /// Time from connecting to the last byte, at the sender, in seconds.
    pub seconds: f64,
    /// `received` over `seconds`.
    pub gbit_per_s: f64,
    /// SHA-256 of the bytes that each connection sent, in hexadecimal.
    pub sha256_sent: Vec<String>,
    /// SHA-256 of the bytes that each connection received.
    pub sha256_received: Vec<String>,
    /// Whether every byte arrived and every digest agrees.
    pub equal: bool,
}

/// Datagrams, as counted by the receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UdpReport {
    /// UDP payload, in bytes.
    pub size: usize,
    /// Number of source ports.
    pub flows: usize,
    /// The receiver's interval, in seconds.
    pub seconds: f64,
    /// Datagrams of this run received in the interval.
    pub delivered: u64,
    /// Datagrams sent in the whole run, warm-up included.
    pub sent: u64,
    /// Datagrams received in the whole run, warm-up included.
    pub received: u64,
    /// `delivered` over `seconds`.
    pub packets_per_s: f64,
    /// Payload of `delivered` over `seconds`.
    pub gbit_per_s: f64,
}

/// Round trips of one datagram at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RttReport {
    /// UDP payload, in bytes.
    pub size: usize,
    /// Round trips completed after the warm-up.
    pub round_trips: u64,
    /// Datagrams that did not come back within a second.
    pub lost: u64,
    /// Shortest round trip, in microseconds.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Longest round trip.
    pub max_us: f64,
}

/// Echoed datagrams of every size in a range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizesReport {
    /// Smallest UDP payload, in bytes.
    pub from: usize,
    /// Largest UDP payload, in bytes.
    pub to: usize,
    /// Number of sizes that came back once with equal bytes.
    pub right: usize,
    /// Sizes that did not come back within a second.
    pub missing: Vec<usize>,
    /// Sizes that came back with different bytes.
    pub wrong: Vec<usize>,
    /// Number of datagrams that came back more than once.
    pub duplicates: u64,
}

/// Returns the rate in units of 10^9 bits per second; 0 for an empty interval.
pub(crate) fn gbit_per_s(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 * 8.0 / seconds / 1e9 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_names_the_mode_and_round_trips() {
        let report = Report::Sizes(SizesReport {
            from: 0,
            to: 9,
            right: 9,
            missing: vec![3],
            wrong: Vec::new(),
            duplicates: 0,
        });
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.starts_with(r#"{"mode":"sizes","from":0,"#), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
