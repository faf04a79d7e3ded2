//! Follows etcd's own events: a list, then the changes after its revision.

use std::collections::BTreeSet;
use std::convert::Infallible;

use model::lease::SubnetKey;

use super::client::explain;
use super::list::{Entry, name, understand};
use super::messages::{DELETE, KeyValue, PUT, WatchCreateRequest, WatchEvent, WatchResponse};
use super::{Etcd, EtcdError};
use crate::stream::{Follow, Halt, Sink};
use crate::{Cause, Event, StoreError};

const TRIED: &str = "watch the leases";

/// The state of a watch.
pub(super) struct Follower {
    store: Etcd,
    /// Subnets that the receiver of the events takes as held.
    known: BTreeSet<SubnetKey>,
    /// First revision not yet seen; `None`: list all leases.
    next: Option<i64>,
}

impl Follower {
    pub(super) fn new(store: Etcd) -> Follower {
        Follower { store, known: BTreeSet::new(), next: None }
    }

    async fn try_follow(&mut self, sink: &mut Sink) -> Result<Infallible, Halt> {
        let start = match self.next {
            Some(next) => next,
            None => self.list(sink).await?,
        };
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
        loop {
            let response = match responses.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.broken("the server ended the watch".to_owned()).await),
                Err(status) => return Err(self.broken(explain(&status)).await),
            };
            if response.canceled {
                return Err(self.canceled(response).await);
            }
            sink.readable();
            self.take(sink, response).await?;
        }
    }

    /// Sends a snapshot and returns the revision to watch from.
    async fn list(&mut self, sink: &mut Sink) -> Result<i64, Halt> {
        let mut listing = self.store.list(TRIED).await?;
        let own = self.store.lock().own;
        if let Some(lease) = listing.leases.iter_mut().find(|lease| Some(lease.key) == own) {
            let id = listing.stored.get(&lease.key).map_or(0, |stored| stored.lease);
            if id != 0 {
                lease.expires = Some(self.store.end(TRIED, id).await?);
            }
        }
        self.known = listing.leases.iter().map(|lease| lease.key).collect();
        let next = listing.revision + 1;
        sink.send(Event::Snapshot(listing.leases)).await?;
        self.next = Some(next);
        Ok(next)
    }

    async fn take(&mut self, sink: &mut Sink, response: WatchResponse) -> Result<(), Halt> {
        let revision = response.header.unwrap_or_default().revision;
        let last = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
        let seen = |event: &WatchEvent| {
            event.kv.as_ref().is_some_and(|kv| self.next.is_some_and(|next| kv.mod_revision < next))
        };
        let new: Vec<WatchEvent> = response.events.into_iter().filter(|event| !seen(event)).collect();
        for event in new {
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
                self.store.lock().complaints.add(&name(keys, kv), &complaint);
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
