//! Testbeds, subjects and loads by name, and the figures that loads yield.
//!
//! The names are the contract of the raw JSON and of the command line; a report knows nothing else about
//! them, so files from older and newer versions of the harness stay readable.

use clap::ValueEnum;

/// The connection between the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Testbed {
    /// Ideal: the underlay veth pair with every offload on, so a 64 KiB packet crosses in one piece.
    #[value(name = "I")]
    Ideal,
    /// Wire-like: offloads of the underlay veth pair off, so packets cross at wire size, with checksums.
    #[value(name = "W")]
    WireLike,
}

/// A system under test, which carries packets between the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// `loden run` on both hosts, flannel's vxlan backend.
    #[value(name = "loden:vxlan")]
    LodenVxlan,
    /// `loden run` on both hosts, flannel's udp backend.
    #[value(name = "loden:udp")]
    LodenUdp,
    /// `loden run` on both hosts, flannel's wireguard backend.
    #[value(name = "loden:wireguard")]
    LodenWireguard,
    /// The reference implementation of WireGuard in userspace.
    #[value(name = "wireguard-go")]
    WireguardGo,
    /// Cloudflare's WireGuard in userspace (`cargo install boringtun-cli`).
    #[value(name = "boringtun-cli")]
    Boringtun,
    /// Mullvad's WireGuard in userspace (`cargo install gotatun-cli`).
    #[value(name = "gotatun-cli")]
    Gotatun,
    /// The kernel's vxlan device with route, neighbour and FDB entries as flannel sets them.
    #[value(name = "kernel:vxlan")]
    KernelVxlan,
    /// Plain routes between the hosts without a tunnel: an upper bound.
    #[value(name = "none:routes")]
    NoneRoutes,
}

/// The traffic between the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// Bulk TCP from pod A to pod B, one stream.
    #[value(name = "tcp-1")]
    Tcp1,
    /// Bulk TCP from pod A to pod B, four streams.
    #[value(name = "tcp-4")]
    Tcp4,
    /// 64-byte UDP datagrams at the full speed of one flow, as counted by pod B.
    #[value(name = "udp64-1")]
    Udp64Flows1,
    /// 64-byte UDP datagrams over 64 flows, as counted by pod B.
    #[value(name = "udp64-64")]
    Udp64Flows64,
    /// UDP request and response, one at a time; the scheduler places both pods.
    #[value(name = "rtt")]
    RoundTrip,
    /// UDP request and response with the pods on different CPUs, as on two machines.
    #[value(name = "rtt-apart")]
    RoundTripApart,
    /// Bulk TCP, one stream, beside two busy loops per CPU.
    #[value(name = "tcp-1-busy")]
    Tcp1Busy,
    /// UDP request and response beside two busy loops per CPU.
    #[value(name = "rtt-busy")]
    RoundTripBusy,
}

impl Load {
    /// Whether other programs keep all CPUs busy meanwhile.
    pub fn is_beside_busy_loops(self) -> bool {
        matches!(self, Load::Tcp1Busy | Load::RoundTripBusy)
    }
}

/// The better direction of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More is better: throughput, packets.
    Higher,
    /// Less is better: time, CPU, syscalls.
    Lower,
}

/// One figure of a load.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Key in a sample's `metrics`.
    pub key: &'static str,
    /// Label in a table, with the unit.
    pub label: &'static str,
    /// Number of decimals in a table.
    pub decimals: usize,
    /// The better direction.
    pub better: Better,
    /// Whether a ratio to the baseline is meaningful.
    pub compared: bool,
}

/// Every figure, in the order of a table.
pub const METRICS: &[Metric] = &[
    metric("gbit_per_s", "Gbit/s", 2, Better::Higher, true),
    metric("delivered_kpps", "kpps delivered", 1, Better::Higher, true),
    metric("lost_percent", "% lost", 1, Better::Lower, false),
    metric("rtt_p50_us", "p50 µs", 1, Better::Lower, true),
    metric("rtt_p99_us", "p99 µs", 1, Better::Lower, true),
    metric("cpu_s_per_gb", "CPU s/GB", 2, Better::Lower, true),
    metric("syscalls_per_gib_host", "syscalls/GiB·host", 0, Better::Lower, true),
    metric("forwarding_ms", "ms until all forward", 1, Better::Lower, true),
    metric("routes_ms", "ms until all routes", 0, Better::Lower, true),
    metric("rss_kib", "KiB resident", 0, Better::Lower, false),
    metric("rss_bytes_per_peer", "resident B/peer", 0, Better::Lower, false),
    metric("table_bytes_per_peer", "table B/peer", 1, Better::Lower, false),
    metric("idle_percent", "% of a core, idle", 3, Better::Lower, false),
    metric("gap_ms", "ms longest gap", 1, Better::Lower, false),
    metric("lost_out", "lost from its pod", 0, Better::Lower, false),
    metric("lost_in", "lost to its pod", 0, Better::Lower, false),
    metric("first_ms", "ms start to first packet", 1, Better::Lower, false),
];

/// Returns the name used on the command line and in the raw JSON.
pub fn name_of<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

const fn metric(
    key: &'static str,
    label: &'static str,
    decimals: usize,
    better: Better,
    compared: bool,
) -> Metric {
    Metric { key, label, decimals, better, compared }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_published_ones() {
        let subjects: Vec<_> = Subject::value_variants().iter().map(|s| name_of(*s)).collect();
        let ours = ["loden:vxlan", "loden:udp", "loden:wireguard"];
        let others = ["wireguard-go", "boringtun-cli", "gotatun-cli", "kernel:vxlan", "none:routes"];
        assert_eq!(subjects, [&ours[..], &others[..]].concat());
        let testbeds: Vec<_> = Testbed::value_variants().iter().map(|s| name_of(*s)).collect();
        assert_eq!(testbeds, ["I", "W"]);
        let loads: Vec<_> = Load::value_variants().iter().map(|s| name_of(*s)).collect();
        assert_eq!(
            loads,
            ["tcp-1", "tcp-4", "udp64-1", "udp64-64", "rtt", "rtt-apart", "tcp-1-busy", "rtt-busy"]
        );
    }

    #[test]
    fn metric_keys_are_unique() {
        for (i, metric) in METRICS.iter().enumerate() {
            assert!(METRICS[i + 1..].iter().all(|other| other.key != metric.key), "{}", metric.key);
        }
    }
}
