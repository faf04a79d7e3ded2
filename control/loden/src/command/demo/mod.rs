//! `loden demo`: builds a small cluster on this machine, measures it and removes it.
//!
//! ```text
//! stage      hosts, pods and one real `loden run` per host; removed on drop
//! trial      pings every pair, measures between the first two pods
//! report     the outcome: one table, or JSON
//! progress   progress messages on stderr
//! interrupt  Ctrl-C and SIGTERM as a flag that every wait checks
//! kept       a demo that was left running, and its removal
//! ```

mod interrupt;
mod kept;
mod progress;
mod report;
mod stage;
mod trial;

use std::fs::File;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};

use crate::options::DemoOptions;
use crate::output::{print, say};

use interrupt::{Interrupt, Interrupted};
use progress::Progress;
use report::{HostLine, Report};
use stage::Stage;

/// The exit code that a shell reports for a process ended by Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;

/// Runs the demo. The exit code is 1 if a pair of pods cannot reach each other or a measurement fails, and
/// 130 after Ctrl-C; nothing is ever left behind, except with `--keep`.
///
/// Must be called while the process has one thread: without root, it enters a user namespace.
pub(crate) fn run(options: &DemoOptions) -> anyhow::Result<ExitCode> {
    if let Some(name) = &options.remove {
        kept::remove(name)?;
        say(format_args!("removed {name}"));
        return Ok(ExitCode::SUCCESS);
    }
    if options.ipv6 && !options.backend.carries_ipv6() {
        let name = options.backend.name();
        bail!(
            "--ipv6 needs --backend vxlan, wireguard or host-gw: like flannel's, the {name} backend carries \
             IPv4 only"
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
            say("interrupted; everything removed");
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
    for text in stage.log_ends(&report.failed_hosts()) {
        say(text);
    }
    if options.keep {
        report.kept = Some(stage.keep(own_user_namespace));
    } else {
        progress.step("removing everything");
        drop(stage);
        progress.done();
    }
    let text = if options.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    print(&format!("{text}\n"))?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks for the device that every daemon needs, so that a missing one gives one error and not one per host.
fn check_tun() -> anyhow::Result<()> {
    let path = "/dev/net/tun";
    io::tun::ensure_node();
    File::options().read(true).write(true).open(path).map(drop).map_err(|error| {
        let next = match error.kind() {
            ErrorKind::PermissionDenied => "run as root, or give users access: chmod 0666 /dev/net/tun",
            _ => "load the driver: modprobe tun",
        };
        anyhow!("cannot open {path}: {error}; {next}")
    })
}
