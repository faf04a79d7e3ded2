//! The command line, as one typed value.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

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
    Run(RunOptions),
    /// Build two hosts on this machine, connect them, measure, and remove everything again.
    Demo(crate::demo::Options),
    /// Say what this kernel and container grant, what would be used, and how to close each gap.
    Doctor(DoctorOptions),
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

/// `loden run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Where leases live. Several daemons on one machine may share the file.
    #[arg(long, value_name = "sqlite:PATH|memory")]
    pub store: StoreUrl,

    /// Put this net-conf.json into the store first.
    #[arg(long, value_name = "FILE", conflicts_with = "net_config_json")]
    pub net_config: Option<PathBuf>,
    /// Put this network configuration into the store first.
    #[arg(long, value_name = "JSON")]
    pub net_config_json: Option<String>,

    /// Interface that carries the tunnel; may be repeated, the first that fits is taken.
    ///
    /// Default: the one holding --public-ip, else the one of the default route.
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// IPv4 address other nodes send to [default: the interface's].
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// IPv6 address other nodes send to [default: the interface's].
    #[arg(long, value_name = "IP")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// File to write this node's subnet to, once all is in place.
    #[arg(long, value_name = "PATH", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// Minutes before a lease ends at which to renew it.
    #[arg(long, value_name = "MIN", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1439))]
    pub subnet_lease_renew_margin: u32,

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
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub without: Vec<Without>,

    /// Write the engine's counters to this file as JSON, every second and at the end.
    #[arg(long, value_name = "PATH")]
    pub counters_file: Option<PathBuf>,
}

impl RunOptions {
    /// How long before its end a lease is renewed.
    pub fn renew_margin(&self) -> Duration {
        Duration::from_secs(u64::from(self.subnet_lease_renew_margin) * 60)
    }
}

/// Something to do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Without {
    /// TCP super-packets on the TUN.
    Tso,
    /// UDP super-packets on the TUN.
    Uso,
    /// UDP_SEGMENT when sending.
    Gso,
    /// UDP_GRO when receiving.
    Gro,
    /// More than one TUN queue.
    Multiqueue,
    /// sendmmsg and recvmmsg.
    Mmsg,
    /// All of these.
    All,
}

/// Where leases live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// One file, several daemons on one machine.
    Sqlite(PathBuf),
    /// Nothing outlives the process: for trying the daemon on its own.
    Memory,
}

impl std::str::FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<StoreUrl, String> {
        match text.split_once(':') {
            Some(("sqlite", "")) => Err("sqlite: needs a path, as in sqlite:/var/lib/loden/leases.db".into()),
            Some(("sqlite", path)) => Ok(StoreUrl::Sqlite(path.into())),
            _ if text == "memory" => Ok(StoreUrl::Memory),
            _ if text.starts_with("http") || text.starts_with("etcd") || text.starts_with("kube") => {
                Err(format!("the store {text} is not supported yet; use sqlite:PATH"))
            }
            _ => Err("a store is sqlite:PATH or memory".into()),
        }
    }
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
        let run = parse(&["run", "--store", "sqlite:/tmp/l.db"]);
        assert_eq!(run.store, StoreUrl::Sqlite("/tmp/l.db".into()));
        assert_eq!(run.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(run.renew_margin(), Duration::from_secs(3600));
        assert!(run.iface.is_empty() && run.without.is_empty() && run.workers.is_none());
    }

    #[test]
    fn lists_and_repeats() {
        let run = parse(&[
            "run",
            "--store",
            "memory",
            "--iface",
            "eth0",
            "--iface",
            "10.0.0.1",
            "--without",
            "tso,gro",
        ]);
        assert_eq!(run.iface, ["eth0", "10.0.0.1"]);
        assert_eq!(run.without, [Without::Tso, Without::Gro]);
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            &["run", "--store", "memory", "--subnet-lease-renew-margin", "1440"][..],
            &["run", "--store", "memory", "--subnet-lease-renew-margin", "0"],
            &["run", "--store", "memory", "--public-ip", "::1"],
            &["run", "--store", "memory", "--without", "speed"],
            &["run", "--store", "sqlite:"],
            &["run", "--store", "http://127.0.0.1:2379"],
            &["run"],
        ] {
            let line = std::iter::once("loden").chain(bad.iter().copied());
            assert!(Options::try_parse_from(line).is_err(), "{bad:?}");
        }
    }

    fn parse(line: &[&str]) -> RunOptions {
        let line = std::iter::once("loden").chain(line.iter().copied());
        match Options::try_parse_from(line).expect("a good line").command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }
}
