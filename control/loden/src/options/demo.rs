//! The options of `loden demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// The options of `loden demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoOptions {
    /// Number of hosts, each with one pod.
    #[arg(
        long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=100),
    )]
    pub hosts: u16,
    /// The tunnel between the hosts.
    #[arg(long, value_enum, default_value_t = Backend::Vxlan)]
    pub backend: Backend,
    /// Give pods IPv6 as well and check both families (vxlan, wireguard and host-gw).
    #[arg(long)]
    pub ipv6: bool,
    /// Print JSON on stdout instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Leave everything running, and print how to enter a pod and how to remove the demo.
    #[arg(long)]
    pub keep: bool,
    /// Seconds per measurement.
    #[arg(
        long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=600),
    )]
    pub seconds: u16,
    /// Remove an earlier demo that was left running, and do nothing else.
    #[arg(long, value_name = "NAME", exclusive = true)]
    pub remove: Option<String>,
    /// The program to start on each host instead of this one, for tests of the demo itself.
    #[arg(long, value_name = "PATH", hide = true)]
    pub program: Option<PathBuf>,
}

/// The tunnels that a demo can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// VXLAN, flannel's default.
    Vxlan,
    /// Plain IP packets in UDP.
    Udp,
    /// IP in IP.
    Ipip,
    /// Encrypted packets in UDP.
    Wireguard,
    /// No tunnel: kernel routes from host to host.
    HostGw,
}

impl Backend {
    /// Returns the backend's type as the network configuration spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::Udp => "udp",
            Backend::Ipip => "ipip",
            Backend::Wireguard => "wireguard",
            Backend::HostGw => "host-gw",
        }
    }

    /// Tells whether the backend carries the pods' IPv6 packets.
    pub(crate) fn carries_ipv6(self) -> bool {
        matches!(self, Backend::Vxlan | Backend::HostGw | Backend::Wireguard)
    }
}
