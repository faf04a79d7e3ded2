//! The set of peers: takes in snapshots and single changes, and leaves our own lease out.

use std::collections::BTreeMap;

use model::lease::{Lease, SubnetKey};

use super::Event;

/// The leases of all peers, in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseSet(BTreeMap<SubnetKey, Lease>);

/// The effect of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// True if a peer came, went or published something else. A renewal alone is no change: nothing that is
    /// built from the set depends on an expiry.
    pub peers: bool,
    /// What the event said about our own lease.
    pub own: Own,
}

/// What an event said about our own lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// Nothing.
    Unchanged,
    /// Our lease was written, by us or by somebody else: see [`Ledger::own`].
    Written,
    /// Our lease is gone: it expired, or an administrator removed it.
    Removed,
}

/// Keeps the set of peers. Feed it every event of a watch, the snapshot first.
#[derive(Debug, Clone)]
pub struct Ledger {
    own_key: Option<SubnetKey>,
    own: Option<Lease>,
    peers: LeaseSet,
}

impl Ledger {
    /// Creates an empty set for the node that holds `own_key`.
    pub fn new(own_key: Option<SubnetKey>) -> Ledger {
        Ledger { own_key, own: None, peers: LeaseSet::default() }
    }

    /// Declares `own_key` as ours after a new acquisition. The former lease, if still stored, becomes a
    /// peer's like any other.
    pub fn set_own(&mut self, own_key: SubnetKey) -> Change {
        if self.own_key == Some(own_key) {
            return Change { peers: false, own: Own::Unchanged };
        }
        self.own_key = Some(own_key);
        let former = self.own.take();
        self.own = self.peers.0.remove(&own_key);
        let peers = self.own.is_some() || former.is_some();
        self.peers.0.extend(former.map(|lease| (lease.key, lease)));
        Change { peers, own: Own::Unchanged }
    }

    /// Takes in one event.
    pub fn handle(&mut self, event: Event) -> Change {
        match event {
            Event::Snapshot(leases) => self.replace(leases),
            Event::Put(lease) if Some(lease.key) == self.own_key => {
                let written = self.own.as_ref() != Some(&lease);
                self.own = Some(lease);
                Change { peers: false, own: if written { Own::Written } else { Own::Unchanged } }
            }
            Event::Put(lease) => {
                let before = self.peers.0.insert(lease.key, lease.clone());
                let same = before.is_some_and(|before| before.attrs == lease.attrs);
                Change { peers: !same, own: Own::Unchanged }
            }
            Event::Removed(key) if Some(key) == self.own_key => {
                self.own = None;
                Change { peers: false, own: Own::Removed }
            }
            Event::Removed(key) => Change { peers: self.peers.0.remove(&key).is_some(), own: Own::Unchanged },
        }
    }

    /// Returns all peers.
    pub fn peers(&self) -> &LeaseSet {
        &self.peers
    }

    /// Returns our own lease as the store last reported it.
    pub fn own(&self) -> Option<&Lease> {
        self.own.as_ref()
    }

    fn replace(&mut self, leases: Vec<Lease>) -> Change {
        let mut peers: LeaseSet = leases.into_iter().collect();
        let own = self.own_key.and_then(|key| peers.0.remove(&key));
        let own_change = match (&self.own, &own) {
            (before, Some(after)) if before.as_ref() != Some(after) => Own::Written,
            (_, None) if self.own_key.is_some() => Own::Removed,
            _ => Own::Unchanged,
        };
        let published =
            |set: &LeaseSet| -> Vec<_> { set.iter().map(|lease| (lease.key, lease.attrs.clone())).collect() };
        let changed = published(&self.peers) != published(&peers);
        self.own = own;
        self.peers = peers;
        Change { peers: changed, own: own_change }
    }
}

impl LeaseSet {
    /// Iterates over the leases in the order of their keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Lease> {
        self.0.values()
    }

    /// Returns the number of leases.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no leases.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the lease of exactly these subnets.
    pub fn get(&self, key: &SubnetKey) -> Option<&Lease> {
        self.0.get(key)
    }
}

impl FromIterator<Lease> for LeaseSet {
    fn from_iter<I: IntoIterator<Item = Lease>>(leases: I) -> LeaseSet {
        LeaseSet(leases.into_iter().map(|lease| (lease.key, lease)).collect())
    }
}

#[cfg(test)]
mod tests;
