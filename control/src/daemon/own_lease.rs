//! Our own lease: what the watch says of it, when to ask the store, and what the answers mean.

use std::time::Duration;

use model::lease::SubnetKey;
use tokio::time::Instant;

use super::store_request::Answer;
use super::{DaemonError, Next, Node, unix_now, wait_for_store};
use crate::plan;
use crate::settings::Settings;
use store::lease::ledger::Own;
use store::lease::renewal::Step;
use store::{Holder, Owned, StoreError, Wish};

/// Longest sleep before the wall clock is asked again whether a lease is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

impl Node {
    /// Takes in what an event said about our lease.
    pub(super) fn handle_own(&mut self, change: Own) -> Result<(), DaemonError> {
        // What is stored is from before the run: the confirmation under way will write it anew.
        if !self.confirmed {
            return Ok(());
        }
        match change {
            Own::Unchanged => {}
            Own::Removed => {
                tracing::warn!(lease = %self.own.key(), "our lease was removed from the store; taking it again");
                self.removed_meanwhile = !self.store_request.is_idle();
                self.renewal.handle_lost();
            }
            Own::Written => {
                let Some(stored) = self.ledger.own() else { return Ok(()) };
                let holder = |wished| self.store.holder(wished, stored);
                if self.former.as_ref().map(holder) == Some(Holder::Us)
                    || self.store_request.wrote(&self.store, stored)
                {
                    return Ok(());
                }
                check_still_ours(self.own.key(), holder(&self.own.wished))?;
                self.own.published = stored.clone();
                self.renewal.handle_renewed(stored, unix_now());
            }
        }
        Ok(())
    }

    /// When the store is to be asked; never while an answer is awaited.
    pub(super) fn next_request(&self) -> Option<Instant> {
        if !self.store_request.is_idle() {
            return None;
        }
        let now = unix_now();
        match self.renewal.poll(now) {
            // Expiries are points of the wall clock, which may jump while a sleep runs on.
            Step::Sleep(due) => due
                .map(|due| Instant::now() + Duration::from_secs(due.saturating_sub(now)).min(LONGEST_SLEEP)),
            Step::Renew | Step::Acquire => Some(Instant::now()),
        }
    }

    /// Asks the store for what is due.
    pub(super) fn ask(&mut self) {
        let (store, board, own) = (self.store.clone(), self.board.clone(), self.own.clone());
        let wished = own.wished.clone();
        match self.renewal.poll(unix_now()) {
            Step::Sleep(_) => {}
            Step::Renew => self
                .store_request
                .ask(wished, async move { Answer::Renewed(board.timed("renew", store.renew(&own)).await) }),
            Step::Acquire => {
                let config = self.context.config.clone();
                self.store_request.ask(wished, async move {
                    let previous = Some(own.key());
                    let wish = Wish { config: &config, attrs: own.wished, previous };
                    Answer::Acquired(board.timed("acquire", store.acquire(&wish)).await)
                });
            }
        }
    }

    /// After a start from memory: asks for the configuration and for our lease until the store answers.
    pub(super) fn ask_to_confirm(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        let (store, board, settings) = (self.store.clone(), self.board.clone(), settings.clone());
        let (config, key) = (self.context.config.clone(), self.own.key());
        let attrs = plan::outline(&self.context)?.attrs;
        self.store_request.ask(attrs.clone(), async move {
            match wait_for_store::network_config(&store, &settings).await {
                Ok((_, stored)) if stored != config => return Answer::Reconfigured,
                Ok(_) => {}
                Err(error) => return Answer::Confirmed(Err(error)),
            }
            let lease = wait_for_store::first_lease(&store, &config, attrs, Some(key));
            Answer::Confirmed(board.timed("acquire", lease).await.map_err(DaemonError::from))
        });
        Ok(())
    }

    /// Takes in an answer of the store.
    pub(super) async fn take(&mut self, answer: Answer) -> Result<Next, DaemonError> {
        let key = self.own.key();
        match answer {
            Answer::Reconfigured => {
                tracing::warn!("the network configuration is not what it was: starting anew");
                return Ok(Next::Anew);
            }
            Answer::Confirmed(lease) => {
                let lease = lease?;
                if lease.key() != key {
                    tracing::warn!(was = %key, now = %lease.key(), "the store gave us another subnet: starting anew");
                    return Ok(Next::Anew);
                }
                tracing::info!(lease = %key, "the store has confirmed what we remembered");
                self.confirmed = true;
                self.keep(lease);
            }
            Answer::Renewed(Ok(lease)) => self.keep(lease),
            Answer::Acquired(Ok(lease)) if lease.key() == key => self.keep(lease),
            Answer::Acquired(Ok(other)) => {
                // Pods already have addresses of the old subnet: only a restart can change it.
                let _ = self.store.remove(&other.key()).await;
                return Err(lost(key, "another node took the subnet; restart to get a new one"));
            }
            Answer::Acquired(Err(StoreError::OutOfSubnets(error))) => {
                return Err(lost(key, &error.to_string()));
            }
            Answer::Renewed(Err(StoreError::Lost { why, .. })) => {
                tracing::warn!(lease = %key, why, "our lease is no longer ours; trying to take it again");
                self.renewal.handle_lost();
            }
            Answer::Renewed(Err(error)) | Answer::Acquired(Err(error)) => {
                tracing::warn!("cannot renew our lease, trying again in a minute: {error}");
                self.renewal.handle_failure(unix_now());
            }
            Answer::Published(result) => self.take_published(result),
        }
        Ok(Next::GoOn)
    }

    /// Our lease as it was just written to the store.
    pub(super) fn keep(&mut self, own: Owned) {
        tracing::info!(lease = %own.key(), "lease renewed");
        self.renewal.handle_renewed(&own.published, unix_now());
        self.board.set_own(&own.published);
        let before = std::mem::replace(&mut self.own, own).wished;
        if before != self.own.wished {
            self.former = Some(before);
        }
        // A start from memory needs to know that it is still good.
        self.memory.keep(&self.plan, &self.own, self.ledger.peers());
        if std::mem::take(&mut self.removed_meanwhile) {
            self.renewal.handle_lost();
        }
    }
}

/// Two daemons that publish one address would take the lease from each other for ever, so the one that
/// finds itself replaced gives up.
fn check_still_ours(key: SubnetKey, holder: Holder) -> Result<(), DaemonError> {
    match holder {
        Holder::Us => Ok(()),
        Holder::Rival => {
            Err(lost(key, "another daemon publishes the same address; give each its own --public-ip"))
        }
        Holder::Stranger => Err(lost(key, "another node took the subnet; restart to get a new one")),
    }
}

fn lost(lease: SubnetKey, why: &str) -> DaemonError {
    DaemonError::LeaseLost { lease, why: why.to_owned() }
}
