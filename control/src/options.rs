//! The command line, as one typed value.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, Parser, Subcommand};
use engine::Switches;

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
    /// Where leases live; all daemons of one machine may share the file.
    #[arg(long, value_name = "sqlite:PATH")]
    pub store: String,

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
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = features(), hide_possible_values = true)]
    pub without: Vec<String>,

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

fn features() -> PossibleValuesParser {
    PossibleValuesParser::new(Switches::NAMES.into_iter().chain(["all"]))
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
        assert_eq!(run.store, "sqlite:/tmp/l.db");
        assert_eq!(run.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(run.renew_margin(), Duration::from_secs(3600));
        assert!(run.iface.is_empty() && run.without.is_empty() && run.workers.is_none());
    }

    #[test]
    fn lists_and_repeats() {
        let run = parse(&[
            "run",
            "--store",
            "memory:",
            "--iface",
            "eth0",
            "--iface",
            "10.0.0.1",
            "--without",
            "tso,gro",
        ]);
        assert_eq!(run.iface, ["eth0", "10.0.0.1"]);
        assert_eq!(run.without, ["tso", "gro"]);
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            &["run", "--store", "memory:", "--subnet-lease-renew-margin", "1440"][..],
            &["run", "--store", "memory:", "--subnet-lease-renew-margin", "0"],
            &["run", "--store", "memory:", "--public-ip", "::1"],
            &["run", "--store", "memory:", "--without", "speed"],
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
