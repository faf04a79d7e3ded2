//! What a node decides: events in, actions out, without a clock, a store or a kernel.
//!
//! [`Reconciler`] is level-triggered. Whatever happens changes an input of the plan or the time of the next
//! comparison, and the actions that follow bring the host and the store to what the inputs ask for.
//!
//! ```text
//! inputs      all that the plan is made of; nothing of it changes without a new plan
//! own_lease   when to ask the store for our lease, and what it says of it
//! wishes      what we have wished to publish in this run
//! uplink      when another interface, address or MTU is taken up
//! pace        how soon a change of the peers is acted on
//! schedule    when the whole host is compared with the plan
//! ```

mod end;
mod inputs;
mod own_lease;
mod pace;
mod request;
mod schedule;
mod uplink;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use model::lease::{Lease, LeaseAttrs};
use store::lease::Holder;
use store::{Event, Kind};

pub(crate) use self::end::End;
pub(crate) use self::inputs::Inputs;
pub(crate) use self::own_lease::OwnLease;
pub(crate) use self::request::{Answer, Request};
pub(crate) use store::Now;

use self::pace::Pace;
use self::schedule::Schedule;
use self::uplink::{Move, Uplink};
use crate::plan::{Plan, PlanError};
use crate::underlay::Underlay;
use crate::underlay::reach::Reach;

/// What is to be done next.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Start a request to the store beside the loop; [`Reconciler::handle_answer`] takes the answer.
    Ask(Box<Request>),
    /// Show and write down our own lease, which has changed.
    RecordLease,
    /// Look at the host's interfaces; [`Reconciler::handle_uplink`] takes what is seen.
    LookAtUplink,
    /// Close the tunnels and open them as outlined, with the tables of this plan;
    /// [`Reconciler::handle_opened`] takes the result.
    Reopen(Arc<Plan>),
    /// Ask the kernel for the ways to the peers; [`Reconciler::handle_reach`] takes them.
    LookAtWays,
    /// Bring the host to the plan; [`Reconciler::handle_applied`] takes the result.
    Apply(Arc<Plan>),
}

/// How the host is after a plan was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostState {
    /// Wholly as planned.
    AsPlanned,
    /// Something could not be done.
    Different,
    /// A tunnel's device was removed.
    DeviceGone,
}

/// One thing to do, in the order in which they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    RecordLease,
    LookAtUplink,
    Reopen,
    LookAtWays,
    Apply,
}

/// Decides what a node does. Feed it events by `handle_*` as they come; carry out what
/// [`Reconciler::poll_action`] returns until it returns none; wait for an event, but not beyond
/// [`Reconciler::poll_timeout`].
#[derive(Debug)]
pub(crate) struct Reconciler {
    inputs: Inputs,
    own: OwnLease,
    uplink: Uplink,
    pace: Pace,
    schedule: Schedule,
    /// Why the ways to the peers are unknown.
    ways_problem: Option<String>,
    /// What is to be done before the next event.
    steps: BTreeSet<Step>,
    /// The tunnels were opened again in this round because a device was gone.
    reopened: bool,
}

impl Reconciler {
    /// For a node whose datapath stands.
    pub(crate) fn new(inputs: Inputs, own: OwnLease, now: Instant) -> Reconciler {
        Reconciler {
            inputs,
            own,
            uplink: Uplink::default(),
            pace: Pace::new(now),
            schedule: Schedule::new(now),
            ways_problem: None,
            steps: BTreeSet::new(),
            reopened: false,
        }
    }

    /// Returns what everything is made of.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Tells whether events of the watch may come. What the store shows before it has confirmed the
    /// configuration may be an empty store, which a restore is still to fill.
    pub(crate) fn wants_events(&self) -> bool {
        self.own.is_confirmed()
    }

    /// Returns the next thing to do, if anything is due.
    pub(crate) fn poll_action(&mut self, now: Now) -> Result<Option<Action>, PlanError> {
        self.inputs.expire(now.instant);
        let (wished, config) = (&self.inputs.outline().attrs, &self.inputs.context().config);
        if let Some(request) = self.own.poll_request(self.inputs.own(), wished, config, now) {
            return Ok(Some(Action::Ask(Box::new(request))));
        }
        if self.schedule.poll(now.instant) {
            self.steps.insert(Step::LookAtUplink);
            self.begin_round();
        }
        if self.changes_due().is_some_and(|due| due <= now.instant) && !self.steps.contains(&Step::Apply) {
            self.pace.begin(now.instant);
            self.begin_round();
        }
        let Some(step) = self.steps.pop_first() else { return Ok(None) };
        Ok(Some(match step {
            Step::RecordLease => Action::RecordLease,
            Step::LookAtUplink => Action::LookAtUplink,
            Step::Reopen => Action::Reopen(self.inputs.take_plan()?),
            Step::LookAtWays => Action::LookAtWays,
            Step::Apply => Action::Apply(self.inputs.take_plan()?),
        }))
    }

    /// Returns when to poll for an action again, if nothing happens before.
    pub(crate) fn poll_timeout(&self, now: Now) -> Instant {
        let request = self.own.poll_timeout(now);
        let others = [request, self.changes_due(), self.inputs.next_expiry()];
        others.into_iter().flatten().fold(self.schedule.poll_timeout(), Instant::min)
    }

    /// Takes in one event of the watch. `holder` tells by a wish of ours whose lease a stored one is.
    pub(crate) fn handle_event(
        &mut self,
        event: Event,
        holder: impl Fn(&LeaseAttrs, &Lease) -> Holder,
        now: Now,
    ) -> Result<(), End> {
        let own = self.inputs.handle_event(event, now);
        let stored = self.inputs.stored();
        let own = self.own.handle_event(own, stored, self.inputs.own(), holder, now)?;
        if let Some(own) = own
            && self.inputs.set_own(own, now.instant)
        {
            self.steps.insert(Step::RecordLease);
        }
        Ok(())
    }

    /// Takes in an answer of the store.
    pub(crate) fn handle_answer(
        &mut self,
        answer: Answer,
        holder: impl Fn(&LeaseAttrs, &Lease) -> Holder,
        now: Now,
    ) -> Result<(), End> {
        if let Some(own) = self.own.handle_answer(answer, self.inputs.own(), holder, now)? {
            self.inputs.set_own(own, now.instant);
            self.steps.insert(Step::RecordLease);
        }
        Ok(())
    }

    /// Tells whether a report of a change of the host would bring the next comparison nearer.
    pub(crate) fn wants_reports(&self) -> bool {
        self.schedule.wants_reports()
    }

    /// The kernel reported a change of the host.
    pub(crate) fn handle_report(&mut self, now: Now) {
        self.schedule.handle_report(now.instant);
    }

    /// Something on the host is not as planned.
    pub(crate) fn handle_difference(&mut self, now: Now) {
        self.schedule.ask_again(now.instant);
    }

    /// Takes in the uplink as it was seen, or why it is unusable.
    pub(crate) fn handle_uplink(&mut self, seen: Result<Underlay, String>, now: Now) {
        match self.uplink.handle_look(seen, &self.inputs.context().underlay, now.instant) {
            Move::Stay => {}
            Move::Reopen => _ = self.steps.insert(Step::Reopen),
            Move::TakeUp(underlay) => match self.inputs.set_underlay(underlay, now.instant) {
                Ok(other_tunnels) => {
                    let Underlay { interface, mtu, .. } = &self.inputs.context().underlay;
                    let attrs = self.inputs.outline().attrs.to_json();
                    tracing::info!(%interface, mtu, attrs, "the uplink has changed");
                    if other_tunnels || self.uplink.is_closed() {
                        self.steps.insert(Step::Reopen);
                    }
                }
                Err(error) => self.uplink.refuse(&error.to_string()),
            },
        }
        self.own.publish(self.inputs.own(), &self.inputs.outline().attrs);
    }

    /// Takes in whether the tunnels could be opened, after the old ones were closed.
    pub(crate) fn handle_opened(&mut self, result: Result<(), String>) {
        self.uplink.handle_opened(result);
    }

    /// Takes in the ways to the peers, or why they are unknown: then the last ones count.
    pub(crate) fn handle_reach(&mut self, reach: Result<Reach, String>, now: Now) {
        match reach {
            Ok(reach) => {
                self.inputs.set_reach(reach, now.instant);
                self.ways_problem = None;
            }
            Err(problem) => self.ways_problem = Some(problem),
        }
    }

    /// Takes in what applying the plan came to; returns false if it is tried once more at once, with tunnels
    /// that are opened again.
    pub(crate) fn handle_applied(&mut self, state: HostState, now: Now) -> bool {
        if state == HostState::DeviceGone && !std::mem::replace(&mut self.reopened, true) {
            self.steps.extend([Step::Reopen, Step::Apply]);
            return false;
        }
        self.reopened = false;
        self.pace.end(now.instant);
        let compared = self.schedule.end(now.instant);
        let unknown = state != HostState::AsPlanned || self.ways_problem.is_some();
        if unknown || (compared && !self.is_settled()) {
            self.schedule.ask_again(now.instant);
        }
        if let Some(when) = self.uplink.next_look(now.instant) {
            self.schedule.ask_at(when);
        }
        true
    }

    /// Returns what the last comparison could not do besides changing the host, one sentence each.
    pub(crate) fn problems(&self) -> BTreeMap<Kind, String> {
        let problems = [
            ("uplink", self.uplink.problem()),
            ("unpublished", self.own.problem()),
            ("ways", self.ways_problem.as_deref()),
        ];
        let known = problems.into_iter().filter_map(|(class, problem)| Some((class, problem?)));
        known.map(|(class, text)| (Kind::new(class).of_text(text), text.to_owned())).collect()
    }

    /// A plan depends on ways only where peers are routed to directly.
    fn begin_round(&mut self) {
        self.steps.extend(self.inputs.context().routes_directly().then_some(Step::LookAtWays));
        self.steps.insert(Step::Apply);
    }

    /// Tells whether the next comparison is not expected to have anything to do.
    fn is_settled(&self) -> bool {
        let published = self.inputs.own().wished == self.inputs.outline().attrs;
        published && !self.uplink.is_closed() && self.problems().is_empty()
    }

    fn changes_due(&self) -> Option<Instant> {
        self.inputs.changed_since().map(|changed| self.pace.due(changed))
    }
}

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
