//! The store that flannel clusters use: etcd v3, every key and value as flannel writes it.
//!
//! etcd expires leases by itself and reports that in the watch. An expiry costs a call to find out, so only
//! the list of all leases asks for all of them. Elsewhere the lease that this handle holds has its true
//! expiry, and another node's the latest possible one: a full life from now.
//!
//! ```text
//! config    flannel's --etcd-* options
//! keys      prefix, configuration, leases
//! messages  etcd's protocol
//! client    calls, fail-over, tokens
//! list      all leases, page by page, each entry read on its own
//! watch     from etcd's events to ours
//! ```

mod client;
mod config;
mod error;
mod keys;
mod list;
mod messages;
mod resolver;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use model::lease::{Lease, LeaseAttrs, SubnetKey};
use rand::Rng;

use crate::complaints::Complaints;
use crate::lease::{Wish, allocator};
use crate::{LEASE_TTL, Position, StoreError, Watch, unix_now};
use client::Client;
use list::{Listing, Stored};
use messages::{
    DeleteRangeRequest, DeleteRangeResponse, Done, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Op, PutRequest, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse, unchanged,
};
use watch::Follower;

pub use config::Config;
pub use error::EtcdError;

/// Attempts to acquire a lease while other nodes are faster. flannel makes 10, too few when thousands of
/// nodes start at once and choose among the same hundred subnets.
const ROUNDS: u32 = 40;
/// Longest random pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How many expiries to ask for at a time.
const PARALLEL: usize = 16;
/// How many of our own grants to remember.
const GRANTS: usize = 16;

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

const ACQUIRE: &str = "acquire a lease";
const RENEW: &str = "renew the lease";
const REMOVE: &str = "remove a lease";

/// A handle to a cluster. Clones share its connection.
#[derive(Debug, Clone)]
pub struct Etcd {
    client: Client,
    memory: Arc<Mutex<Memory>>,
    ttl: Duration,
}

/// What a handle remembers.
#[derive(Debug, Default)]
struct Memory {
    /// The lease that was acquired last.
    own: Option<SubnetKey>,
    /// Expiries of the newest few etcd leases that were granted to us, by their ids.
    ends: BTreeMap<i64, u64>,
    /// A grant that no key has yet, as far as we know.
    unused: Option<Grant>,
    complaints: Complaints,
}

/// An etcd lease that we have asked for.
#[derive(Debug, Clone, Copy)]
struct Grant {
    id: i64,
    /// When it was asked for first.
    asked: u64,
}

impl Etcd {
    /// Checks the options. The cluster need not be up yet: the first call reads the TLS files and connects.
    pub fn open(config: Config) -> Result<Etcd, EtcdError> {
        Ok(Etcd { client: Client::new(config)?, memory: Arc::default(), ttl: LEASE_TTL })
    }

    /// Changes the life of leases granted from now on.
    pub fn with_ttl(self, ttl: Duration) -> Etcd {
        Etcd { ttl, ..self }
    }

    pub(crate) async fn net_config(&self) -> Result<Option<String>, EtcdError> {
        let request = RangeRequest { key: self.client.keys().config().to_vec(), ..RangeRequest::default() };
        let answer: RangeResponse =
            self.client.call("read the network configuration", RANGE, &request).await?;
        Ok(answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    pub(crate) async fn set_net_config(&self, text: &str) -> Result<(), EtcdError> {
        let key = self.client.keys().config().to_vec();
        let request = PutRequest { key, value: text.as_bytes().to_vec(), lease: 0 };
        let Done {} = self.client.call("store the network configuration", PUT, &request).await?;
        Ok(())
    }

    pub(crate) async fn acquire(&self, wish: &Wish<'_>) -> Result<Lease, StoreError> {
        if wish.config.ipv4.is_none() {
            return Err(EtcdError::Ipv6Only.into());
        }
        for round in 0..ROUNDS {
            if round > 0 {
                let longest = (Duration::from_millis(10) * (1 << round.min(8))).min(LONGEST_PAUSE);
                let pause = rand::rng().random_range(Duration::ZERO..longest);
                tokio::time::sleep(pause).await;
            }
            if let Some(lease) = self.try_acquire(wish).await? {
                self.lock().own = Some(lease.key);
                return Ok(lease);
            }
        }
        Err(EtcdError::Contended { rounds: ROUNDS }.into())
    }

    pub(crate) async fn update(&self, lease: &Lease, new: &LeaseAttrs) -> Result<Lease, StoreError> {
        let updated = Lease { attrs: new.clone(), ..lease.clone() };
        let lost = |why| StoreError::Lost { key: lease.key.to_string(), why };
        for _ in 0..ROUNDS {
            let key = self.client.keys().lease(&lease.key);
            let request = RangeRequest { key, ..RangeRequest::default() };
            let answer: RangeResponse = self.client.call(RENEW, RANGE, &request).await?;
            let kv = answer.kvs.first().ok_or_else(|| lost("it expired or was removed"))?;
            let attrs = std::str::from_utf8(&kv.value).ok().and_then(|text| LeaseAttrs::parse(text).ok());
            if attrs.as_ref() != Some(&lease.attrs) {
                return Err(lost("another node wrote to it"));
            }
            let stored = Stored::of(kv);
            if stored.lease == 0 && *new == lease.attrs {
                return Ok(Lease { expires: None, ..updated });
            }
            if let Some((renewed, _)) = self.write(RENEW, &updated, Some(stored)).await? {
                return Ok(renewed);
            }
        }
        Err(EtcdError::Contended { rounds: ROUNDS }.into())
    }

    pub(crate) async fn leases(&self) -> Result<Vec<Lease>, EtcdError> {
        const TRIED: &str = "list leases";
        let listing = self.list(TRIED).await?;
        let (listing, now) = (&listing, unix_now());
        let ends = stream::iter(&listing.leases).map(async |lease| {
            let id = listing.stored.get(&lease.key).map_or(0, |stored| stored.lease);
            let expires = if id == 0 { None } else { Some(self.end(TRIED, id).await.unwrap_or(now)) };
            Lease { expires, ..lease.clone() }
        });
        let mut leases: Vec<Lease> = ends.buffer_unordered(PARALLEL).collect().await;
        leases.sort_by_key(|lease| lease.key);
        Ok(leases)
    }

    /// Lists all leases with the latest possible expiry of each.
    pub(crate) async fn listed(&self) -> Result<Vec<Lease>, EtcdError> {
        Ok(self.list("list leases").await?.leases)
    }

    pub(crate) async fn remove(&self, key: &SubnetKey) -> Result<bool, EtcdError> {
        let request = DeleteRangeRequest { key: self.client.keys().lease(key), prev_kv: true };
        let answer: DeleteRangeResponse = self.client.call(REMOVE, DELETE_RANGE, &request).await?;
        for kv in &answer.prev_kvs {
            self.retire(REMOVE, kv.lease).await;
        }
        Ok(!answer.prev_kvs.is_empty())
    }

    pub(crate) fn watch(&self, since: Option<Position>) -> Watch {
        Watch::new(Follower::new(self.clone(), since))
    }

    /// Makes one attempt: lists, decides, and writes if nothing that the decision rests on has changed, else
    /// `None`.
    async fn try_acquire(&self, wish: &Wish<'_>) -> Result<Option<Lease>, StoreError> {
        let mut listing = self.list(ACQUIRE).await?;
        let is_former = |lease: &&mut Lease| {
            wish.former.is_some_and(|former| former.key == lease.key && former.attrs == lease.attrs)
        };
        if let Some(lease) = listing.leases.iter_mut().find(is_former)
            && let Some(stored) = listing.stored.get(&lease.key).filter(|stored| stored.lease != 0)
        {
            // Whether it is as we left it shows in its true expiry.
            lease.expires = Some(self.end(ACQUIRE, stored.lease).await?);
        }
        let decision = allocator::decide(wish, &listing.leases, &listing.unreadable, &mut rand::rng())?;
        for key in &decision.remove {
            let Some(stored) = listing.stored.get(key) else { continue };
            if !self.delete(key, stored).await? {
                return Ok(None);
            }
            tracing::info!("lease {key} is ours but outside the network configuration; removed");
        }
        let lease = Lease { key: decision.key, attrs: wish.attrs.clone(), expires: None };
        let stored = listing.stored.get(&decision.key).filter(|_| decision.reuse).copied();
        let Some((lease, stored)) = self.write(ACQUIRE, &lease, stored).await? else { return Ok(None) };
        if !decision.reuse && self.is_late(&lease.key, stored.modified).await? {
            // Another node wrote an overlapping subnet under another key between our list and our write.
            self.delete(&lease.key, &stored).await?;
            return Ok(None);
        }
        Ok(Some(lease))
    }

    /// Stores `lease` for a new full life if the key is still as `stored` says, `None` meaning absent. A
    /// reservation stays one. Returns the lease and how it is stored now; `None` if the key has changed.
    async fn write(
        &self,
        tried: &'static str,
        lease: &Lease,
        stored: Option<Stored>,
    ) -> Result<Option<(Lease, Stored)>, EtcdError> {
        let grant = match stored {
            Some(Stored { lease: 0, .. }) => None,
            _ => Some(self.grant(tried).await?),
        };
        let id = grant.map_or(0, |(id, _)| id);
        let key = self.client.keys().lease(&lease.key);
        let guard = unchanged(&key, stored.map_or(0, |stored| stored.modified));
        let put = Op::Put(PutRequest { key, value: lease.attrs.to_json().into_bytes(), lease: id });
        let answer = self.transact(tried, guard, put).await?;
        self.lock().unused.take_if(|grant| grant.id == id);
        let void = if answer.succeeded { stored.map_or(0, |stored| stored.lease) } else { id };
        if void != id || !answer.succeeded {
            self.retire(tried, void).await;
        }
        let written = Lease { expires: grant.map(|(_, end)| end), ..lease.clone() };
        let modified = answer.header.unwrap_or_default().revision;
        Ok(answer.succeeded.then_some((written, Stored { lease: id, modified })))
    }

    /// Deletes a key unless it has changed. Returns true if it is gone.
    async fn delete(&self, key: &SubnetKey, stored: &Stored) -> Result<bool, EtcdError> {
        let key = self.client.keys().lease(key);
        let guard = unchanged(&key, stored.modified);
        let delete = Op::Delete(DeleteRangeRequest { key, prev_kv: false });
        let gone = self.transact(ACQUIRE, guard, delete).await?.succeeded;
        if gone {
            self.retire(ACQUIRE, stored.lease).await;
        }
        Ok(gone)
    }

    async fn transact(
        &self,
        tried: &'static str,
        guard: messages::Compare,
        op: Op,
    ) -> Result<TxnResponse, EtcdError> {
        let request = TxnRequest { compare: vec![guard], success: vec![op.into()] };
        self.client.call(tried, TXN, &request).await
    }

    /// Asks for a new etcd lease and returns its id and its expiry. The id is our own choice, and a grant
    /// whose answer was lost is asked for by the same id again: a slow cluster must not fill up with grants.
    async fn grant(&self, tried: &'static str) -> Result<(i64, u64), EtcdError> {
        let (now, ttl) = (unix_now(), self.ttl.as_secs());
        let grant = {
            let mut memory = self.lock();
            // The clock may have been stepped.
            let fresh = |grant: &Grant| now.abs_diff(grant.asked) <= ttl / 2;
            let new = || Grant { id: rand::rng().random_range(1..=i64::MAX), asked: now };
            let grant = memory.unused.filter(fresh).unwrap_or_else(new);
            *memory.unused.insert(grant)
        };
        let request = LeaseGrantRequest { ttl: i64::try_from(ttl).unwrap_or(i64::MAX), id: grant.id };
        let life = match self.client.call::<_, LeaseGrantResponse>(tried, GRANT, &request).await {
            Ok(granted) => granted.ttl.max(0).unsigned_abs(),
            Err(EtcdError::Granted { .. }) => ttl,
            Err(error) => return Err(error),
        };
        let end = grant.asked.saturating_add(life);
        let mut memory = self.lock();
        memory.ends.insert(grant.id, end);
        while memory.ends.len() > GRANTS {
            let oldest = memory.ends.iter().min_by_key(|(_, end)| **end).map(|(id, _)| *id);
            oldest.and_then(|id| memory.ends.remove(&id));
        }
        Ok((grant.id, end))
    }

    /// Revokes an etcd lease that no key needs any more. One with keys is left alone, because they would be
    /// deleted too: an administrator may have attached several, or a write of ours succeeded after all.
    async fn retire(&self, tried: &'static str, id: i64) {
        if id == 0 {
            return;
        }
        let retired = async {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let left: LeaseTimeToLiveResponse = self.client.call(tried, TIME_TO_LIVE, &request).await?;
            if left.ttl >= 0 && left.keys.is_empty() {
                let Done {} = self.client.call(tried, REVOKE, &LeaseRevokeRequest { id }).await?;
            }
            Ok::<(), EtcdError>(())
        };
        if let Err(error) = retired.await {
            tracing::debug!("cannot revoke an etcd lease of ours, left to expire: {error}");
        }
    }

    /// Returns the expiry of an etcd lease.
    async fn end(&self, tried: &'static str, id: i64) -> Result<u64, EtcdError> {
        let known = self.lock().ends.get(&id).copied();
        if let Some(end) = known {
            return Ok(end);
        }
        let request = LeaseTimeToLiveRequest { id, keys: false };
        let left: LeaseTimeToLiveResponse = self.client.call(tried, TIME_TO_LIVE, &request).await?;
        Ok(unix_now().saturating_add(left.ttl.max(0).unsigned_abs()))
    }

    /// Returns true if an overlapping key is older than ours of `revision`. Of two nodes that write such keys
    /// at once, the one with the younger key finds the older and gives way; a stock node does not look.
    async fn is_late(&self, key: &SubnetKey, revision: i64) -> Result<bool, EtcdError> {
        let others = list::keys(&self.client, ACQUIRE).await?;
        Ok(others.into_iter().any(|(other, created)| other.overlaps(key) && created < revision))
    }

    async fn list(&self, tried: &'static str) -> Result<Listing, EtcdError> {
        let listing = list::all(&self.client, tried, |id| self.likely_end(id)).await?;
        self.lock().complaints.replace(&listing.complaints);
        Ok(listing)
    }

    /// Returns the expiry of an etcd lease as far as it is known without a call.
    fn likely_end(&self, id: i64) -> Option<u64> {
        let known = || self.lock().ends.get(&id).copied();
        (id != 0).then(|| known().unwrap_or_else(|| unix_now().saturating_add(LEASE_TTL.as_secs())))
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests;
