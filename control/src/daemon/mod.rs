//! `loden run`: puts the parts of a node together, in order, and takes them apart again.
//!
//! ```text
//! endpoints     the instance's name, probes, metrics, status socket: from the first moment on
//! start         brings a node up: wait_for_store, context, datapath, extension, traffic
//! reconciler    decides what a node does, without a clock, a store or a kernel
//! node          carries it out: store_request, look, host, report
//! ```
//!
//! A stop ends the workers and leaves the rest for the next start, as flannel does: devices with their
//! routes, rules, lease, `subnet.env`.

mod context;
mod datapath;
mod endpoints;
mod error;
mod extension;
mod host;
mod look;
mod node;
mod reconciler;
mod report;
mod signals;
mod start;
mod store_request;
mod traffic;
mod wait_for_store;

use sd_notify::NotifyState;
use tokio::signal::unix::SignalKind;

pub use self::error::DaemonError;

use self::endpoints::Endpoints;
use self::signals::Signals;
use self::start::{Origin, start};
use crate::serve::board::Phase;
use crate::settings::Settings;

/// Runs the daemon until a signal stops it. A second signal ends it at once.
pub async fn run(settings: &Settings) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    // Before anything that may take long: a probe must not mistake a slow store for a hung daemon.
    let endpoints = Endpoints::open(settings).await?;
    let result = tokio::select! {
        result = live(settings, &endpoints, &mut signals) => result,
        error = endpoints.keep() => Err(error),
    };
    signals.or_second(endpoints.close()).await;
    result
}

/// Starts a node and keeps it, and starts another from the store where the first one's memory was wrong.
async fn live(settings: &Settings, endpoints: &Endpoints, signals: &mut Signals) -> Result<(), DaemonError> {
    let mut log_counters = signals::listen(SignalKind::user_defined1())?;
    let mut from = Origin::Memory;
    let (node, result) = loop {
        let mut node = tokio::select! {
            node = start(settings, endpoints, from) => node?,
            signal = signals.received() => {
                tracing::info!(signal, "stopping");
                return Ok(());
            }
        };
        notify(&[NotifyState::Ready]);
        tokio::select! {
            ended = node.serve(&mut log_counters) => match ended {
                Ok(()) => node.stop().await,
                Err(error) => break (node, Err(error)),
            },
            signal = signals.received() => {
                tracing::info!(signal, "stopping");
                break (node, Ok(()));
            }
        }
        from = Origin::Store;
    };
    notify(&[NotifyState::Stopping]);
    endpoints.board.set_phase(Phase::Stopping);
    signals.or_second(node.stop()).await;
    result
}

/// Tells systemd, where it has asked for that.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd; NOTIFY_SOCKET names no socket that listens");
    }
}
