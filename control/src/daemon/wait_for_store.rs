//! What a start waits for: a store that answers, with a configuration and a lease. Giving up would only make
//! the service manager start the daemon again.

use std::fmt::Display;
use std::time::Duration;

use model::lease::{Lease, LeaseAttrs};
use model::net_config::NetConfig;
use tokio::time::sleep;

use super::error::DaemonError;
use crate::persist::disk;
use crate::settings::{NetConfigFileError, Settings};
use store::{Owned, Store, StoreError, Wish};

/// The time between two attempts, as in flannel.
const RETRY: Duration = Duration::from_secs(1);

/// What to go by while the store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The store alone: an error that only a person can mend ends the start.
    Store,
    /// The memory, from which the node forwards: every error of the store may pass.
    Memory,
}

impl Trust {
    fn waits_for(self, error: &StoreError) -> bool {
        // Where no subnet is left, another node has ours.
        error.is_passing() || (self == Trust::Memory && !matches!(error, StoreError::OutOfSubnets(_)))
    }
}

/// Waits for the network configuration, after putting the one from the command line into the store. Returns
/// its text as well.
pub(super) async fn network_config(
    store: &Store,
    settings: &Settings,
    trust: Trust,
) -> Result<(String, NetConfig), DaemonError> {
    let known = settings.clone();
    let given = disk::once(move || known.net_config_text())
        .await
        .unwrap_or_else(|error| Err(NetConfigFileError::unanswered(settings, error)))?;
    let mut patience = Patience::default();
    let network = loop {
        match store.network(given.as_deref()).await {
            Err(error) if trust.waits_for(&error) => patience.wait(&error).await,
            outcome => break outcome?,
        }
    };
    for warning in network.warnings {
        tracing::warn!("{warning}");
    }
    Ok((network.text, network.config))
}

/// Waits for the lease that this node has published before, if any.
pub(super) async fn published(store: &Store, attrs: &LeaseAttrs) -> Result<Option<Lease>, StoreError> {
    let mut patience = Patience::default();
    loop {
        match store.published(attrs).await {
            Err(error) if error.is_passing() => patience.wait(&error).await,
            outcome => return outcome,
        }
    }
}

/// Waits for our lease.
pub(super) async fn first_lease(store: &Store, wish: &Wish<'_>, trust: Trust) -> Result<Owned, StoreError> {
    let mut patience = Patience::default();
    loop {
        match store.acquire(wish).await {
            Err(error) if trust.waits_for(&error) => patience.wait(&error).await,
            outcome => return outcome,
        }
    }
}

/// Reports to the store that this node is ready. A failure is logged and ends nothing.
pub(super) async fn announce_ready(store: &Store) {
    let mut patience = Patience::default();
    loop {
        match store.announce_ready().await {
            Ok(()) => return,
            Err(error) if error.is_passing() => patience.wait(&error).await,
            Err(error) => {
                return tracing::error!("cannot report this node as ready to the lease store: {error}");
            }
        }
    }
}

/// Attempts between two log lines: once a minute is often enough to be found, and seldom enough not to fill
/// the log.
const LOG_EVERY: u32 = 60;

/// Waits between attempts and logs why: at once for each new reason, then less and less often.
#[derive(Debug, Default)]
struct Patience {
    tries: u32,
    why: String,
}

impl Patience {
    async fn wait(&mut self, why: &impl Display) {
        let why = why.to_string();
        if why != self.why {
            (self.tries, self.why) = (0, why);
        }
        self.tries = self.tries.saturating_add(1);
        if self.tries.is_power_of_two() || self.tries.is_multiple_of(LOG_EVERY) {
            tracing::error!(tries = self.tries, "waiting for the lease store: {}", self.why);
        }
        sleep(RETRY).await;
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if self.tries > 0 {
            tracing::info!("resolved: {}", self.why);
        }
    }
}
