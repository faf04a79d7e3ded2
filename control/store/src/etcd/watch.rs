//! Follows etcd's own events: a list, then the changes after its revision.
//!
//! A cluster that was wiped, or restored from an older state, counts its revisions again from there. A watch
//! of revisions that are yet to come would hear nothing for a long time, and miss what happened before them.
//! So every watch begins with the question whether the cluster still knows the last change that was seen.

use std::collections::BTreeSet;
use std::convert::Infallible;

use model::lease::SubnetKey;

use super::client::explain;
use super::list::{Entry, Witness, name, understand};
use super::messages::{
    DELETE, KeyValue, PUT, RangeRequest, RangeResponse, ResponseHeader, WatchCreateRequest, WatchEvent,
    WatchResponse,
};
use super::{Etcd, EtcdError, RANGE};
use crate::stream::{Follow, Halt, Sink};
use crate::{Cause, Event, Position, StoreError};

const TRIED: &str = "watch the leases";

/// The state of a watch.
pub(super) struct Follower {
    store: Etcd,
    /// Subnets that the receiver of the events takes as held.
    known: BTreeSet<SubnetKey>,
    /// First revision not yet seen; `None`: list all leases.
    next: Option<i64>,
    /// All changes up to here have been seen, in this run or in the one before.
    seen: Option<Position>,
    /// The last change that was seen.
    witness: Option<Witness>,
    /// `seen` is of this run.
    listed: bool,
}

/// What became of the history that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum History {
    /// The cluster knows it, and more perhaps.
    Same,
    /// The cluster has lost something of it.
    Rewound,
    /// There is no telling: nothing was seen, or the cluster has dropped what is old.
    Unknown,
}

impl Follower {
    /// Starts with the position that an earlier run has read up to.
    pub(super) fn new(store: Etcd, since: Option<Position>) -> Follower {
        Follower { store, known: BTreeSet::new(), next: None, seen: since, witness: None, listed: false }
    }

    async fn try_follow(&mut self, sink: &mut Sink) -> Result<Infallible, Halt> {
        let mut rewound = false;
        loop {
            let (start, is_new) = match self.next.filter(|_| !rewound) {
                Some(next) => (next, false),
                None => (self.list(sink, rewound).await?, true),
            };
            let history = self.watch(sink, start, is_new).await?;
            rewound = history == History::Rewound;
            if !rewound {
                self.next = None;
            }
        }
    }

    /// Sends the changes from the revision `start` on, which has just been listed if `is_new`, until the
    /// leases have to be listed again. Returns what became of the history.
    async fn watch(&mut self, sink: &mut Sink, start: i64, is_new: bool) -> Result<History, Halt> {
        let keys = self.store.client.keys();
        let request = WatchCreateRequest {
            key: keys.leases().to_vec(),
            range_end: keys.leases_end(),
            // One before what is next: where that is a removal and was just compacted, etcd would leave it
            // out in silence (etcd-io/etcd#18089, fixed in 2024), but not what is older.
            start_revision: (start - 1).max(1),
            progress_notify: true,
            fragment: true,
        };
        let mut responses = self.store.client.watch(TRIED, request).await?;
        // Asked once the watch stands: what becomes of the cluster from now on ends the watch.
        match self.history().await? {
            History::Same => {}
            History::Unknown if is_new => {}
            history => return Ok(history),
        }
        loop {
            let response = match responses.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.broken("the server ended the watch".to_owned()).await),
                Err(status) => return Err(self.broken(explain(&status)).await),
            };
            if response.canceled {
                return Err(self.canceled(response).await);
            }
            // A member that is behind the others answers like this as well.
            if self.is_behind(response.header.unwrap_or_default()) {
                match self.history().await? {
                    History::Same => {}
                    History::Rewound => return Ok(History::Rewound),
                    History::Unknown => return Err(EtcdError::Future { tried: TRIED }.into()),
                }
            }
            sink.readable();
            self.take(sink, response).await?;
        }
    }

    /// Asks the cluster whether it knows what was seen.
    async fn history(&self) -> Result<History, EtcdError> {
        let Some(witness) = &self.witness else { return Ok(History::Unknown) };
        let (key, revision) = (witness.key.clone(), witness.modified);
        let request = RangeRequest { key, revision, ..RangeRequest::default() };
        let answer: RangeResponse = match self.store.client.call(TRIED, RANGE, &request).await {
            Ok(answer) => answer,
            Err(EtcdError::Compacted { .. }) => return Ok(History::Unknown),
            Err(EtcdError::Future { .. }) => return Ok(History::Rewound),
            Err(error) => return Err(error),
        };
        let knows = answer.kvs.iter().any(|kv| Witness::of(kv) == *witness);
        let behind = self.is_behind(answer.header.unwrap_or_default());
        Ok(if knows && !behind { History::Same } else { History::Rewound })
    }

    fn is_behind(&self, header: ResponseHeader) -> bool {
        self.seen.is_some_and(|seen| seen.is_rewound(header.into()))
    }

    /// Sends a snapshot, or a rewind, and returns the revision to watch from.
    async fn list(&mut self, sink: &mut Sink, rewound: bool) -> Result<i64, Halt> {
        let mut listing = self.store.list(TRIED).await?;
        let own = self.store.lock().own;
        if let Some(lease) = listing.leases.iter_mut().find(|lease| Some(lease.key) == own) {
            let id = listing.stored.get(&lease.key).map_or(0, |stored| stored.lease);
            if id != 0 {
                lease.expires = Some(self.store.end(TRIED, id).await?);
            }
        }
        self.known = listing.leases.iter().map(|lease| lease.key).collect();
        let rewound = rewound || self.has_lost(listing.header);
        if rewound {
            tracing::warn!(
                "lease store: etcd has lost changes that it had reported: it was wiped or restored; \
                 peers that are missing are kept until their leases expire"
            );
        }
        let leases = listing.leases;
        sink.send(if rewound { Event::Rewind(leases) } else { Event::Snapshot(leases) }).await?;
        let next = listing.header.revision + 1;
        (self.next, self.witness, self.listed) = (Some(next), listing.newest, true);
        self.saw(sink, listing.header.into());
        Ok(next)
    }

    /// Tells whether a list shows that the cluster has lost something. What an earlier run has seen counts
    /// only where this is the same cluster.
    fn has_lost(&self, header: ResponseHeader) -> bool {
        let same = self.seen.is_some_and(|seen| seen.cluster == header.cluster);
        (self.listed || same) && self.is_behind(header)
    }

    fn saw(&mut self, sink: &Sink, position: Position) {
        self.seen = Some(position);
        sink.reached(position);
    }

    async fn take(&mut self, sink: &mut Sink, response: WatchResponse) -> Result<(), Halt> {
        let revision = response.header.unwrap_or_default().revision;
        let last = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
        let seen = |event: &WatchEvent| {
            event.kv.as_ref().is_some_and(|kv| self.next.is_some_and(|next| kv.mod_revision < next))
        };
        let new: Vec<WatchEvent> = response.events.into_iter().filter(|event| !seen(event)).collect();
        for event in new {
            if let Some(kv) = event.kv.as_ref().filter(|_| event.kind == PUT) {
                self.witness = Some(Witness::of(kv));
            }
            self.handle(sink, event).await?;
        }
        self.next = match last {
            // The rest of this revision is to come: after a failure, all of it again.
            Some(last) if response.fragment => self.next.max(Some(last)),
            Some(last) => self.next.max(Some(last + 1)),
            // The first response carries the cluster's revision, not ours.
            None if response.created || response.fragment => self.next,
            // A progress report: everything up to here was delivered.
            None => self.next.max(Some(revision + 1)),
        };
        if let Some((seen, next)) = self.seen.zip(self.next) {
            let revision = next.saturating_sub(1).max(0).unsigned_abs();
            self.saw(sink, Position { revision, ..seen });
        }
        Ok(())
    }

    async fn handle(&mut self, sink: &mut Sink, event: WatchEvent) -> Result<(), Halt> {
        let Some(kv) = event.kv else { return Ok(()) };
        match event.kind {
            PUT => self.put(sink, &kv).await,
            DELETE => self.deleted(sink, &kv).await,
            _ => Ok(()),
        }
    }

    async fn put(&mut self, sink: &mut Sink, kv: &KeyValue) -> Result<(), Halt> {
        let keys = self.store.client.keys();
        match understand(keys, kv, |id| self.store.likely_end(id)) {
            Entry::Lease(mut lease) => {
                self.store.lock().complaints.remove(&name(keys, kv));
                if kv.lease != 0 && self.store.lock().own == Some(lease.key) {
                    // If the lease is gone by now, its removal is on the way.
                    lease.expires = self.store.end(TRIED, kv.lease).await.ok().or(lease.expires);
                }
                self.known.insert(lease.key);
                sink.send(Event::Put(lease)).await
            }
            Entry::Broken { complaint, .. } => {
                self.store.lock().complaints.add(&name(keys, kv), &format!("{complaint}; skipped"));
                self.gone(sink, kv).await
            }
        }
    }

    async fn deleted(&mut self, sink: &mut Sink, kv: &KeyValue) -> Result<(), Halt> {
        let keys = self.store.client.keys();
        self.store.lock().complaints.remove(&name(keys, kv));
        self.gone(sink, kv).await
    }

    /// Sends the removal of the lease that this key held, if it held one.
    async fn gone(&mut self, sink: &mut Sink, kv: &KeyValue) -> Result<(), Halt> {
        let keys = self.store.client.keys();
        let key = keys.tail(&kv.key).parse::<SubnetKey>().ok();
        match key.filter(|key| keys.lease(key) == kv.key && self.known.remove(key)) {
            Some(key) => sink.send(Event::Removed(key)).await,
            None => Ok(()),
        }
    }

    async fn canceled(&mut self, response: WatchResponse) -> Halt {
        if response.compact_revision != 0 {
            return EtcdError::Compacted { tried: TRIED }.into();
        }
        // An old token may be the reason, which etcd does not always name.
        self.store.client.forget_token().await;
        let endpoint = self.store.client.endpoint().await;
        let answer = response.cancel_reason;
        EtcdError::Refused { tried: TRIED, endpoint, answer }.into()
    }

    async fn broken(&self, answer: String) -> Halt {
        let endpoint = self.store.client.endpoint().await;
        EtcdError::Unreachable { tried: TRIED, endpoint, answer }.into()
    }
}

impl Follow for Follower {
    async fn follow(&mut self, sink: &mut Sink) -> Halt {
        let halt = match self.try_follow(sink).await {
            Ok(never) => match never {},
            Err(halt) => halt,
        };
        if let Halt::Failed(StoreError::Passing(Cause::Etcd(EtcdError::Compacted { .. }))) = halt {
            self.next = None;
        }
        halt
    }
}

impl From<EtcdError> for Halt {
    fn from(error: EtcdError) -> Halt {
        Halt::Failed(error.into())
    }
}
