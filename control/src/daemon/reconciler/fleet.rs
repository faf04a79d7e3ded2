//! Several nodes on one store that is wiped, restored, locked, slow or cut off, under a clock that is only a
//! value: traffic between two nodes that live never stops, no two of them hold one subnet, and a node that
//! does not see the store says so.
//!
//! One thing can break that: a new node gets the subnet of one that lives, and that cannot put its lease
//! back into a store that has lost it. Then one of the two ends as soon as it sees the other's lease, and
//! says why. A backup has the same effect if it gives the subnet of one that lives to one that has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::lease::{Lease, SubnetKey};
use model::net_config;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use store::lease::allocator;
use store::lease::ledger::{LeaseSet, Ledger};
use store::lease::{Holder, Owned};
use store::{Event, StoreError, Wish};

use super::testing::*;
use super::{Action, Answer, End, HostState, Inputs, Now, OwnLease, Reconciler, Request};
use crate::daemon::error::DaemonError;
use crate::plan::Plan;
use crate::underlay::reach::Reach;

/// New nodes get one of these few subnets, so that they often get one that is in use.
const FEW: &str =
    r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.6.0","Backend":{"Type":"vxlan"}}"#;

/// The public addresses of the nodes, of which the first two are there from the start.
const HOSTS: [u8; 4] = [11, 12, 13, 14];

/// One thing that happens to a node or to the store.
#[derive(Clone, Debug)]
enum Happening {
    /// The store loses all, or all but the configuration.
    Wipe {
        configured: bool,
    },
    Backup,
    Restore,
    Configure,
    /// Nobody can use the store.
    Lock(bool),
    /// One node cannot reach it.
    Cut(usize, bool),
    /// A request arrives at the store, which carries it out.
    Serve(usize),
    Answered {
        node: usize,
        lost: bool,
    },
    /// The watch catches up.
    Watch(usize),
    Restart(usize),
    Join(usize),
    Wait(Duration),
}

use Happening::*;

#[derive(Clone, Default)]
struct Contents {
    configured: bool,
    rows: BTreeMap<SubnetKey, Lease>,
    /// All changes, oldest first.
    log: Vec<Event>,
}

struct Store {
    contents: Contents,
    /// Another number after each wipe and each restore.
    history: u64,
    backup: Contents,
    locked: bool,
}

/// What a node has read: the history, and how much of its log.
type Position = (u64, usize);

struct Node {
    host: u8,
    reconciler: Reconciler,
    request: Option<Request>,
    answer: Option<Answer>,
    applied: Option<Arc<Plan>>,
    /// What the watch of this run has read, and what that of the run before has.
    seen: Option<Position>,
    before: Option<Position>,
    cut: bool,
}

struct Fleet {
    now: Now,
    store: Store,
    nodes: BTreeMap<usize, Node>,
    /// Pairs of nodes of which the first has sent to the second.
    flows: BTreeSet<(usize, usize)>,
    /// Pairs of nodes of which the second has got the first one's subnet.
    contested: BTreeSet<(usize, usize)>,
}

impl Store {
    fn put(&mut self, lease: &Lease) {
        self.contents.rows.insert(lease.key, lease.clone());
        self.contents.log.push(Event::Put(lease.clone()));
    }

    fn remove(&mut self, key: SubnetKey) {
        if self.contents.rows.remove(&key).is_some() {
            self.contents.log.push(Event::Removed(key));
        }
    }

    fn replace(&mut self, contents: Contents) {
        self.contents = contents;
        self.history += 1;
    }

    fn acquire(&mut self, wish: &Wish<'_>, now: u64) -> Result<Owned, StoreError> {
        let leases: Vec<Lease> = self.contents.rows.values().cloned().collect();
        let mut random = StdRng::seed_from_u64(self.history + leases.len() as u64);
        let decision = allocator::decide(wish, &leases, &[], &mut random)?;
        decision.remove.into_iter().for_each(|key| self.remove(key));
        let lease = Lease { key: decision.key, attrs: wish.attrs.clone(), expires: Some(now + DAY) };
        self.put(&lease);
        Ok(Owned::as_wished(lease))
    }

    fn renew(&mut self, own: &Owned, now: u64) -> Result<Owned, StoreError> {
        match self.contents.rows.get(&own.key()) {
            Some(row) if row.attrs == own.wished => {
                let lease = Lease { expires: Some(now + DAY), ..own.published.clone() };
                self.put(&lease);
                Ok(Owned::as_wished(lease))
            }
            _ => Err(StoreError::Lost { key: own.key().to_string(), why: "it expired or was removed" }),
        }
    }

    fn is_held_by(&self, node: &Node) -> bool {
        let row = self.contents.rows.get(&node.own().key());
        row.is_some_and(|row| by_address(&node.own().wished, row) == Holder::Us)
    }

    fn is_held_by_another(&self, node: &Node) -> bool {
        let row = self.contents.rows.get(&node.own().key());
        row.is_some_and(|row| by_address(&node.own().wished, row) != Holder::Us)
    }

    /// Carries out a request; none while it cannot answer at all.
    fn serve(&mut self, request: &Request, reached: bool, now: u64) -> Option<Answer> {
        let reached = reached && !self.locked;
        let unreached = || Err(unreachable());
        Some(match request {
            // This one is repeated until the store answers.
            Request::Confirm { .. } if !reached || !self.contents.configured => return None,
            Request::Confirm { config, wished, key } => {
                let wish = Wish { config, attrs: wished.clone(), previous: Some(*key), former: None };
                Answer::Confirmed(self.acquire(&wish, now).map_err(Into::into))
            }
            Request::Renew(_) if !reached => Answer::Renewed(unreached()),
            Request::Renew(own) => Answer::Renewed(self.renew(own, now)),
            Request::Acquire { .. } if !reached => Answer::Acquired(unreached()),
            Request::Acquire { config, wished, key, give_back } => {
                give_back.iter().for_each(|key| self.remove(*key));
                let wish = Wish { config, attrs: wished.clone(), previous: Some(*key), former: None };
                Answer::Acquired(self.acquire(&wish, now))
            }
            Request::Publish { .. } => panic!("no uplink changes"),
        })
    }
}

impl Node {
    /// A node that starts with a lease: a new one, or one that it remembers.
    fn start(host: u8, own: Owned, peers: Vec<Lease>, remembered: bool, now: Now) -> Node {
        let mut ledger = Ledger::new(Some(own.key()));
        ledger.handle(Event::Snapshot(peers), now);
        let lease = if remembered { OwnLease::remembered } else { OwnLease::acquired };
        let lease = lease(&own, HOUR, now);
        let inputs = Inputs::new(context(underlay(host, 1500)), own, ledger, now.instant).expect("inputs");
        let reconciler = Reconciler::new(inputs, lease, now.instant);
        let (request, answer, applied) = (None, None, None);
        let mut node =
            Node { host, reconciler, request, answer, applied, seen: None, before: None, cut: false };
        // The start itself applies the first plan.
        node.applied = Some(node.reconciler.inputs.take_plan().expect("a plan"));
        node
    }

    fn act(&mut self, now: Now) {
        while let Some(action) = self.reconciler.poll_action(now).expect("a plan") {
            match action {
                Action::Ask(request) => self.request = Some(*request),
                Action::RecordLease => {}
                Action::LookAtUplink => self.reconciler.handle_uplink(Ok(underlay(self.host, 1500)), now),
                Action::LookAtWays => self.reconciler.handle_reach(Ok(Reach::new()), now),
                Action::Apply(plan) => {
                    self.applied = Some(plan);
                    self.reconciler.handle_applied(HostState::AsPlanned, now);
                }
                Action::Reopen(_) => panic!("no device is removed"),
            }
        }
    }

    /// The watch reads what it has not read yet.
    fn watch(&mut self, store: &Store, now: Now) -> Result<(), End> {
        if !self.reconciler.wants_events() || self.cut || store.locked {
            return Ok(());
        }
        let rows = || store.contents.rows.values().cloned().collect();
        let here = (store.history, store.contents.log.len());
        let events: Vec<Event> = match self.seen {
            Some((history, read)) if history == here.0 => store.contents.log[read..].to_vec(),
            Some(_) => vec![Event::Rewind(rows())],
            None if self.before.is_some_and(|(history, _)| history != here.0) => vec![Event::Rewind(rows())],
            None => vec![Event::Snapshot(rows())],
        };
        self.seen = Some(here);
        events.into_iter().try_for_each(|event| self.reconciler.handle_event(event, by_address, now))
    }

    /// Tells whether the node knows of the store what there is to know, or shows that it does not: a watch
    /// that is not read from, or that fails, is blind.
    fn sees_or_is_blind(&self, store: &Store) -> bool {
        let blind = !self.reconciler.wants_events() || self.cut || store.locked;
        blind || self.seen == Some((store.history, store.contents.log.len()))
    }

    fn own(&self) -> &Owned {
        self.reconciler.inputs().own()
    }

    fn sends_to(&self, other: &Node) -> bool {
        let (subnet, remote) = (other.own().key().ipv4(), IpAddr::V4(address(other.host)));
        let peers = self.applied.iter().flat_map(|plan| &plan.tunnels).flat_map(|tunnel| &tunnel.peers);
        peers.into_iter().any(|peer| {
            Some(peer.subnet) == subnet.map(ipnetwork::IpNetwork::V4) && peer.remote.ip() == remote
        })
    }
}

impl Fleet {
    fn new() -> Fleet {
        let contents = Contents { configured: true, ..Contents::default() };
        let store = Store { backup: contents.clone(), contents, history: 0, locked: false };
        let (flows, contested) = (BTreeSet::new(), BTreeSet::new());
        let mut fleet = Fleet { now: start(), store, nodes: BTreeMap::new(), flows, contested };
        fleet.join(0);
        fleet.store.backup = fleet.store.contents.clone();
        fleet.join(1);
        fleet.settle(10);
        fleet
    }

    /// A new node gets a lease.
    fn join(&mut self, index: usize) {
        self.join_with(index, FEW);
    }

    fn join_with(&mut self, index: usize, config: &str) {
        let closed = self.store.locked || !self.store.contents.configured;
        if closed || self.nodes.contains_key(&index) {
            return;
        }
        let (config, _) = net_config::parse(config).expect("a good configuration");
        let wish = Wish { config: &config, attrs: wish(HOSTS[index]), previous: None, former: None };
        // A store that was restored may have leases of nodes that have ended.
        let Ok(own) = self.store.acquire(&wish, self.now.unix) else { return };
        let holders = self.nodes.iter().filter(|(_, node)| node.own().key().overlaps(&own.key()));
        let holders: Vec<usize> = holders.map(|(holder, _)| *holder).collect();
        for holder in holders {
            assert!(!self.store.is_held_by(&self.nodes[&holder]), "{index} gets what {holder} has");
            self.contested.insert((holder, index));
        }
        let node = Node::start(HOSTS[index], own, Vec::new(), false, self.now);
        self.nodes.insert(index, node);
    }

    fn restart(&mut self, index: usize) {
        let Some(node) = self.nodes.remove(&index) else { return };
        let peers: Vec<Lease> = node.reconciler.inputs().lasting().cloned().collect();
        let mut next = Node::start(node.host, node.own().clone(), peers, true, self.now);
        // As `Inputs::position` has it: no history is this one.
        let lost = node.reconciler.inputs.has_lost();
        let read = node.seen.map(|(history, read)| if lost { (u64::MAX, read) } else { (history, read) });
        (next.before, next.cut) = (read.or(node.before), node.cut);
        self.nodes.insert(index, next);
    }

    /// A node that has ended takes its flows along. It has only ended because its subnet is another node's,
    /// and says so.
    fn end(&mut self, index: usize, end: End) {
        if let End::Failed { error, .. } = end {
            assert!(matches!(*error, DaemonError::LeaseLost { .. }), "{index}: {error}");
        }
        self.nodes.remove(&index);
        self.flows.retain(|(from, to)| *from != index && *to != index);
        self.contested.retain(|(holder, newcomer)| *holder != index && *newcomer != index);
    }

    fn is_contested(&self, index: usize) -> bool {
        let by_a_node = self.contested.iter().any(|(holder, newcomer)| [*holder, *newcomer].contains(&index));
        by_a_node || self.nodes.get(&index).is_some_and(|node| self.store.is_held_by_another(node))
    }

    fn happen(&mut self, happening: &Happening) {
        let now = self.now;
        match happening {
            Wipe { configured } => {
                self.store.replace(Contents { configured: *configured, ..Contents::default() })
            }
            Backup => self.store.backup = self.store.contents.clone(),
            Restore => self.store.replace(self.store.backup.clone()),
            Configure => self.store.contents.configured = true,
            Lock(so) => self.store.locked = *so,
            Wait(time) => self.wait(*time),
            Restart(index) => self.restart(*index),
            Join(index) => self.join(*index),
            Cut(index, so) => {
                if let Some(node) = self.nodes.get_mut(index) {
                    node.cut = *so;
                }
            }
            Serve(index) => {
                if let Some(node) = self.nodes.get_mut(index)
                    && let Some(request) = node.request.take()
                {
                    node.answer = self.store.serve(&request, !node.cut, now.unix);
                    node.request = node.answer.is_none().then_some(request);
                }
            }
            Answered { node: index, lost } => {
                let Some(node) = self.nodes.get_mut(index) else { return };
                let Some(answer) = node.answer.take() else { return };
                let answer = match answer {
                    Answer::Renewed(_) if *lost => Answer::Renewed(Err(unreachable())),
                    Answer::Acquired(_) if *lost => Answer::Acquired(Err(unreachable())),
                    answer => answer,
                };
                if let Err(end) = node.reconciler.handle_answer(answer, by_address, now) {
                    self.end(*index, end);
                }
            }
            Watch(index) => {
                let store = &self.store;
                if let Some(Err(end)) = self.nodes.get_mut(index).map(|node| node.watch(store, now)) {
                    self.end(*index, end);
                }
            }
        }
        self.nodes.values_mut().for_each(|node| node.act(now));
        self.check();
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now.instant < until.instant {
            let now = self.now;
            self.nodes.values_mut().for_each(|node| node.act(now));
            let next = self.nodes.values().map(|node| node.reconciler.poll_timeout(now));
            let next = next.min().map_or(until.instant, |next: Instant| next.min(until.instant));
            self.now = now.after(next.saturating_duration_since(now.instant).max(Duration::from_millis(1)));
            self.check();
        }
        self.now.unix = until.unix;
    }

    /// All that is under way arrives for this many seconds.
    fn settle(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for index in 0..HOSTS.len() {
                for happening in [Serve(index), Answered { node: index, lost: false }, Watch(index)] {
                    self.happen(&happening);
                }
            }
            self.happen(&Wait(Duration::from_secs(1)));
        }
    }

    fn heal(&mut self) {
        self.happen(&Lock(false));
        self.happen(&Configure);
        (0..HOSTS.len()).for_each(|index| self.happen(&Cut(index, false)));
        self.settle(150);
    }

    /// What holds at any time.
    fn check(&mut self) {
        for (from, one) in &self.nodes {
            for (to, other) in self.nodes.iter().filter(|(to, _)| *to != from) {
                if self.is_contested(*to) {
                    // Packets go to whichever of the two is known.
                    self.flows.remove(&(*from, *to));
                    continue;
                }
                assert!(
                    !one.own().key().overlaps(&other.own().key()),
                    "{from} and {to}: {}",
                    one.own().key()
                );
                match one.sends_to(other) {
                    true => _ = self.flows.insert((*from, *to)),
                    false => assert!(!self.flows.contains(&(*from, *to)), "{from} no longer sends to {to}"),
                }
            }
        }
    }

    /// What holds in the end, besides.
    fn check_settled(&self) {
        assert_eq!(self.contested, BTreeSet::new(), "one of each two has ended");
        let held: LeaseSet = self.store.contents.rows.values().cloned().collect();
        for (index, node) in &self.nodes {
            let stored = held.get(&node.own().key()).expect("the lease is back in the store");
            assert_eq!(by_address(&node.own().wished, stored), Holder::Us, "{index}");
            assert!(node.reconciler.wants_events() && node.sees_or_is_blind(&self.store), "{index}");
            for (to, other) in self.nodes.iter().filter(|(to, _)| *to != index) {
                assert!(node.sends_to(other), "{index} sends to {to}");
            }
        }
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let node = || 0..HOSTS.len();
    prop_oneof![
        2 => any::<bool>().prop_map(|configured| Wipe { configured }),
        1 => Just(Backup),
        2 => Just(Restore),
        2 => Just(Configure),
        2 => any::<bool>().prop_map(Lock),
        2 => (node(), any::<bool>()).prop_map(|(node, so)| Cut(node, so)),
        8 => node().prop_map(Serve),
        8 => (node(), prop::bool::weighted(0.2)).prop_map(|(node, lost)| Answered { node, lost }),
        8 => node().prop_map(Watch),
        2 => node().prop_map(Restart),
        2 => node().prop_map(Join),
        6 => (1..40_u64).prop_map(|halves| Wait(Duration::from_millis(halves * 500))),
    ]
}

proptest! {
    #[test]
    fn traffic_goes_on_over_any_sequence_of_store_faults(
        happenings in prop::collection::vec(happening(), 0..80),
    ) {
        let mut fleet = Fleet::new();
        for happening in &happenings {
            fleet.happen(happening);
        }
        fleet.heal();
        fleet.check_settled();
    }
}

/// The store of two nodes comes back from a backup of before the second one, which is cut off meanwhile.
#[test]
fn a_node_that_a_backup_does_not_know_is_sent_to_until_it_can_say_that_it_lives() {
    let mut fleet = Fleet::new();
    assert_eq!(fleet.flows.len(), 2);
    for happening in [Cut(1, true), Restore, Watch(0), Wait(HOUR), Restart(0)] {
        fleet.happen(&happening);
    }
    fleet.settle(60);
    assert_eq!(fleet.store.contents.rows.len(), 1);
    fleet.heal();
    fleet.check_settled();
    assert_eq!(fleet.store.contents.rows.len(), 2);
}

/// The store of two nodes is wiped while one is cut off, and a third gets the subnet that nobody can know of.
#[test]
fn of_two_nodes_on_one_subnet_one_ends_and_the_other_keeps_it() {
    let taken =
        r#"{"Network":"10.3.0.0/16","SubnetMin":"SUBNET","SubnetMax":"SUBNET","Backend":{"Type":"vxlan"}}"#;
    // In which order the two see what has happened does not matter, nor whether they restart before.
    for before in [vec![], vec![Watch(1)], vec![Watch(2)], vec![Restart(1)], vec![Restart(2), Restart(1)]] {
        let mut fleet = Fleet::new();
        fleet.happen(&Cut(1, true));
        fleet.happen(&Wipe { configured: true });
        fleet.settle(10);
        let key = fleet.nodes[&1].own().key();
        let subnet = key.ipv4().expect("a subnet").ip().to_string();
        fleet.join_with(2, &taken.replace("SUBNET", &subnet));
        assert_eq!((fleet.nodes[&2].own().key(), fleet.is_contested(1)), (key, true));
        fleet.happen(&Wait(Duration::from_secs(30)));
        fleet.happen(&Cut(1, false));
        before.iter().for_each(|happening| fleet.happen(happening));
        fleet.heal();
        fleet.check_settled();
        assert!(!fleet.nodes.contains_key(&1), "the store's word counts");
        assert_eq!(fleet.nodes[&2].own().key(), key);
        // The next start gets another one.
        fleet.join(1);
        fleet.settle(10);
        fleet.check_settled();
        assert_eq!(fleet.nodes.len(), 3);
    }
}
