//! The options of `loden demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// `loden demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoOptions {
    /// How many hosts, each with a pod.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=100))]
    pub hosts: u16,
    /// The tunnel between the hosts.
    #[arg(long, value_enum, default_value_t = Backend::Vxlan)]
    pub backend: Backend,
    /// Give pods IPv6 as well and check both families (vxlan and host-gw).
    #[arg(long)]
    pub ipv6: bool,
    /// Print JSON on stdout instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Leave everything up and say how to enter a pod and how to remove it.
    #[arg(long)]
    pub keep: bool,
    /// Seconds for each measurement.
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub seconds: u16,
    /// Remove what an earlier demo left up, and do nothing else.
    #[arg(long, value_name = "NAME", exclusive = true)]
    pub remove: Option<String>,
    /// The program to start on each host instead of this one; for tests of the demo itself.
    #[arg(long, value_name = "PATH", hide = true)]
    pub program: Option<PathBuf>,
}

/// The tunnels that a demo can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// VXLAN, as flannel's default.
    Vxlan,
    /// Plain IP packets in UDP.
    Udp,
    /// IP in IP.
    Ipip,
    /// Sealed in UDP.
    Wireguard,
    /// No tunnel: kernel routes from host to host.
    HostGw,
}

impl Backend {
    /// The type as the network configuration names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::Udp => "udp",
            Backend::Ipip => "ipip",
            Backend::Wireguard => "wireguard",
            Backend::HostGw => "host-gw",
        }
    }

    /// Tells whether it carries IPv6 packets of pods.
    pub(crate) fn carries_ipv6(self) -> bool {
        matches!(self, Backend::Vxlan | Backend::HostGw | Backend::Wireguard)
    }
}
