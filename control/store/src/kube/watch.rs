//! Follows the nodes: a list, page by page, then the changes after its version.
//!
//! Kubelets write to their nodes all the time, so nearly every event says nothing new about the network. A
//! number for what matters of each node tells them apart before anything is understood.
//!
//! A node stays in the network as long as it exists. What it has published counts on while its annotations
//! are broken or removed, as it does for stock flannel, which ignores such an event.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use model::lease::{Lease, SubnetKey};
use rand::Rng;
use tokio::time::{Instant, sleep_until};

use super::client::{Call, Connection, escape, one_line};
use super::list::{self, newest};
use super::messages::{self, Status, WatchEvent};
use super::node::{Node, Reading};
use super::{Kube, KubeError};
use crate::complaints::Complaints;
use crate::stream::{Follow, Halt, Sink};
use crate::{Event, Position, StoreError};

/// How long the server is asked to keep up one watch, in seconds. Not all nodes should come back together.
const WATCH: std::ops::RangeInclusive<u64> = 300..=600;
/// How much longer a watch may last before it counts as dead.
const GRACE: Duration = Duration::from_secs(60);
/// Least time between two looks at whether our annotations have to be written again.
const RESTORE_PAUSE: Duration = Duration::from_secs(5);
/// A watch that the server ends sooner, without an event, is a failure.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// The state of a watch.
pub(super) struct Follower {
    store: Kube,
    /// All nodes, by their names.
    nodes: BTreeMap<String, Known>,
    /// The node that holds a subnet, as it was reported.
    holders: BTreeMap<SubnetKey, String>,
    /// All changes up to here have been seen; `None`: list all nodes.
    version: Option<String>,
    /// The same as a number, in this run or in the one before.
    seen: Option<Position>,
    /// `seen` is of this run.
    listed: bool,
    /// The last watch has failed: the cluster may have been restored meanwhile.
    in_doubt: bool,
    /// When to look whether our annotations have to be written again, and not before when.
    restore: Option<Instant>,
    restored: Option<Instant>,
    /// The server asks to be left alone until then.
    pause: Option<Instant>,
    complaints: Complaints,
}

/// What is known of a node.
struct Known {
    fingerprint: u64,
    uid: String,
    lease: Option<Lease>,
}

/// One whole list, as it comes in.
#[derive(Default)]
struct Listing {
    nodes: BTreeMap<String, Known>,
    complaints: BTreeMap<String, String>,
    /// Another prefix that nodes use, and how many do.
    others: Option<(String, usize)>,
    own_uid: String,
}

/// What a node is, judged with what was known of it.
enum Judgement {
    /// No part of the network.
    Nothing,
    Lease(Lease),
    /// Broken; what was known of it counts, if it was.
    Broken(String),
}

impl Follower {
    /// Starts with the position that an earlier run has read up to.
    pub(super) fn new(store: Kube, since: Option<Position>) -> Follower {
        Follower {
            store,
            nodes: BTreeMap::new(),
            holders: BTreeMap::new(),
            version: None,
            seen: since,
            listed: false,
            in_doubt: false,
            restore: None,
            restored: None,
            pause: None,
            complaints: Complaints::default(),
        }
    }

    async fn try_follow(&mut self, sink: &mut Sink) -> Result<Infallible, Halt> {
        if let Some(pause) = self.pause.take() {
            sleep_until(pause).await;
        }
        loop {
            let call = if self.version.is_none() { Call::ListNodes } else { Call::WatchNodes };
            let mut connection = self.store.client.connect(call).await?;
            if self.version.is_some() && self.in_doubt && self.is_behind(newest(&mut connection).await?) {
                self.version = None;
            }
            let version = match self.version.clone() {
                Some(version) => version,
                None => self.list(&mut connection, sink).await?,
            };
            self.in_doubt = true;
            self.watch(connection, &version, sink).await?;
            self.in_doubt = false;
        }
    }

    /// Sends a snapshot, or a rewind, and returns the version to watch from.
    async fn list(&mut self, connection: &mut Connection, sink: &mut Sink) -> Result<String, Halt> {
        let (listing, version) = list::all(connection, |listing, node| self.take(listing, node)).await?;
        let now = position(&listing.own_uid, &version);
        let leases = self.adopt(listing);
        let rewound = self.has_lost(now);
        if rewound {
            tracing::warn!(
                "lease store: Kubernetes has lost changes that it had reported: its etcd was wiped or \
                 restored; peers that are missing are kept for a day"
            );
        }
        sink.send(if rewound { Event::Rewind(leases) } else { Event::Snapshot(leases) }).await?;
        (self.version, self.listed) = (Some(version.clone()), true);
        self.saw(sink, now);
        sink.readable();
        Ok(version)
    }

    /// Takes over a whole list, and returns its leases. A subnet that several nodes claim stays with the node
    /// that had it, so that a newcomer takes nothing.
    fn adopt(&mut self, listing: Listing) -> Vec<Lease> {
        let Listing { nodes, mut complaints, others, .. } = listing;
        let managed = nodes.values().filter(|known| known.lease.is_some()).count();
        if let Some((prefix, count)) = others.filter(|_| managed <= 1) {
            let ours = &self.store.config.annotation_prefix;
            let complaint = format!(
                "no other node uses the annotation prefix {ours}, and {count} use {prefix}; check \
                 --kube-annotation-prefix"
            );
            complaints.insert(prefix, complaint);
        }
        let own = self.store.lock().node.clone();
        let has_held = |name: &String, known: &Known, lease: &Lease| {
            let is_same = self.nodes.get(name).is_some_and(|former| former.uid == known.uid);
            is_same && self.holders.get(&lease.key) == Some(name)
        };
        let mut claims: Vec<(bool, bool, &String, &Lease)> = Vec::new();
        for (name, known) in &nodes {
            let Some(lease) = &known.lease else { continue };
            claims.push((own.as_ref() != Some(name), !has_held(name, known, lease), name, lease));
        }
        claims.sort_by_key(|&(is_other, is_new, name, _)| (is_other, is_new, name));
        let (mut leases, mut holders) = (Vec::new(), BTreeMap::<SubnetKey, String>::new());
        for (_, _, name, lease) in claims {
            match holders.get(&lease.key) {
                None => {
                    holders.insert(lease.key, name.clone());
                    leases.push(lease.clone());
                }
                Some(holder) => _ = complaints.insert(name.clone(), rivalry(name, lease, holder)),
            }
        }
        self.complaints.replace(&complaints);
        (self.nodes, self.holders) = (nodes, holders);
        leases
    }

    /// Takes a listed node in.
    fn take(&mut self, listing: &mut Listing, node: Node) {
        if let Some(problem) = node.misnamed() {
            listing.complaints.insert(one_line(&node.name), problem);
            return;
        }
        if self.is_own(&node) {
            listing.own_uid.clone_from(&node.uid);
        }
        if let Some(prefix) = self.store.names.other_prefix(&node.annotations) {
            listing.others.get_or_insert_with(|| (one_line(prefix), 0)).1 += 1;
        }
        let fingerprint = node.fingerprint(&self.store.names);
        // A copy: what is known stays for the next list if this one fails half-way.
        let former = self.nodes.get(&node.name).filter(|known| known.uid == node.uid);
        let former = former.and_then(|known| known.lease.clone());
        let lease = match self.judge(&node) {
            Judgement::Nothing => former.filter(|_| !self.is_own(&node)),
            Judgement::Lease(lease) => Some(lease),
            Judgement::Broken(problem) => {
                listing.complaints.insert(node.name.clone(), explained(&problem, former.as_ref()));
                former
            }
        };
        listing.nodes.insert(node.name, Known { fingerprint, uid: node.uid, lease });
    }

    /// Sends the changes after `version` until the server ends the watch in order.
    async fn watch(&mut self, connection: Connection, version: &str, sink: &mut Sink) -> Result<(), Halt> {
        let seconds = rand::rng().random_range(WATCH);
        let path = format!(
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}",
            escape(version)
        );
        let server = connection.url().to_owned();
        let mut events = connection.watch(Call::WatchNodes, &path).await?;
        sink.readable();
        let began = Instant::now();
        let end = began + Duration::from_secs(seconds) + GRACE;
        let mut any = false;
        let failed = |answer: &str| {
            let (tried, server) = (Call::WatchNodes, server.clone());
            let advice = "check what stands between this node and the API server";
            Halt::from(KubeError::Unreachable { tried, server, answer: answer.to_owned(), advice })
        };
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Some(event) => {
                        any = true;
                        self.handle(event, &server, sink).await?;
                    }
                    None if !any && began.elapsed() < SHORTEST_WATCH => {
                        return Err(failed("the server ended the watch at once"));
                    }
                    None => return Ok(()),
                },
                () = at(self.restore) => self.restore(sink).await?,
                () = sleep_until(end) => return Err(failed("the server did not end the watch in time")),
            }
        }
    }

    async fn handle(&mut self, event: WatchEvent, server: &str, sink: &mut Sink) -> Result<(), Halt> {
        let object = event.object.unwrap_or_default().raw;
        if event.kind == "ERROR" {
            return Err(failure(object, server).into());
        }
        let Some(node) = messages::decode::<messages::Node>(object).map(Node::from) else {
            self.complaints.add("", "an event of the watch is not about a node; skipped");
            return Ok(());
        };
        let version = node.version.clone();
        let events = match event.kind.as_str() {
            "ADDED" | "MODIFIED" => self.put(node),
            "DELETED" => self.deleted(&node),
            // A bookmark has nothing but the version.
            _ => Vec::new(),
        };
        for event in events {
            sink.send(event).await?;
        }
        if let Some(seen) = self.seen {
            let revision = version.parse().unwrap_or(seen.revision);
            self.saw(sink, Some(Position { revision, ..seen }));
        }
        self.version = Some(version).filter(|version| !version.is_empty()).or(self.version.take());
        Ok(())
    }

    /// Takes in a node that is new or was written. Returns what to report.
    fn put(&mut self, node: Node) -> Vec<Event> {
        if let Some(problem) = node.misnamed() {
            self.complaints.add(&one_line(&node.name), &problem);
            return Vec::new();
        }
        let fingerprint = node.fingerprint(&self.store.names);
        let known = self.nodes.get(&node.name);
        if known.is_some_and(|known| known.fingerprint == fingerprint) {
            return Vec::new();
        }
        let former = known.filter(|known| known.uid == node.uid).and_then(|known| known.lease.clone());
        let lease = match self.judge(&node) {
            Judgement::Nothing => former.filter(|_| !self.is_own(&node)),
            Judgement::Lease(lease) => {
                self.complaints.remove(&node.name);
                Some(lease)
            }
            Judgement::Broken(problem) => {
                self.complaints.add(&node.name, &explained(&problem, former.as_ref()));
                former
            }
        };
        let known = Known { fingerprint, uid: node.uid, lease };
        self.settle(&node.name, Some(known))
    }

    fn deleted(&mut self, node: &Node) -> Vec<Event> {
        self.complaints.remove(&node.name);
        self.settle(&node.name, None)
    }

    /// Replaces what is known of a node. Returns what to report.
    fn settle(&mut self, name: &str, known: Option<Known>) -> Vec<Event> {
        let mut events = Vec::new();
        let lease = known.as_ref().and_then(|known| known.lease.clone());
        let former = match known {
            Some(known) => self.nodes.insert(name.to_owned(), known),
            None => self.nodes.remove(name),
        };
        let former = former.and_then(|known| known.lease);
        let left = former.as_ref().map(|former| former.key).filter(|left| {
            let holds = self.holders.get(left).is_some_and(|holder| holder == name);
            holds && lease.as_ref().is_none_or(|lease| lease.key != *left)
        });
        if let Some(left) = left {
            self.holders.remove(&left);
            events.push(Event::Removed(left));
            // Another node that claims it has waited for this.
            let heir = self.nodes.iter().find_map(|(heir, known)| {
                let lease = known.lease.as_ref().filter(|lease| lease.key == left)?;
                Some((heir.clone(), lease.clone()))
            });
            if let Some((heir, lease)) = heir {
                self.complaints.remove(&heir);
                self.holders.insert(left, heir);
                events.push(Event::Put(lease));
            }
        }
        let Some(lease) = lease else { return events };
        match self.holders.get(&lease.key) {
            Some(holder) if holder != name => {
                let complaint = rivalry(name, &lease, holder);
                self.complaints.add(name, &complaint);
            }
            Some(_) if former.as_ref() == Some(&lease) => {}
            _ => {
                self.holders.insert(lease.key, name.to_owned());
                events.push(Event::Put(lease));
            }
        }
        events
    }

    /// Tells what a node is. Our own one is ours as long as it has our subnet, whatever its annotations say;
    /// they are written again then.
    fn judge(&mut self, node: &Node) -> Judgement {
        let (own_wish, families) = {
            let own = self.store.lock();
            (own.wish.clone(), own.families)
        };
        let names = &self.store.names;
        let reading = node.read(names, families.unwrap_or(super::Families::BOTH));
        let Some((own_key, wished)) = own_wish else {
            return Judgement::from(reading);
        };
        if self.is_own(node) {
            self.store.take_in(node);
            if node.key_of(own_key) != Some(own_key) {
                return Judgement::Nothing;
            }
            let asked = self.store.lock().asked.clone();
            if !names.changes(&node.annotations, &wished, &asked, &own_key).is_empty() {
                let earliest = self.restored.map_or_else(Instant::now, |last| last + RESTORE_PAUSE);
                self.restore.get_or_insert(earliest);
            }
            let attrs = node.published(names).unwrap_or(wished);
            return Judgement::Lease(Lease { key: own_key, attrs, expires: None });
        }
        match reading {
            // Events under this key are taken for ours.
            Reading::Lease(lease) if lease.key == own_key => {
                Judgement::Broken(format!("node {}: its podCIDR is that of our own node", node.name))
            }
            reading => Judgement::from(reading),
        }
    }

    /// Writes our annotations again.
    async fn restore(&mut self, sink: &mut Sink) -> Result<(), Halt> {
        (self.restore, self.restored) = (None, Some(Instant::now()));
        const OURS: &str = "our node";
        match self.store.restore().await {
            Ok(true) => self.complaints.remove(OURS),
            Ok(false) => {
                let key = self.store.lock().wish.take().map(|(key, _)| key);
                if let Some(key) = key {
                    self.holders.remove(&key);
                    sink.send(Event::Removed(key)).await?;
                }
            }
            Err(error) => {
                self.complaints.add(OURS, &format!("cannot write our annotations again: {error}; retrying"));
                self.restore = Some(Instant::now() + RESTORE_PAUSE);
            }
        }
        Ok(())
    }

    fn is_own(&self, node: &Node) -> bool {
        self.store.lock().node.as_ref() == Some(&node.name)
    }

    fn is_behind(&self, version: String) -> bool {
        let now = version.parse::<u64>().ok();
        self.seen.zip(now).is_some_and(|(seen, now)| now < seen.revision)
    }

    /// Tells whether a list shows that the cluster has lost something. What an earlier run has seen counts
    /// only where this is the same cluster.
    fn has_lost(&self, now: Option<Position>) -> bool {
        let Some((seen, now)) = self.seen.zip(now) else { return false };
        (self.listed || seen.cluster == now.cluster) && now.revision < seen.revision
    }

    fn saw(&mut self, sink: &Sink, position: Option<Position>) {
        self.seen = position;
        if let Some(position) = position {
            sink.reached(position);
        }
    }
}

impl Follow for Follower {
    async fn follow(&mut self, sink: &mut Sink) -> Halt {
        let halt = match self.try_follow(sink).await {
            Ok(never) => match never {},
            Err(halt) => halt,
        };
        if let Halt::Failed(StoreError::Passing(crate::Cause::Kube(error))) = &halt {
            self.pause = error.wait().map(|wait| Instant::now() + wait);
            if let KubeError::Gone { .. } = error {
                self.version = None;
            }
        }
        halt
    }
}

impl From<Reading> for Judgement {
    fn from(reading: Reading) -> Judgement {
        match reading {
            Reading::Stranger => Judgement::Nothing,
            Reading::Lease(lease) => Judgement::Lease(lease),
            Reading::Broken(problem) => Judgement::Broken(problem),
        }
    }
}

impl From<KubeError> for Halt {
    fn from(error: KubeError) -> Halt {
        Halt::Failed(error.into())
    }
}

/// Returns what an event of the kind ERROR says.
fn failure(object: Bytes, server: &str) -> KubeError {
    let status: Status = messages::decode(object).unwrap_or_default();
    let (tried, server) = (Call::WatchNodes, server.to_owned());
    match u16::try_from(status.code) {
        Ok(410) => KubeError::Gone { tried },
        code => KubeError::Refused {
            tried,
            server,
            status: code.unwrap_or_default(),
            answer: one_line(&status.message),
            wait: None,
        },
    }
}

/// Returns the position of a list. Versions are etcd's revisions, which only a test for a number relies on;
/// a cluster is told from another by the identity of our node in it.
fn position(own_uid: &str, version: &str) -> Option<Position> {
    let digits: String = own_uid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    let cluster = u64::from_str_radix(&digits, 16).unwrap_or_default();
    version.parse().ok().map(|revision| Position { cluster, revision })
}

fn rivalry(name: &str, lease: &Lease, holder: &str) -> String {
    let key = lease.key;
    format!(
        "node {name}: its podCIDR {key} belongs to node {holder}; skipped; delete {name} or {holder}, \
         whichever no longer exists"
    )
}

fn explained(problem: &str, former: Option<&Lease>) -> String {
    let effect = if former.is_some() { "; what it published before counts" } else { "; skipped" };
    format!("{problem}{effect}")
}

/// Waits until then; forever without a time.
async fn at(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::{Config, Identity};

    const PREFIX: &str = "flannel.alpha.coreos.com";

    fn follower() -> Follower {
        let config = Config {
            node: Identity::Node("m".into()),
            annotation_prefix: PREFIX.into(),
            api_url: "http://127.0.0.1:1".into(),
            ..Config::default()
        };
        Follower::new(Kube::lazy(config).expect("options"), None)
    }

    /// A stock node with this podCIDR.
    fn node(name: &str, uid: &str, cidr: &str) -> Node {
        let pairs =
            [("kube-subnet-manager", "true"), ("backend-type", "host-gw"), ("public-ip", "192.0.2.1")];
        let annotations = pairs.map(|(name, text)| (format!("{PREFIX}/{name}"), text.to_owned())).into();
        let meta =
            messages::ObjectMeta { name: name.into(), uid: uid.into(), annotations, ..Default::default() };
        let spec = messages::NodeSpec { pod_cidrs: vec![cidr.into()], ..Default::default() };
        messages::Node { meta: Some(meta), spec: Some(spec) }.into()
    }

    /// Reads a whole list, and returns who holds the subnets.
    fn relist(follower: &mut Follower, nodes: &[Node]) -> Vec<String> {
        let mut listing = Listing::default();
        nodes.iter().for_each(|node| follower.take(&mut listing, node.clone()));
        let leases = follower.adopt(listing);
        assert_eq!(leases.len(), follower.holders.len());
        follower.holders.values().cloned().collect()
    }

    #[test]
    fn misnamed_nodes_are_skipped() {
        let mut follower = follower();
        let long = "n".repeat(254);
        let wrong = ["", "n\n3", long.as_str()].map(|name| node(name, "u", "10.244.3.0/24"));
        let [first, second, third] = wrong.clone();
        let listed = [first, node("n2", "u2", "10.244.2.0/24"), second, third];
        assert_eq!(relist(&mut follower, &listed), ["n2"]);
        for node in wrong {
            assert!(follower.put(node.clone()).is_empty() && follower.deleted(&node).is_empty());
        }
        assert_eq!(follower.nodes.len(), 1);
    }

    #[test]
    fn an_error_of_the_watch_is_one_short_line() {
        let status = Status { message: "x\nWARN forged ".repeat(99), code: 500, ..Status::default() };
        let raw = messages::encode("v1", "Status", &status).into();
        let text = failure(raw, "s").to_string();
        assert!(text.len() < 400 && !text.contains('\n'), "{text}");
    }

    #[test]
    fn a_relist_leaves_a_contested_subnet_with_its_holder() {
        const CIDR: &str = "10.244.2.0/24";
        let mut follower = follower();
        let holder = node("n2", "u2", CIDR);
        assert_eq!(relist(&mut follower, std::slice::from_ref(&holder)), ["n2"]);
        let newcomer = node("a", "ua", CIDR);
        let both = [newcomer.clone(), holder.clone()];
        for _ in 0..2 {
            assert_eq!(relist(&mut follower, &both), ["n2"]);
        }
        // A list that fails half-way changes nothing.
        follower.take(&mut Listing::default(), holder.clone());
        assert_eq!(relist(&mut follower, &both), ["n2"]);
        // Made again, the holder is another node: a new contest, which the order of the names decides.
        assert_eq!(relist(&mut follower, &[newcomer.clone(), node("n2", "u3", CIDR)]), ["a"]);
        // Nor does it keep a subnet that it no longer has.
        assert_eq!(relist(&mut follower, &[node("a", "ua", "10.244.3.0/24"), holder]), ["n2", "a"]);
        // Our own node has its subnet whoever had it before.
        follower.store.lock().node = Some("m".into());
        assert_eq!(relist(&mut follower, &[newcomer.clone(), node("m", "um", CIDR)]), ["m"]);
        let Judgement::Lease(lease) = follower.judge(&newcomer) else { panic!("a peer") };
        let hint = rivalry("a", &lease, "n2");
        assert!(hint.contains("delete a or n2, whichever no longer exists"), "{hint}");
    }

    #[test]
    fn a_list_that_fails_takes_nothing_of_what_a_broken_node_has_published() {
        let mut follower = follower();
        relist(&mut follower, &[node("n2", "u2", "10.244.2.0/24")]);
        let mut broken = node("n2", "u2", "10.244.2.0/24");
        broken.annotations.insert(format!("{PREFIX}/public-ip"), "rubbish".into());
        follower.take(&mut Listing::default(), broken.clone());
        assert_eq!(relist(&mut follower, &[broken]), ["n2"]);
    }
}
