//! The command line as typed values; the only modules that know clap.
//!
//! The options of each subcommand have a file here, and its work a module of the same name in
//! [`crate::command`].

mod cleanup;
mod demo;
mod doctor;
mod generate;
mod groups;
mod install_cni;
mod load;
mod mk_docker_opts;
mod run;
mod status;
mod version;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{ArgAction, Args, Parser, Subcommand};

pub(crate) use cleanup::CleanupOptions;
pub(crate) use demo::{Backend, DemoOptions};
pub(crate) use doctor::DoctorOptions;
pub(crate) use generate::{CompletionsOptions, ManualOptions};
pub(crate) use groups::{HealthOptions, TrafficOptions};
pub(crate) use install_cni::{InstallCniOptions, InstallConfOptions, PLUGIN};
pub(crate) use load::{LoadMode, LoadOptions, Times};
pub(crate) use mk_docker_opts::DockerOptsOptions;
pub(crate) use run::{BadMargin, RunOptions};
pub(crate) use status::StatusOptions;
pub(crate) use version::VersionOptions;

/// An overlay network compatible with flannel whose datapath runs in userspace.
#[derive(Debug, Parser)]
#[command(name = "loden", version, propagate_version = true, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
    /// Log more to stderr; repeat it to log everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join this host to the network: take a subnet, open the tunnel, forward until stopped.
    Run(Box<RunOptions>),
    /// Run with flanneld's command line, as when the binary is called `flanneld`.
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Flanneld(FlanneldOptions),
    /// Build two hosts on this machine, connect them, measure, and remove everything again.
    Demo(DemoOptions),
    /// Show the state of this host's daemons: lease, peers, offloads, drops, and what they created here.
    Status(StatusOptions),
    /// Remove what a daemon created on this host and left behind.
    Cleanup(CleanupOptions),
    /// Report what this kernel and container allow, what would be used, and how to close each gap.
    Doctor(DoctorOptions),
    /// Install the CNI plugin and its configuration where container runtimes look for them.
    InstallCni(InstallCniOptions),
    /// Copy one CNI configuration into place, atomically and with its mode, like flannel's install-conf.
    InstallConf(InstallConfOptions),
    /// Write dockerd's network options from this node's subnet file, like flannel's mk-docker-opts.sh.
    MkDockerOpts(DockerOptsOptions),
    /// Print version, commit, target, C library and what is in this build.
    Version(VersionOptions),
    /// Print completions for a shell.
    Completions(CompletionsOptions),
    /// Write the manual pages.
    #[command(hide = true)]
    Manual(ManualOptions),
    /// Generate load and print the measurements as JSON.
    #[command(hide = true)]
    Load(LoadOptions),
}

/// The options of `loden flanneld`: everything after the name, for [`crate::flanneld`] to parse.
#[derive(Clone, Debug, Args)]
pub(crate) struct FlanneldOptions {
    /// The arguments of flanneld.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Tells whether the program was started under one of these names, in any directory.
pub(crate) fn is_called(program: Option<&OsStr>, names: &[&str]) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| names.iter().any(|known| name == *known))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
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
        let mut command = CommandLine::command();
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
            assert!(CommandLine::try_parse_from(line).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flanneld_gets_its_arguments_as_they_are() {
        let line = ["loden", "flanneld", "-iface=eth0", "--", "-h", "--version"];
        match CommandLine::try_parse_from(line).expect("a good line").command {
            Command::Flanneld(flanneld) => assert_eq!(flanneld.arguments.last(), Some(&"--version".into())),
            other => panic!("{other:?}"),
        }
    }

    fn parse(line: &[&str]) -> RunOptions {
        let line = std::iter::once("loden").chain(line.iter().copied());
        match CommandLine::try_parse_from(line).expect("a good line").command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }
}
