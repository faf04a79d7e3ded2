//! What a start waits for: a store that answers, with a configuration and a lease. Giving up would only
//! make the service manager start us again.

use std::fmt::Display;
use std::time::Duration;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::{self, NetConfig};
use model::secrets::redact;
use tokio::time::sleep;

use super::DaemonError;
use crate::settings::Settings;
use store::{Store, StoreError, Wish};

/// How often to try again, as in flannel.
const RETRY: Duration = Duration::from_secs(1);

/// The configuration from the store with its text, after putting the one from the command line there.
pub(super) async fn network_config(
    store: &Store,
    settings: &Settings,
) -> Result<(String, NetConfig), DaemonError> {
    let given = settings.net_config_text()?;
    // A broken one must not reach the other nodes.
    given.as_deref().map(net_config::parse).transpose()?;
    let mut patience = Patience::default();
    let (text, config, warnings) = loop {
        match stored_config(store, given.as_deref()).await {
            Ok(Some(text)) => match net_config::parse(&text) {
                Ok((config, warnings)) => break (text, config, warnings),
                // In a cluster somebody else wrote it and can mend it.
                Err(error) if matches!(store, Store::Etcd(_)) => patience.wait(&error).await,
                Err(error) => return Err(error.into()),
            },
            Ok(None) => patience.wait(&"no network configuration in the store (--net-config sets it)").await,
            Err(error) if error.is_passing() => patience.wait(&error).await,
            Err(error) => return Err(error.into()),
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok((text, config))
}

/// Our lease.
pub(super) async fn first_lease(
    store: &Store,
    config: &NetConfig,
    attrs: LeaseAttrs,
    previous: Option<SubnetKey>,
) -> Result<Lease, StoreError> {
    let mut patience = Patience::default();
    loop {
        match store.acquire(&Wish { config, attrs: attrs.clone(), previous }).await {
            Err(error) if error.is_passing() => patience.wait(&error).await,
            outcome => return outcome,
        }
    }
}

/// What is stored after `given`, if anything, was put there.
async fn stored_config(store: &Store, given: Option<&str>) -> Result<Option<String>, StoreError> {
    let stored = store.net_config().await?;
    match given {
        Some(text) if stored.as_deref() != Some(text) => {
            if let Some(old) = &stored {
                // Nodes that run keep the old one until they restart.
                let [old, new] = [old, text].map(redact);
                tracing::warn!(old, new, "replacing the network configuration in the store");
            }
            store.set_net_config(text).await?;
            Ok(Some(text.to_owned()))
        }
        _ => Ok(stored),
    }
}

/// Once a minute is often enough to be found in a log, and seldom enough not to fill it.
const SPEAK_EVERY: u32 = 60;

/// Waits between tries and says why: at once for each new reason, then ever more seldom.
#[derive(Debug, Default)]
struct Patience {
    tries: u32,
    why: String,
}

impl Patience {
    async fn wait(&mut self, why: &dyn Display) {
        let why = why.to_string();
        if why != self.why {
            (self.tries, self.why) = (0, why);
        }
        self.tries = self.tries.saturating_add(1);
        if self.tries.is_power_of_two() || self.tries.is_multiple_of(SPEAK_EVERY) {
            tracing::error!(tries = self.tries, "waiting for the lease store: {}", self.why);
        }
        sleep(RETRY).await;
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if self.tries > 0 {
            tracing::info!("done waiting: {}", self.why);
        }
    }
}
