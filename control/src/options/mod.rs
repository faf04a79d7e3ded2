//! The command line, as one typed value.
//!
//! `loden run` reads it by clap; [`crate::flanneld`] fills the same [`RunOptions`] from Go's form.

mod groups;

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, Parser, Subcommand};
use engine::Switches;

pub use groups::{EtcdOptions, HealthOptions, KubeOptions, TrafficOptions};

/// Least and greatest `--subnet-lease-renew-margin`, minutes: less than the 24 hours of a lease.
const MARGIN: std::ops::RangeInclusive<i64> = 1..=1439;

/// An overlay network compatible with flannel whose datapath runs in userspace.
#[derive(Debug, Parser)]
#[command(name = "loden", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more on stderr; twice for everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join this host to the network: take a subnet, open the tunnel, forward until stopped.
    Run(Box<RunOptions>),
    /// The same, with flanneld's command line; what the binary does when it is called `flanneld`.
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Flanneld(FlanneldOptions),
    /// Build two hosts on this machine, connect them, measure, and remove everything again.
    Demo(crate::demo::Options),
    /// Show what the daemons of this host do: lease, peers, offloads, drops, what they have made here.
    Status(crate::status::Options),
    /// Remove from this host what a daemon has made and left.
    Cleanup(crate::cleanup::Options),
    /// Say what this kernel and container grant, what would be used, and how to close each gap.
    Doctor(DoctorOptions),
    /// Put the CNI plugin and its configuration where container runtimes look for them.
    InstallCni(crate::install_cni::Options),
    /// Copy one configuration of CNI to its place, whole and with its mode; as flannel's install-conf.
    InstallConf(crate::install_cni::install_conf::Options),
    /// Write dockerd's network options from this node's subnet file; as flannel's mk-docker-opts.sh.
    MkDockerOpts(crate::docker_opts::Options),
    /// Generate load and print the measurements as JSON.
    #[command(hide = true)]
    Load(crate::load_command::Options),
}

/// `loden doctor`.
#[derive(Clone, Copy, Debug, Args)]
pub struct DoctorOptions {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// `loden flanneld`: everything after the name is read by [`crate::flanneld`].
#[derive(Clone, Debug, Args)]
pub struct FlanneldOptions {
    /// flanneld's arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// `loden run`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RunOptions {
    /// Where leases live [default: etcd]; all daemons of one machine may share an sqlite file.
    #[arg(long, value_name = "etcd|sqlite:PATH")]
    pub store: Option<String>,

    /// Put this net-conf.json into the store first.
    #[arg(long, value_name = "FILE", conflicts_with = "net_config_json")]
    pub net_config: Option<PathBuf>,
    /// Put this network configuration into the store first.
    #[arg(long, value_name = "JSON")]
    pub net_config_json: Option<String>,

    /// Where etcd is and how to enter.
    #[command(flatten)]
    pub etcd: EtcdOptions,
    /// The Kubernetes API instead of a store.
    #[command(flatten)]
    pub kube: KubeOptions,

    /// Interface that carries the tunnel; may be repeated, the first that fits is taken.
    ///
    /// Default: the one holding --public-ip, else the one of the default route.
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// Pattern of the interface's address or name, tried after every --iface; may be repeated.
    #[arg(long, value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Take the interface that leads to this address, tried last.
    #[arg(long, value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,
    /// IPv4 address other nodes send to [default: the interface's].
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// IPv6 address other nodes send to [default: the interface's].
    #[arg(long, value_name = "IP")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// File to write this node's subnet to, once all is in place.
    #[arg(long, value_name = "PATH", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Minutes before a lease ends at which to renew it, 1 to 1439.
    #[arg(long, value_name = "MIN", default_value_t = 60, allow_hyphen_values = true)]
    pub subnet_lease_renew_margin: i64,

    /// Masquerading and firewall rules.
    #[command(flatten)]
    pub traffic: TrafficOptions,
    /// The server for probes and metrics.
    #[command(flatten)]
    pub health: HealthOptions,

    /// Name of this daemon among several on a host [default: made of --subnet-file].
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Directory for the status socket and for what a restart should know.
    #[arg(long, value_name = "PATH", default_value = RUN_DIRECTORY)]
    pub run_dir: PathBuf,

    /// Worker threads [default: one per CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Pin each worker to a CPU.
    #[arg(long)]
    pub pin: bool,
    /// Microseconds a worker looks for work before it sleeps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub spin_us: Option<u32>,
    /// Do without these, whether the kernel has them or not: tso, uso, gso, gro, multiqueue, mmsg, all.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = features(), hide_possible_values = true)]
    pub without: Vec<String>,

    /// Write the engine's counters to this file as JSON, every second and at the end.
    #[arg(long, value_name = "PATH")]
    pub counters_file: Option<PathBuf>,
}

/// Where flannel writes a node's subnet, and CNI plugins look for it.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Where the status sockets and state files of a host's daemons are.
pub const RUN_DIRECTORY: &str = "/run/loden";

/// A `--subnet-lease-renew-margin` that no lease allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--subnet-lease-renew-margin {0}: a lease lasts 1440 minutes, so the margin must be between 1 and 1439"
)]
pub struct BadMargin(i64);

/// The file of `--net-config` cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the network configuration {}: {source}; name another file with --net-config", .path.display())]
pub struct ConfigFileError {
    /// The file.
    path: PathBuf,
    /// The system's answer.
    source: io::Error,
}

impl RunOptions {
    /// The network configuration from the command line, to be put into the store.
    pub fn given_net_config(&self) -> Result<Option<String>, ConfigFileError> {
        let Some(path) = &self.net_config else { return Ok(self.net_config_json.clone()) };
        let read = std::fs::read_to_string(path);
        read.map(Some).map_err(|source| ConfigFileError { path: path.clone(), source })
    }

    /// The store's name as `--store` takes it.
    pub fn store_spec(&self) -> &str {
        self.store.as_deref().unwrap_or("etcd")
    }

    /// How long before its end a lease is renewed.
    pub fn renew_margin(&self) -> Result<Duration, BadMargin> {
        let minutes = self.subnet_lease_renew_margin;
        match u64::try_from(minutes) {
            Ok(positive) if MARGIN.contains(&minutes) => Ok(Duration::from_secs(positive * 60)),
            _ => Err(BadMargin(minutes)),
        }
    }
}

/// The values of a command line without a single flag; a test compares it with clap's.
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
            spin_us: None,
            without: Vec::new(),
            counters_file: None,
        }
    }
}

fn features() -> PossibleValuesParser {
    PossibleValuesParser::new(Switches::NAMES.into_iter().chain(["all"]))
}

/// Whether the program was started by one of these names, in whatever directory.
pub(crate) fn is_called(program: Option<&OsStr>, names: &[&str]) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| names.iter().any(|known| name == *known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn run_has_flannels_defaults() {
        let run = parse(&["run"]);
        assert_eq!(run, RunOptions::default());
        assert_eq!(run.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(run.renew_margin(), Ok(Duration::from_secs(3600)));
        assert_eq!(run.etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(run.etcd.prefix, "/coreos.com/network");
        assert!(run.traffic.iptables_forward_rules && !run.traffic.ip_masq);
    }

    #[test]
    fn lists_and_repeats() {
        let run = parse(&["run", "--iface", "eth0", "--iface", "10.0.0.1", "--without", "tso,gro"]);
        assert_eq!(run.iface, ["eth0", "10.0.0.1"]);
        assert_eq!(run.without, ["tso", "gro"]);
        let run = parse(&["run", "--etcd-endpoints", "https://a:2379,https://b:2379"]);
        assert_eq!(run.etcd.endpoints, ["https://a:2379", "https://b:2379"]);
    }

    #[test]
    fn switches_are_bare_or_have_a_value() {
        assert!(parse(&["run", "--ip-masq"]).traffic.ip_masq);
        assert!(!parse(&["run", "--ip-masq=false"]).traffic.ip_masq);
        assert!(!parse(&["run", "--iptables-forward-rules=false"]).traffic.iptables_forward_rules);
    }

    #[test]
    fn the_margin_is_checked_at_start() {
        for (margin, good) in [("1", true), ("1439", true), ("0", false), ("1440", false), ("-5", false)] {
            let run = parse(&["run", "--subnet-lease-renew-margin", margin]);
            assert_eq!(run.renew_margin().is_ok(), good, "{margin}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let run = parse(&["run", "--etcd-username", "root", "--etcd-password", "s3cret"]);
        assert_eq!(
            run.etcd.config().password.map(|password| password.reveal().to_owned()),
            Some("s3cret".into())
        );
        assert!(!format!("{run:?}").contains("s3cret"));
        let mut command = Options::command();
        let help = command.find_subcommand_mut("run").expect("run").render_long_help().to_string();
        assert!(help.contains("--etcd-password") && !help.contains("s3cret"), "{help}");
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            &["run", "--subnet-lease-renew-margin", "soon"][..],
            &["run", "--public-ip", "::1"],
            &["run", "--iface-can-reach", "example.org"],
            &["run", "--healthz-port", "65536"],
            &["run", "--without", "speed"],
            &["run", "--ip-masq=maybe"],
        ] {
            let line = std::iter::once("loden").chain(bad.iter().copied());
            assert!(Options::try_parse_from(line).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flanneld_gets_its_arguments_as_they_are() {
        let line = ["loden", "flanneld", "-iface=eth0", "--", "-h", "--version"];
        match Options::try_parse_from(line).expect("a good line").command {
            Command::Flanneld(flanneld) => assert_eq!(flanneld.arguments.last(), Some(&"--version".into())),
            other => panic!("{other:?}"),
        }
    }

    fn parse(line: &[&str]) -> RunOptions {
        let line = std::iter::once("loden").chain(line.iter().copied());
        match Options::try_parse_from(line).expect("a good line").command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }
}
