//! Starts the engine with the features that the settings allow and the self-test has seen working.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::selftest::{self, Outcome};
use engine::{Chosen, Engine, Switches, TunnelConfig, WaitPolicy, wireguard};
use path::{Fib, Format};

use crate::apply::engine::{self as tables, Numbers};
use crate::cgroup::CpuLimits;
use crate::persist::remembered::Remembered;
use crate::plan::{Context, Outline, Tunnel, TunnelOutline};
use crate::settings::Settings;

/// Source ports, which the workers share: enough for a peer's receive queues to share the load.
const FAN: u16 = 16;

/// Opens devices and sockets and starts the workers, with the tables of `planned`, or empty ones where
/// nothing is planned yet. New devices are down. Returns the engine, and the numbers of the peers in its
/// tables for the [`Applier`](crate::apply::Applier).
pub(super) fn open(
    settings: &Settings,
    context: &Context,
    outline: &Outline,
    planned: &[Tunnel],
    memory: &mut Remembered,
) -> Result<(Arc<Engine>, Vec<Numbers>), engine::Error> {
    if !outline.tunnels.is_empty() {
        engine::ensure_node();
    }
    let switches = switches(settings, outline, memory);
    let config = engine::EngineConfig {
        workers: settings.workers.count.map_or(0, usize::from),
        queues: 0,
        memory: settings.workers.queue_memory.unwrap_or(0),
        pin: settings.workers.pin,
        realtime: settings.workers.realtime,
        wait: settings
            .workers
            .spin
            .map_or_else(WaitPolicy::default, |spin| WaitPolicy { spin, ..WaitPolicy::default() }),
        switches,
    };
    let opened = outline.tunnels.iter().enumerate();
    let (tunnels, numbers): (Vec<TunnelConfig>, _) =
        opened.map(|(index, outline)| tunnel(context, outline, planned.get(index))).unzip();
    let engine = Arc::new(Engine::start(&config, &tunnels)?);
    engine.chosen().for_each(|chosen| log_chosen(&chosen));
    if engine.chosen().any(|chosen| !chosen.limited) {
        tracing::warn!(
            "TUN queues are limited in packets, not in bytes: a pod that sends large packets as fast as it \
             can takes more kernel memory and harms its neighbours; grant CAP_BPF (Linux 5.5 or later)"
        );
    }
    if let Some(shortage) = engine.shortage() {
        tracing::warn!("{shortage}");
    }
    log_scheduling(&engine);
    Ok((engine, numbers))
}

/// Keeps the devices after this process ends.
pub(super) fn keep(engine: &Engine) {
    if let Err(error) = engine.keep_devices() {
        tracing::warn!(%error, "cannot keep the devices: they and their routes go when this process ends");
    }
}

/// Chooses the kernel features to use: those that the settings allow and the self-test has seen working. The
/// test takes a good part of a start and holds until the next boot, so a restart remembers its result.
fn switches(settings: &Settings, outline: &Outline, memory: &mut Remembered) -> Switches {
    let wanted = without(&settings.workers.without);
    if outline.tunnels.is_empty() {
        return wanted;
    }
    if let Some(off) = memory.tested(&settings.workers.without) {
        return without(off);
    }
    let switches = tested(wanted);
    let off = switches.named().into_iter().filter(|(_, on)| !on).map(|(name, _)| name.to_owned());
    memory.set_tested(&settings.workers.without, off.collect());
    switches
}

/// Switches on all features but these.
fn without(names: &[String]) -> Switches {
    let mut switches = Switches::default();
    for name in names {
        // The command line lets only known names through; an unknown one in the memory means nothing.
        let _ = switches.switch_off(name);
    }
    switches
}

fn tested(wanted: Switches) -> Switches {
    let report = selftest::run(&wanted);
    for check in &report.checks {
        match &check.outcome {
            Outcome::Works => tracing::debug!(feature = check.feature, "self-test: {} works", check.what),
            Outcome::Broken(why) => {
                tracing::warn!(
                    feature = check.feature,
                    "self-test: {} does not work here, disabled: {why}",
                    check.what
                );
            }
            Outcome::Untested(why) => {
                tracing::info!(feature = check.feature, "self-test: {} was not tested: {why}", check.what);
            }
        }
    }
    report.choose(wanted)
}

fn tunnel(context: &Context, outline: &TunnelOutline, planned: Option<&Tunnel>) -> (TunnelConfig, Numbers) {
    let mut numbers = Numbers::default();
    let peers = planned.map(|tunnel| tables::sealed_peers(tunnel, &mut numbers)).unwrap_or_default();
    // Peers that make no table are reported when the plan is applied, which also adds the host's addresses.
    let table = planned.and_then(|tunnel| tables::build(tunnel, &mut numbers, &BTreeSet::new()).ok());
    let sealed = outline.format == Format::Wireguard;
    let config = TunnelConfig {
        device: outline.device.clone(),
        // A restart finds the device with its routes; until then packets vanish instead of being rejected.
        persist: true,
        listen: outline.listen,
        listen_besides: outline.listen_besides.clone(),
        send_from: outline.send_from,
        table: Arc::new(table.unwrap_or_else(|| Fib::empty(outline.format))),
        mtu: outline.mtu,
        fan: FAN,
        wireguard: context
            .private_key
            .clone()
            .filter(|_| sealed)
            .map(|private| wireguard::Settings { private, peers }),
    };
    (config, numbers)
}

/// Logs once what the scheduler grants the workers, which all ask for the same, and what their control group
/// takes away.
fn log_scheduling(engine: &Engine) {
    let Some(granted) = engine.attention().next() else { return };
    let refused = granted.refused.join("; ");
    tracing::info!(%granted, refused, limits = %CpuLimits::read(), "scheduling of the workers");
}

fn log_chosen(chosen: &Chosen) {
    let names = |on| {
        let named = chosen.features.named().into_iter().filter(move |named| named.1 == on);
        named.map(|named| named.0).collect::<Vec<_>>().join(",")
    };
    let (with, without) = (names(true), names(false));
    let why = chosen.notes.join("; ");
    tracing::info!(device = %chosen.device, workers = chosen.workers, with, without, why, "datapath");
}
