//! Follows the leases: a snapshot, then each change, over all that can happen to a connection.
//!
//! A task of its own does it, so that whoever waits for the next event may stop waiting at any time.

use std::collections::BTreeSet;
use std::time::Duration;

use model::lease::SubnetKey;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::client::explain;
use super::list::{Entry, name, understand};
use super::messages::{DELETE, KeyValue, PUT, WatchCreateRequest, WatchEvent, WatchResponse};
use super::{Etcd, EtcdError};
use crate::{Event, Sight};

const TRIED: &str = "watch the leases";
/// First and longest wait after a failure, as in flannel.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Events that may wait for the daemon. When it is slower than this, etcd keeps the rest.
const QUEUE: usize = 1024;

/// What a watch needs of the store. Dropping it ends the task.
#[derive(Debug)]
pub(crate) struct Changes {
    events: mpsc::Receiver<Event>,
    sight: Sight,
    task: JoinHandle<()>,
}

/// What was seen so far.
struct Follower {
    store: Etcd,
    events: mpsc::Sender<Event>,
    sight: Sight,
    /// Subnets that the reader of the events knows to be held.
    known: BTreeSet<SubnetKey>,
    /// First revision not yet seen; `None`: list them all.
    next: Option<i64>,
}

/// Why following came to a halt.
enum Halt {
    /// Nobody wants the events any more.
    Unwanted,
    Failed(EtcdError),
}

impl Changes {
    pub(super) fn new(store: Etcd) -> Changes {
        let (sender, events) = mpsc::channel(QUEUE);
        // Until the first answer nothing is seen.
        let sight = Sight::default();
        sight.lose();
        let follower =
            Follower { store, events: sender, sight: sight.clone(), known: BTreeSet::new(), next: None };
        Changes { events, sight, task: tokio::spawn(follower.run()) }
    }

    pub(crate) fn sight(&self) -> &Sight {
        &self.sight
    }

    pub(crate) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // Only while the process ends: the task lives as long as the runtime does.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    async fn run(mut self) {
        let mut wait = BACK_OFF.0;
        let mut told: Option<EtcdError> = None;
        loop {
            let began = Instant::now();
            let error = match self.follow(&mut told).await {
                Halt::Unwanted => return,
                Halt::Failed(error) => error,
            };
            if let EtcdError::Compacted { .. } = error {
                self.next = None;
            }
            self.sight.lose();
            if began.elapsed() > BACK_OFF.1 {
                wait = BACK_OFF.0;
            }
            if told.as_ref().map(gist) != Some(gist(&error)) {
                tracing::warn!("watching leases: {error}; trying again");
            }
            told = Some(error);
            sleep(wait).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    /// Until something goes wrong.
    async fn follow(&mut self, told: &mut Option<EtcdError>) -> Halt {
        match self.try_follow(told).await {
            Ok(never) => match never {},
            Err(halt) => halt,
        }
    }

    async fn try_follow(&mut self, told: &mut Option<EtcdError>) -> Result<std::convert::Infallible, Halt> {
        let start = match self.next {
            Some(next) => next,
            None => self.list().await?,
        };
        let keys = self.store.client.keys();
        let request = WatchCreateRequest {
            key: keys.leases().to_vec(),
            range_end: keys.leases_end(),
            // One before what is next: where that is a removal and was just compacted, etcd would leave it out in
            // silence (etcd-io/etcd#18089, mended in 2024), but not what is older.
            start_revision: (start - 1).max(1),
            progress_notify: true,
            fragment: true,
        };
        let mut responses = self.store.client.watch(TRIED, request).await?;
        loop {
            let response = match responses.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.broken("it ended the watch".to_owned()).await),
                Err(status) => return Err(self.broken(explain(&status)).await),
            };
            if response.canceled {
                return Err(self.canceled(response).await);
            }
            self.sight.regain();
            if told.take().is_some() {
                tracing::info!("lease store: readable again");
            }
            self.take(response).await?;
        }
    }

    /// A snapshot; gives the revision from which to watch.
    async fn list(&mut self) -> Result<i64, Halt> {
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
        self.send(Event::Snapshot(listing.leases)).await?;
        self.next = Some(next);
        Ok(next)
    }

    async fn take(&mut self, response: WatchResponse) -> Result<(), Halt> {
        let revision = response.header.unwrap_or_default().revision;
        let last = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
        let seen = |event: &WatchEvent| {
            event.kv.as_ref().is_some_and(|kv| self.next.is_some_and(|next| kv.mod_revision < next))
        };
        let new: Vec<WatchEvent> = response.events.into_iter().filter(|event| !seen(event)).collect();
        for event in new {
            self.handle(event).await?;
        }
        self.next = match last {
            // The rest of this revision is to come: after a break, all of it again.
            Some(last) if response.fragment => self.next.max(Some(last)),
            Some(last) => self.next.max(Some(last + 1)),
            // What comes first says where the cluster is, not where we are.
            None if response.created || response.fragment => self.next,
            // A progress report: everything up to here was delivered.
            None => self.next.max(Some(revision + 1)),
        };
        Ok(())
    }

    async fn handle(&mut self, event: WatchEvent) -> Result<(), Halt> {
        let Some(kv) = event.kv else { return Ok(()) };
        match event.kind {
            PUT => self.put(&kv).await,
            DELETE => self.deleted(&kv).await,
            _ => Ok(()),
        }
    }

    async fn put(&mut self, kv: &KeyValue) -> Result<(), Halt> {
        let keys = self.store.client.keys();
        match understand(keys, kv, |id| self.store.likely_end(id)) {
            Entry::Lease(mut lease) => {
                self.store.lock().complaints.remove(&name(keys, kv));
                if kv.lease != 0 && self.store.lock().own == Some(lease.key) {
                    // A lease that is gone by now has its removal on the way.
                    lease.expires = self.store.end(TRIED, kv.lease).await.ok().or(lease.expires);
                }
                self.known.insert(lease.key);
                self.send(Event::Put(lease)).await
            }
            Entry::Broken { complaint, .. } => {
                self.store.lock().complaints.add(&name(keys, kv), &complaint);
                self.gone(kv).await
            }
        }
    }

    async fn deleted(&mut self, kv: &KeyValue) -> Result<(), Halt> {
        let keys = self.store.client.keys();
        self.store.lock().complaints.remove(&name(keys, kv));
        self.gone(kv).await
    }

    /// What is stored under this key is no lease any more, if it was one.
    async fn gone(&mut self, kv: &KeyValue) -> Result<(), Halt> {
        let keys = self.store.client.keys();
        let key = keys.tail(&kv.key).parse::<SubnetKey>().ok();
        match key.filter(|key| keys.lease(key) == kv.key && self.known.remove(key)) {
            Some(key) => self.send(Event::Removed(key)).await,
            None => Ok(()),
        }
    }

    async fn send(&self, event: Event) -> Result<(), Halt> {
        self.events.send(event).await.map_err(|_| Halt::Unwanted)
    }

    async fn canceled(&self, response: WatchResponse) -> Halt {
        if response.compact_revision != 0 {
            return Halt::Failed(EtcdError::Compacted { tried: TRIED });
        }
        // An old token is among the reasons, and is not always named.
        self.store.client.forget_token().await;
        let endpoint = self.store.client.endpoint().await;
        let answer = response.cancel_reason;
        Halt::Failed(EtcdError::Refused { tried: TRIED, endpoint, answer })
    }

    async fn broken(&self, answer: String) -> Halt {
        let endpoint = self.store.client.endpoint().await;
        Halt::Failed(EtcdError::Unreachable { tried: TRIED, endpoint, answer })
    }
}

/// An error without its numbers: some name the time, and are the same complaint each time.
fn gist(error: &EtcdError) -> String {
    error.to_string().chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

impl From<EtcdError> for Halt {
    fn from(error: EtcdError) -> Halt {
        Halt::Failed(error)
    }
}
