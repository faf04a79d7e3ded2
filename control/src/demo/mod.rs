//! `loden demo`: a small cluster on this machine, from nothing to figures and back to nothing.
//!
//! ```text
//! stage      hosts, pods and one real `loden run` per host; gone when its value is dropped
//! trial      pings every pair, measures between the first two pods
//! report     what came out: one table, or JSON
//! progress   what is going on, on stderr
//! interrupt  Ctrl-C and SIGTERM as a question that every wait asks
//! kept       a demo that was left up, and how to remove it
//! ```

mod interrupt;
mod kept;
mod progress;
mod report;
mod stage;
mod trial;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;

use interrupt::{Interrupt, Interrupted};
use progress::Progress;
use report::Report;
use stage::Stage;

/// What a shell reports for a process that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// `loden demo`.
#[derive(Clone, Debug, Args)]
pub struct Options {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
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
    fn name(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::Udp => "udp",
            Backend::Ipip => "ipip",
            Backend::Wireguard => "wireguard",
            Backend::HostGw => "host-gw",
        }
    }

    fn carries_ipv6(self) -> bool {
        matches!(self, Backend::Vxlan | Backend::HostGw | Backend::Wireguard)
    }
}

/// Runs the demo. Exit code 1 if a pair of pods does not reach each other or a measurement fails, 130
/// after Ctrl-C; in every case nothing is left behind unless `--keep` asked for it.
///
/// Call it before the process has a second thread: without root it moves into a user namespace.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if let Some(name) = &options.remove {
        kept::remove(name)?;
        eprintln!("{name} is removed");
        return Ok(ExitCode::SUCCESS);
    }
    if options.ipv6 && !options.backend.carries_ipv6() {
        let name = options.backend.name();
        bail!(
            "--ipv6 needs --backend vxlan, wireguard or host-gw: the {name} backend carries IPv4 only, as flannel's"
        );
    }
    let own_user_namespace = !lab::userns::privileged();
    if own_user_namespace {
        lab::userns::enter()?;
    }
    check_tun()?;
    let interrupt = Interrupt::watch()?;
    match perform(options, own_user_namespace, &interrupt) {
        Err(error) if error.is::<Interrupted>() || error.is::<load::Error>() && interrupt.requested() => {
            eprintln!("interrupted; everything is removed");
            Ok(ExitCode::from(EXIT_INTERRUPTED))
        }
        outcome => outcome,
    }
}

fn perform(options: &Options, own_user_namespace: bool, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let mut stage = Stage::build(options, &progress, interrupt)?;
    stage.describe(own_user_namespace)?;
    stage.start_daemons(options, &progress, interrupt)?;
    stage.describe(own_user_namespace)?;
    stage.connect_pods(&progress, interrupt)?;
    let pairs = trial::ping_pairs(stage.lab(), &progress, interrupt)?;
    let (figures, problems) = if pairs.iter().all(|pair| pair.round_trip_us.is_some()) {
        trial::measure(stage.lab(), Duration::from_secs(options.seconds.into()), &progress, interrupt)?
    } else {
        (Vec::new(), Vec::new())
    };
    progress.done();

    let mut report = Report::new(options, &stage, pairs, figures, problems);
    for text in stage.blame(&report) {
        eprintln!("{text}");
    }
    if options.keep {
        report.kept = Some(stage.keep(own_user_namespace));
    } else {
        progress.step("removing everything");
        drop(stage);
        progress.done();
    }
    let text = if options.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Without this device no daemon can start: better one line now than one from each host.
fn check_tun() -> anyhow::Result<()> {
    let path = "/dev/net/tun";
    File::options().read(true).write(true).open(path).map(drop).map_err(|error| {
        let next = match error.kind() {
            ErrorKind::PermissionDenied => "run as root, or let users have it: chmod 0666 /dev/net/tun",
            _ => "load the driver: modprobe tun",
        };
        anyhow!("open {path}: {error}; {next}")
    })
}
