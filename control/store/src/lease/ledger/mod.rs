//! The set of peers: takes in snapshots and single changes, and leaves our own lease out.
//!
//! A lease that is gone from the store stays in the set for a while. A store that was wiped or restored loses
//! leases of nodes that live, and these put them back within seconds of noticing: traffic to them must not
//! stop in between. A lease that is put where it was, and one that shows its node elsewhere, ends the wait.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::lease::{Lease, LeaseAttrs, SubnetKey};

use super::{Event, same_node};
use crate::{LEASE_TTL, Now};

/// How long a lease that was removed stays in the set.
pub const LINGER: Duration = Duration::from_secs(5);

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
    /// Leases that are stored, and those in `kept`.
    peers: LeaseSet,
    /// The peers that are no longer stored.
    kept: BTreeMap<SubnetKey, Kept>,
}

/// A peer that is no longer stored.
#[derive(Debug, Clone)]
struct Kept {
    attrs: LeaseAttrs,
    /// The end of its stay.
    end: Instant,
    /// The store has lost it; nobody has removed it.
    lost: bool,
}

impl Ledger {
    /// Creates an empty set for the node that holds `own_key`.
    pub fn new(own_key: Option<SubnetKey>) -> Ledger {
        Ledger { own_key, own: None, peers: LeaseSet::default(), kept: BTreeMap::new() }
    }

    /// Declares `own_key` as ours after a new acquisition. The former lease, if still stored, becomes a
    /// peer's like any other.
    pub fn set_own(&mut self, own_key: SubnetKey) -> Change {
        if self.own_key == Some(own_key) {
            return Change { peers: false, own: Own::Unchanged };
        }
        self.own_key = Some(own_key);
        let former = self.own.take();
        let ours = self.peers.0.remove(&own_key);
        let peers = ours.is_some() || former.is_some();
        self.own = ours.filter(|_| self.kept.remove(&own_key).is_none());
        self.peers.0.extend(former.map(|lease| (lease.key, lease)));
        Change { peers, own: Own::Unchanged }
    }

    /// Takes in one event.
    pub fn handle(&mut self, event: Event, now: Now) -> Change {
        match event {
            Event::Snapshot(leases) => self.replace(leases, now, false),
            Event::Rewind(leases) => self.replace(leases, now, true),
            Event::Put(lease) if Some(lease.key) == self.own_key => {
                let written = self.own.as_ref() != Some(&lease);
                self.own = Some(lease);
                Change { peers: false, own: if written { Own::Written } else { Own::Unchanged } }
            }
            Event::Put(lease) => {
                let superseded = self.supersede(&lease);
                self.kept.remove(&lease.key);
                let before = self.peers.0.insert(lease.key, lease.clone());
                let same = before.is_some_and(|before| before.attrs == lease.attrs);
                Change { peers: superseded || !same, own: Own::Unchanged }
            }
            Event::Removed(key) if Some(key) == self.own_key => {
                self.own = None;
                Change { peers: false, own: Own::Removed }
            }
            Event::Removed(key) => {
                let lingering = now.instant + LINGER;
                if let Some(lease) = self.peers.0.get(&key) {
                    let kept = || Kept { attrs: lease.attrs.clone(), end: lingering, lost: false };
                    let kept = self.kept.entry(key).or_insert_with(kept);
                    (kept.end, kept.lost) = (kept.end.min(lingering), false);
                }
                Change { peers: false, own: Own::Unchanged }
            }
        }
    }

    /// Removes the leases whose stay is over. Returns true if there were any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.kept.len();
        self.kept.retain(|key, kept| {
            let stays = kept.end > now;
            if !stays {
                self.peers.0.remove(key);
            }
            stays
        });
        self.kept.len() != before
    }

    /// Returns when the next stay is over, if any lease is only kept.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.kept.values().map(|kept| kept.end).min()
    }

    /// Returns all peers.
    pub fn peers(&self) -> &LeaseSet {
        &self.peers
    }

    /// Returns the peers that the next run has to know: those that are stored or lost, without those removed.
    pub fn lasting(&self) -> impl Iterator<Item = &Lease> {
        self.peers.iter().filter(|lease| self.kept.get(&lease.key).is_none_or(|kept| kept.lost))
    }

    /// Tells whether there are peers that the store has lost.
    pub fn has_lost(&self) -> bool {
        self.kept.values().any(|kept| kept.lost)
    }

    /// Returns our own lease as the store last reported it.
    pub fn own(&self) -> Option<&Lease> {
        self.own.as_ref()
    }

    fn replace(&mut self, leases: Vec<Lease>, now: Now, rewound: bool) -> Change {
        let stored: LeaseSet = leases.into_iter().collect();
        let mut former = std::mem::replace(&mut self.peers, stored);
        let own = self.own_key.and_then(|key| self.peers.0.remove(&key));
        let own_change = match (&self.own, &own) {
            // What a restored store has under our key may be from before.
            (Some(before), Some(after)) if rewound && before.attrs != after.attrs => Own::Removed,
            (before, Some(after)) if before.as_ref() != Some(after) => Own::Written,
            (_, None) if self.own_key.is_some() => Own::Removed,
            _ => Own::Unchanged,
        };
        self.own = own;
        let published =
            |set: &LeaseSet| -> Vec<_> { set.iter().map(|lease| (lease.key, lease.attrs.clone())).collect() };
        let before = published(&former);
        former.0.retain(|key, _| !self.peers.0.contains_key(key) && Some(*key) != self.own_key);
        let ends = std::mem::take(&mut self.kept);
        for (key, lease) in former.0 {
            let life = lease.expires.map(|expires| Duration::from_secs(expires.saturating_sub(now.unix)));
            let stay = if rewound { life.unwrap_or(LEASE_TTL).min(LEASE_TTL) } else { LINGER };
            let kept = ends.get(&key).cloned();
            let new = || Kept { attrs: lease.attrs.clone(), end: now.instant + stay, lost: rewound };
            self.kept.insert(key, kept.unwrap_or_else(new));
            self.peers.0.insert(key, lease);
        }
        self.drop_superseded();
        Change { peers: before != published(&self.peers), own: own_change }
    }

    /// Removes kept leases that a stored one contradicts: another node has the subnet, or the node another.
    /// Returns true if there were any.
    fn supersede(&mut self, stored: &Lease) -> bool {
        let before = self.kept.len();
        let peers = &mut self.peers.0;
        self.kept.retain(|key, kept| {
            let contradicted =
                *key != stored.key && (key.overlaps(&stored.key) || same_node(&stored.attrs, &kept.attrs));
            if contradicted {
                peers.remove(key);
            }
            !contradicted
        });
        self.kept.len() != before
    }

    fn drop_superseded(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let stored: Vec<Lease> =
            self.peers.iter().filter(|lease| !self.kept.contains_key(&lease.key)).cloned().collect();
        stored.iter().for_each(|lease| _ = self.supersede(lease));
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
