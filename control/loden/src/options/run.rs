//! The options of `loden run`.
//!
//! clap fills [`RunOptions`]; [`crate::flanneld`] fills the same struct from Go's form of flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use control::settings::RUN_DIRECTORY;
use engine::Switches;
use model::subnet_env::SUBNET_FILE;

use super::groups::{EtcdOptions, HealthOptions, KubeOptions, TrafficOptions};

/// Valid values of `--subnet-lease-renew-margin`, in minutes: less than the 24 hours of a lease.
const MARGIN: std::ops::RangeInclusive<i64> = 1..=1439;

/// The options of `loden run`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct RunOptions {
    /// Store of the leases [default: etcd]; the daemons of one machine may share an sqlite file.
    #[arg(long, value_name = "etcd|sqlite:PATH")]
    pub store: Option<String>,

    /// Write this net-conf.json to the store first.
    #[arg(long, value_name = "FILE", conflicts_with = "net_config_json")]
    pub net_config: Option<PathBuf>,
    /// Write this network configuration to the store first.
    #[arg(long, value_name = "JSON")]
    pub net_config_json: Option<String>,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdOptions,
    /// How to use the Kubernetes API instead of a store.
    #[command(flatten)]
    pub kube: KubeOptions,

    /// Interface that carries the tunnel; may be repeated, the first match is used.
    ///
    /// Default: the interface that has --public-ip, else that of the default route.
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// Pattern for the interface's address or name, tried after every --iface; may be repeated.
    #[arg(long, value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Use the interface whose route leads to this address; tried last.
    #[arg(long, value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,
    /// IPv4 address that other nodes send to [default: the interface's].
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// IPv6 address that other nodes send to [default: the interface's].
    #[arg(long, value_name = "IP")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// File to write this node's subnet to, once everything is in place.
    #[arg(long, value_name = "PATH", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Minutes before its expiry to renew a lease, 1 to 1439.
    #[arg(long, value_name = "MIN", default_value_t = 60, allow_hyphen_values = true)]
    pub subnet_lease_renew_margin: i64,

    /// Masquerading and firewall rules.
    #[command(flatten)]
    pub traffic: TrafficOptions,
    /// The server for probes and metrics.
    #[command(flatten)]
    pub health: HealthOptions,

    /// Name of this daemon among several on a host [default: derived from --subnet-file].
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Directory for the status socket and the state file.
    #[arg(long, value_name = "PATH", default_value = RUN_DIRECTORY)]
    pub run_dir: PathBuf,

    /// Worker threads [default: one per CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Pin each worker to a CPU.
    #[arg(long)]
    pub pin: bool,
    /// Run the workers in a realtime class, before all ordinary programs.
    #[arg(long)]
    pub realtime: bool,
    /// Microseconds a worker polls for work before it sleeps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub spin_us: Option<u32>,
    /// MiB of kernel memory for packets that wait for the workers [default: 64, or 4 per worker].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub queue_memory: Option<u16>,
    /// Do not use these features, even if the kernel has them: tso, uso, gso, gro, multiqueue, mmsg, all.
    #[arg(
        long, value_name = "LIST", value_delimiter = ',',
        value_parser = features(), hide_possible_values = true,
    )]
    pub without: Vec<String>,

    /// Write the engine's counters to this file as JSON, every second and at exit.
    #[arg(long, value_name = "PATH")]
    pub counters_file: Option<PathBuf>,
}

/// A value of `--subnet-lease-renew-margin` that no lease allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--subnet-lease-renew-margin {0}: a lease lasts 1440 minutes, so the margin must be between 1 and 1439"
)]
pub(crate) struct BadMargin(i64);

impl RunOptions {
    /// Returns how long before its expiry a lease is renewed.
    pub(crate) fn renew_margin(&self) -> Result<Duration, BadMargin> {
        let minutes = self.subnet_lease_renew_margin;
        match u64::try_from(minutes) {
            Ok(positive) if MARGIN.contains(&minutes) => Ok(Duration::from_secs(positive * 60)),
            _ => Err(BadMargin(minutes)),
        }
    }
}

/// The options of a command line without flags; a test compares them with clap's.
impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            store: None,
            net_config: None,
            net_config_json: None,
            etcd: EtcdOptions::default(),
            kube: KubeOptions::default(),
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: None,
            public_ip: None,
            public_ipv6: None,
            subnet_file: SUBNET_FILE.into(),
            subnet_lease_renew_margin: 60,
            traffic: TrafficOptions::default(),
            health: HealthOptions::default(),
            instance: None,
            run_dir: RUN_DIRECTORY.into(),
            workers: None,
            pin: false,
            realtime: false,
            spin_us: None,
            queue_memory: None,
            without: Vec::new(),
            counters_file: None,
        }
    }
}

fn features() -> PossibleValuesParser {
    PossibleValuesParser::new(Switches::NAMES.into_iter().chain(["all"]))
}
