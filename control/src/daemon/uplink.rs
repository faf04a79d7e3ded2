//! Follows the uplink: an interface, address or MTU that has changed is taken up without a restart.
//!
//! Tunnels are bound to an address and made for an MTU, so they are opened anew when those change; the
//! lease's attributes follow in the store. While the uplink is unusable the node stays as it is: what was
//! right may be right again in a moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::Handle;
use tokio::time::Instant;

use super::store_request::Answer;
use super::{DaemonError, Node, datapath, underlay_wish};
use crate::plan::{self, Context, Outline};
use crate::settings::Settings;
use crate::underlay::select::{self, SelectError};
use crate::underlay::{self, Underlay};
use store::{Owned, StoreError};

/// How long a changed uplink has to be there before it is taken up.
const LASTING: Duration = Duration::from_secs(1);

/// What the follower remembers between two looks.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    /// The tunnels that could not be opened the last time.
    closed: bool,
    /// The store does not have our attributes as they are now.
    behind: bool,
    /// An uplink that was seen for the first time at this moment, and that is not taken up yet.
    candidate: Option<(Underlay, Instant)>,
    /// Why the store does not have our attributes as they are now.
    unpublished: Option<String>,
    /// What could not be done, as said already.
    said: BTreeSet<String>,
}

impl Uplink {
    /// When to look again whether a changed uplink is still there.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.candidate.as_ref().map(|(_, since)| *since + LASTING)
    }

    /// Whether the next look is not expected to have anything to do.
    pub(super) fn is_settled(&self) -> bool {
        !self.closed && !self.behind && self.said.is_empty()
    }
}

impl Node {
    /// Looks at the uplink; `true` if the plan has to be made anew.
    pub(super) async fn follow_uplink(&mut self, settings: &Settings) -> Result<bool, DaemonError> {
        let mut problems = BTreeSet::new();
        let mut changed = false;
        match look(self.applier.netlink(), settings, &self.context).await {
            Ok(underlay) if underlay != self.context.underlay && !self.is_lasting(&underlay) => {}
            Ok(underlay) if underlay != self.context.underlay => {
                match self.take_up(underlay, settings).await {
                    Ok(()) => changed = true,
                    Err(problem) => _ = problems.insert(problem),
                }
            }
            Ok(_) if self.uplink.closed => {
                self.uplink.candidate = None;
                let outline = plan::outline(&self.context)?;
                match self.reopen(&outline, settings).await {
                    Ok(()) => changed = true,
                    Err(problem) => _ = problems.insert(problem),
                }
            }
            Ok(_) => self.uplink.candidate = None,
            Err(problem) => _ = problems.insert(problem),
        }
        problems.extend(self.republish());
        for problem in problems.difference(&self.uplink.said) {
            tracing::warn!("{problem}; it is tried again and again");
        }
        self.uplink.said = problems;
        Ok(changed)
    }

    /// Whether it was the same a while ago. An address that moves, or a route that is replaced, is away for a moment,
    /// and what is there instead is not to be published.
    fn is_lasting(&mut self, seen: &Underlay) -> bool {
        let now = Instant::now();
        match &self.uplink.candidate {
            Some((candidate, since)) if candidate == seen && now >= *since + LASTING => {
                self.uplink.candidate = None;
                true
            }
            candidate => {
                let since = candidate
                    .as_ref()
                    .filter(|(candidate, _)| candidate == seen)
                    .map_or(now, |(_, since)| *since);
                self.uplink.candidate = Some((seen.clone(), since));
                false
            }
        }
    }

    async fn take_up(&mut self, underlay: Underlay, settings: &Settings) -> Result<(), String> {
        let before = plan::outline(&self.context).map_err(|error| error.to_string())?;
        let context = Context { underlay, ..self.context.clone() };
        let outline = plan::outline(&context).map_err(|error| format!("the uplink has changed: {error}"))?;
        let Underlay { interface, mtu, .. } = &context.underlay;
        let attrs = outline.attrs.to_json();
        tracing::info!(%interface, mtu, attrs, "the uplink has changed");
        self.board.set_underlay(&context.underlay);
        self.context = context;
        if outline.tunnels != before.tunnels || self.uplink.closed {
            self.reopen(&outline, settings).await?;
        }
        Ok(())
    }

    /// Closes the tunnels and opens them as outlined.
    pub(super) async fn reopen(&mut self, outline: &Outline, settings: &Settings) -> Result<(), String> {
        let engine = Arc::clone(&self.engine);
        // Joining threads blocks.
        let _ = tokio::task::spawn_blocking(move || engine.stop()).await;
        self.uplink.closed = true;
        let planned = plan::plan(&self.context, &self.own.published, self.ledger.peers());
        let tunnels = planned.map(|plan| plan.tunnels).unwrap_or_default();
        let switches = datapath::switches(settings, outline, &mut self.memory);
        let (engine, numbers) = datapath::start(settings, &self.context, outline, &tunnels, switches)
            .map_err(|error| format!("cannot open the tunnels anew: {error}"))?;
        datapath::keep(&engine);
        self.uplink.closed = false;
        self.engine = engine;
        self.board.set_engine(&self.engine);
        self.applier.begin_anew(numbers);
        Ok(())
    }

    /// Brings the stored attributes of our lease up to date, unless a request is under way; says what has kept it
    /// from that.
    fn republish(&mut self) -> Option<String> {
        let attrs = match plan::outline(&self.context) {
            Ok(outline) => outline.attrs,
            Err(error) => return Some(error.to_string()),
        };
        self.uplink.behind = attrs != self.own.wished;
        if !self.uplink.behind {
            self.uplink.unpublished = None;
        } else if self.store_request.is_idle() {
            let (store, own, wanted) = (self.store.clone(), self.own.clone(), attrs.clone());
            self.store_request
                .ask(attrs, async move { Answer::Published(store.update(&own, &wanted).await) });
        }
        self.uplink.unpublished.clone()
    }

    /// Takes in what publishing came to.
    pub(super) fn take_published(&mut self, result: Result<Owned, StoreError>) {
        self.uplink.unpublished = match result {
            Ok(own) => {
                let attrs = own.published.attrs.to_json();
                tracing::info!(lease = %own.key(), attrs, "published what has changed");
                self.keep(own);
                None
            }
            Err(StoreError::Lost { why, .. }) => {
                self.renewal.handle_lost();
                Some(format!("our lease {} is no longer ours: {why}", self.own.key()))
            }
            Err(error) => Some(format!("cannot publish the changed uplink: {error}")),
        };
    }
}

async fn look(netlink: &Handle, settings: &Settings, context: &Context) -> Result<Underlay, String> {
    let observed = underlay::observe(netlink, settings.uplink.can_reach).await.map_err(|e| e.to_string())?;
    select::select(&observed, &underlay_wish(settings, &context.config))
        .map_err(|error: SelectError| format!("the uplink is not usable, going on as before: {error}"))
}
