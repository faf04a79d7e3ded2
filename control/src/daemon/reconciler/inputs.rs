//! Everything that the plan is made of, with the plan.
//!
//! The fields are private and every function that changes one marks the plan as stale, so no input can change
//! without a new plan: [`Inputs::changed_since`] says that one is due, [`Inputs::take_plan`] makes it.

use std::sync::Arc;
use std::time::Instant;

use crate::plan::{self, Context, Outline, Plan, PlanError};
use crate::underlay::Underlay;
use crate::underlay::reach::Reach;
use model::lease::Lease;
use store::lease::Owned;
use store::lease::ledger::{LeaseSet, Ledger, Own};
use store::{Event, Now, Position};

/// The inputs of the plan.
#[derive(Debug)]
pub(crate) struct Inputs {
    context: Context,
    outline: Outline,
    own: Owned,
    ledger: Ledger,
    /// The plan that was taken last.
    plan: Option<Arc<Plan>>,
    /// When the first change came that `plan` does not contain.
    changed: Option<Instant>,
}

impl Inputs {
    /// Collects the first inputs. Fails where `context` allows no tunnels.
    pub(crate) fn new(
        context: Context,
        own: Owned,
        ledger: Ledger,
        now: Instant,
    ) -> Result<Inputs, PlanError> {
        let outline = plan::outline(&context)?;
        Ok(Inputs { context, outline, own, ledger, plan: None, changed: Some(now) })
    }

    /// Takes up another uplink; returns true if other tunnels have to be opened for it. An uplink that cannot
    /// carry the tunnels is refused, and all stays as it is.
    pub(crate) fn set_underlay(&mut self, underlay: Underlay, now: Instant) -> Result<bool, PlanError> {
        let context = Context { underlay, ..self.context.clone() };
        let outline = plan::outline(&context)?;
        let other_tunnels = outline.tunnels != self.outline.tunnels;
        (self.context, self.outline) = (context, outline);
        self.mark_stale(now);
        Ok(other_tunnels)
    }

    /// Takes in the ways to the peers.
    pub(crate) fn set_reach(&mut self, reach: Reach, now: Instant) {
        if self.context.reach != reach {
            self.context.reach = reach;
            self.mark_stale(now);
        }
    }

    /// Takes in our own lease as it is now; returns true if peers see something else of it than before. The
    /// expiry and the wish are no part of the plan.
    pub(crate) fn set_own(&mut self, own: Owned, now: Instant) -> bool {
        let seen = |own: &Owned| (own.published.key, own.published.attrs.clone());
        let changed = seen(&own) != seen(&self.own);
        self.own = own;
        if changed {
            self.mark_stale(now);
        }
        changed
    }

    /// Takes in one event of the watch; returns what became of our own lease.
    pub(crate) fn handle_event(&mut self, event: Event, now: Now) -> Own {
        let change = self.ledger.handle(event, now);
        if change.peers {
            self.mark_stale(now.instant);
        }
        change.own
    }

    /// Lets peers go whose leases have been gone for long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.ledger.expire(now) {
            self.mark_stale(now);
        }
    }

    /// Returns when the next peer goes whose lease is gone.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.ledger.next_expiry()
    }

    /// Returns when the first change came that the last plan does not contain.
    pub(crate) fn changed_since(&self) -> Option<Instant> {
        self.changed
    }

    /// Returns the plan of the inputs as they are now. Whoever takes it applies it.
    pub(crate) fn take_plan(&mut self) -> Result<Arc<Plan>, PlanError> {
        let plan = match &self.plan {
            Some(plan) if self.changed.is_none() => Arc::clone(plan),
            _ => Arc::new(plan::plan(&self.context, &self.own.published, self.ledger.peers())?),
        };
        (self.plan, self.changed) = (Some(Arc::clone(&plan)), None);
        Ok(plan)
    }

    /// Returns what the plan is made of besides leases.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the tunnels to open and what to publish about them.
    pub(crate) fn outline(&self) -> &Outline {
        &self.outline
    }

    /// Returns our own lease.
    pub(crate) fn own(&self) -> &Owned {
        &self.own
    }

    /// Returns our own lease as the watch last showed it.
    pub(crate) fn stored(&self) -> Option<&Lease> {
        self.ledger.own()
    }

    /// Returns the leases of all other nodes.
    pub(crate) fn peers(&self) -> &LeaseSet {
        self.ledger.peers()
    }

    /// Returns the leases of other nodes that the next run has to know.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = &Lease> {
        self.ledger.lasting()
    }

    #[cfg(test)]
    pub(super) fn has_lost(&self) -> bool {
        self.ledger.has_lost()
    }

    /// Returns the position for the next run's watch, given that of this one.
    pub(crate) fn position(&self, read: Option<Position>) -> Option<Position> {
        read.map(|read| if self.ledger.has_lost() { read.ahead() } else { read })
    }

    fn mark_stale(&mut self, now: Instant) {
        self.changed.get_or_insert(now);
    }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
