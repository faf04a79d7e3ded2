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
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};

use crate::options::DemoOptions;

use interrupt::{Interrupt, Interrupted};
use progress::Progress;
use report::{HostLine, Report};
use stage::Stage;

/// What a shell reports for a process that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// Runs the demo. Exit code 1 if a pair of pods does not reach each other or a measurement fails, 130
/// after Ctrl-C; in every case nothing is left behind unless `--keep` asked for it.
///
/// Call it before the process has a second thread: without root it moves into a user namespace.
pub(crate) fn run(options: &DemoOptions) -> anyhow::Result<ExitCode> {
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

fn perform(
    options: &DemoOptions,
    own_user_namespace: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
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

    let hosts = stage.lab().hosts().iter().zip(stage.networks());
    let hosts = hosts.map(|(host, network)| HostLine::new(host, network)).collect();
    let mut report = Report::new(options, hosts, pairs, figures, problems);
    for text in stage.last_words(&report.failed_hosts()) {
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
