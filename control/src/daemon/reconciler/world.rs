//! A host, a store and a clock that are no more than values, at the edges of the machine that the daemon
//! runs.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use store::lease::ledger::{LeaseSet, Ledger};
use store::lease::{Holder, Owned};
use store::{Event, StoreError};

use super::testing::*;
use super::{Action, Answer, End, HostState, Inputs, Now, OwnLease, Reconciler, Request};
use crate::plan::{self, Context, Plan, TunnelOutline};
use crate::underlay::Underlay;
use crate::underlay::reach::{Reach, Way};

/// The host, the store and the time, and the node between them.
pub(super) struct World {
    began: Now,
    pub(super) now: Now,
    pub(super) node: Reconciler,
    pub(super) store: FakeStore,
    pub(super) host: FakeHost,
    /// The request under way.
    pub(super) request: Option<Request>,
    /// What the store has answered, on its way.
    pub(super) answer: Option<Answer>,
    /// Our lease as it was last shown and written down.
    pub(super) recorded: Option<Owned>,
}

/// Leases, and what was written about them and not read yet.
pub(super) struct FakeStore {
    pub(super) rows: BTreeMap<SubnetKey, Lease>,
    pub(super) events: VecDeque<Event>,
    /// Leases belong to nodes, not to addresses.
    pub(super) by_node: bool,
    /// The public address that an administrator has put in the place of ours.
    pub(super) overwrite: Option<u8>,
    pub(super) down: bool,
    /// How many times the node has written.
    pub(super) writes: usize,
}

/// What the node finds, and what it has made of it.
pub(super) struct FakeHost {
    pub(super) uplink: Result<Underlay, String>,
    /// Which peers are neighbours.
    pub(super) routes: u8,
    pub(super) cannot_open: bool,
    pub(super) cannot_apply: bool,
    /// The kernel does not say which way leads to a peer.
    pub(super) silent: bool,
    pub(super) device_gone: bool,
    pub(super) opened: Vec<TunnelOutline>,
    pub(super) applied: Option<Arc<Plan>>,
    /// How many plans were applied.
    pub(super) applications: usize,
}

impl World {
    /// A node that has just started with our lease, from memory or from the store.
    pub(super) fn new(by_node: bool, remembered: bool) -> World {
        let now = start();
        let own = owned(1, None, now.unix + DAY);
        let context = context(underlay(1, 1500));
        let opened = plan::outline(&context).expect("an outline").tunnels;
        let mut ledger = Ledger::new(Some(own.key()));
        ledger.handle(Event::Snapshot(vec![own.published.clone()]), now);
        let inputs = Inputs::new(context, own.clone(), ledger, now.instant).expect("inputs");
        let start = if remembered { OwnLease::remembered } else { OwnLease::acquired };
        let lease = start(&own, HOUR, now);
        let mut world = World {
            began: now,
            now,
            node: Reconciler::new(inputs, lease, now.instant),
            store: FakeStore {
                rows: BTreeMap::from([(own.key(), own.published)]),
                events: VecDeque::new(),
                by_node,
                overwrite: None,
                down: false,
                writes: 0,
            },
            host: FakeHost {
                uplink: Ok(underlay(1, 1500)),
                routes: 0,
                cannot_open: false,
                cannot_apply: false,
                silent: false,
                device_gone: false,
                opened,
                applied: None,
                applications: 0,
            },
            request: None,
            answer: None,
            recorded: None,
        };
        world.wait(Duration::from_secs(1));
        world
    }

    /// Carries out what is due, as the daemon's loop does.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.node.poll_action(self.now).expect("a plan") {
            match action {
                Action::Ask(request) => {
                    assert!(self.request.is_none() && self.answer.is_none(), "one request at a time");
                    self.request = Some(*request);
                }
                Action::RecordLease => self.recorded = Some(self.node.inputs().own().clone()),
                Action::LookAtUplink => self.node.handle_uplink(self.host.uplink.clone(), self.now),
                Action::Reopen(_) => {
                    let result = self.host.open(&self.node.inputs().outline().tunnels);
                    self.node.handle_opened(result);
                }
                Action::LookAtWays => {
                    let inputs = self.node.inputs();
                    let reach = self.host.reach(&inputs.context().underlay, inputs.peers());
                    let silent = self.host.silent.then(|| "no answer".to_owned());
                    self.node.handle_reach(silent.map_or(Ok(reach), Err), self.now);
                }
                Action::Apply(plan) => {
                    let applied = self.host.apply(plan);
                    self.node.handle_applied(applied, self.now);
                }
            }
        }
    }

    /// Lets time pass; the node acts whenever it has asked to.
    pub(super) fn wait(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now.instant < until.instant {
            self.act();
            let next = self.node.poll_timeout(self.now).min(until.instant);
            assert!(next > self.now.instant, "a wait without an end");
            self.sleep(next);
        }
        self.act();
    }

    /// Lets time pass while nobody acts, as in a suspended machine.
    pub(super) fn sleep(&mut self, until: Instant) {
        let passed = until.saturating_duration_since(self.began.instant);
        self.now = Now { instant: until, unix: self.began.unix + passed.as_secs() };
        self.store.expire(self.now.unix);
    }

    /// The request under way reaches the store, which acts on it.
    pub(super) fn serve(&mut self) {
        if let Some(request) = self.request.take() {
            self.answer = Some(self.store.serve(request, self.now.unix));
        }
    }

    /// An answer on its way arrives, or gets lost.
    pub(super) fn answer(&mut self, lost: bool) -> Result<(), End> {
        let Some(mut answer) = self.answer.take() else { return Ok(()) };
        if lost {
            answer = match answer {
                Answer::Renewed(_) => Answer::Renewed(Err(unreachable())),
                Answer::Acquired(_) => Answer::Acquired(Err(unreachable())),
                Answer::Published(_) => Answer::Published(Err(unreachable())),
                confirmation => confirmation,
            };
        }
        self.node.handle_answer(answer, self.store.rule(), self.now)
    }

    /// Events arrive, `most` at most.
    pub(super) fn deliver(&mut self, most: usize) -> Result<(), End> {
        for _ in 0..most {
            if !self.node.wants_events() {
                return Ok(());
            }
            let Some(event) = self.store.events.pop_front() else { return Ok(()) };
            self.node.handle_event(event, self.store.rule(), self.now)?;
        }
        Ok(())
    }

    /// What a node that knows all of the world would have to make of it.
    pub(super) fn expected(&self) -> (Context, Plan) {
        let underlay = self.host.uplink.clone().expect("a usable uplink");
        let own = &self.store.rows[&key(1)];
        let peers: LeaseSet = self.store.rows.values().filter(|row| row.key != own.key).cloned().collect();
        let reach = self.host.reach(&underlay, &peers);
        let context = Context { reach, ..context(underlay) };
        let plan = plan::plan(&context, own, &peers).expect("a plan");
        (context, plan)
    }
}

impl FakeStore {
    /// Writes a lease, as its holder or an administrator does.
    pub(super) fn put(&mut self, lease: Lease) {
        self.rows.insert(lease.key, lease.clone());
        self.events.push_back(Event::Put(lease));
    }

    pub(super) fn remove(&mut self, key: SubnetKey) {
        if self.rows.remove(&key).is_some() {
            self.events.push_back(Event::Removed(key));
        }
    }

    /// The watch begins again with all that is there.
    pub(super) fn list(&mut self) {
        self.events.clear();
        self.events.push_back(Event::Snapshot(self.rows.values().cloned().collect()));
    }

    fn expire(&mut self, now: u64) {
        let over = |lease: &&Lease| lease.expires.is_some_and(|expires| expires <= now);
        let gone: Vec<SubnetKey> = self.rows.values().filter(over).map(|lease| lease.key).collect();
        gone.into_iter().for_each(|key| self.remove(key));
    }

    fn serve(&mut self, request: Request, now: u64) -> Answer {
        match request {
            // Confirming goes on until the store answers.
            Request::Confirm { wished, key, .. } => Answer::Confirmed(Ok(self.acquire(wished, key, now))),
            Request::Acquire { wished, key, give_back, .. } => Answer::Acquired(self.reached().map(|()| {
                give_back.into_iter().for_each(|key| self.remove(key));
                self.acquire(wished, key, now)
            })),
            Request::Renew(own) => {
                let wished = own.wished.clone();
                Answer::Renewed(self.reached().and_then(|()| self.update(&own, wished, now)))
            }
            Request::Publish { own, wished } => {
                Answer::Published(self.reached().and_then(|()| self.update(&own, wished, now)))
            }
        }
    }

    fn reached(&self) -> Result<(), StoreError> {
        if self.down { Err(unreachable()) } else { Ok(()) }
    }

    fn acquire(&mut self, wished: LeaseAttrs, key: SubnetKey, now: u64) -> Owned {
        let holder = self.rows.get(&key).map(|row| self.rule()(&wished, row));
        // A rival at our address is the node itself in an earlier run.
        let key = if holder == Some(Holder::Stranger) { super::testing::key(9) } else { key };
        self.write(key, wished, now)
    }

    fn update(&mut self, own: &Owned, wished: LeaseAttrs, now: u64) -> Result<Owned, StoreError> {
        let lost = |why| Err(StoreError::Lost { key: own.key().to_string(), why });
        match self.rows.get(&own.key()) {
            None => lost("it ran out or was removed"),
            Some(row) if self.rule()(&own.wished, row) != Holder::Us => lost("another node wrote to it"),
            Some(_) => Ok(self.write(own.key(), wished, now)),
        }
    }

    fn write(&mut self, key: SubnetKey, wished: LeaseAttrs, now: u64) -> Owned {
        let public_ip = self.overwrite.map_or(wished.public_ip, address);
        let attrs = LeaseAttrs { public_ip, ..wished.clone() };
        let published = Lease { key, attrs, expires: Some(now + DAY) };
        self.put(published.clone());
        self.writes += 1;
        Owned { published, wished }
    }

    /// Whose a lease is.
    fn rule(&self) -> fn(&LeaseAttrs, &Lease) -> Holder {
        if self.by_node { by_node } else { by_address }
    }
}

impl FakeHost {
    fn open(&mut self, tunnels: &[TunnelOutline]) -> Result<(), String> {
        self.opened.clear();
        if self.cannot_open {
            return Err("no descriptors left".into());
        }
        self.device_gone = false;
        self.opened = tunnels.to_vec();
        Ok(())
    }

    fn apply(&mut self, plan: Arc<Plan>) -> HostState {
        self.applications += 1;
        if self.device_gone {
            return HostState::DeviceGone;
        }
        if self.cannot_apply {
            return HostState::Different;
        }
        self.applied = Some(plan);
        HostState::AsPlanned
    }

    /// Neighbours are those whose address, the uplink's and the host's routes make an even sum.
    fn reach(&self, underlay: &Underlay, peers: &LeaseSet) -> Reach {
        let own = underlay.ipv4.map_or(0, |ends| ends.local.octets()[3]);
        let way = |host: u8| match (u32::from(host) + u32::from(own) + u32::from(self.routes)) % 2 {
            0 => Way::OnLink,
            _ => Way::Gateway(IpAddr::V4(address(254))),
        };
        let addresses = peers.iter().map(|lease| lease.attrs.public_ip);
        addresses.map(|ip| (IpAddr::V4(ip), way(ip.octets()[3]))).collect()
    }
}
