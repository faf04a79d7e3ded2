//! The watch of any store. etcd tells events itself; for the others it goes from looks at the stored rows
//! to events: what differs between two looks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::lease::{Lease, SubnetKey};
use tokio::time::Instant;

use super::rows::{Contents, Row, understand};
use super::{Event, Sight, StoreError, etcd, memory, sqlite};

/// Longest sleep without a look. The end of a lease is a point of the wall clock, which may jump while
/// the sleep runs on, as after a suspend.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// First and longest wait after a look that failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Follows the leases of a store. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch(Kind);

#[derive(Debug)]
enum Kind {
    Events(etcd::Changes),
    Looks(Box<Looks>),
}

/// Looks at a store whenever it may have changed.
#[derive(Debug)]
struct Looks {
    source: Source,
    differ: Differ,
    events: VecDeque<Event>,
    /// The store may differ from what `differ` has seen.
    stale: bool,
    failure: Option<Failure>,
    sight: Sight,
}

/// What a store offers to a watch: a hint that something changed, and a look at the rows.
#[derive(Debug)]
pub(super) enum Source {
    Sqlite(sqlite::Changes),
    Memory(memory::Changes),
}

/// The rows as of one revision.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) revision: u64,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug)]
struct Failure {
    error: StoreError,
    wait: Duration,
    until: Instant,
}

impl Watch {
    pub(super) fn new(source: Source) -> Watch {
        let differ = Differ::default();
        Watch(Kind::Looks(Box::new(Looks {
            source,
            differ,
            events: VecDeque::new(),
            stale: true,
            failure: None,
            sight: Sight::default(),
        })))
    }

    pub(super) fn of_events(events: etcd::Changes) -> Watch {
        Watch(Kind::Events(events))
    }

    /// Whether the store can be read.
    pub fn sight(&self) -> &Sight {
        match &self.0 {
            Kind::Events(events) => events.sight(),
            Kind::Looks(looks) => &looks.sight,
        }
    }

    /// The next event, the first of all a snapshot. While the store cannot be read it warns and tries
    /// again, and then goes on where it was, with a snapshot if it cannot know what was in between.
    /// Nothing is lost if the future is dropped half-way.
    pub async fn next(&mut self) -> Event {
        match &mut self.0 {
            Kind::Events(events) => events.next().await,
            Kind::Looks(looks) => looks.next().await,
        }
    }
}

impl Looks {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if let Some(failure) = &self.failure {
                tokio::time::sleep_until(failure.until).await;
            } else if !self.stale {
                tokio::select! {
                    () = self.source.hint() => {}
                    () = tokio::time::sleep(until_next_expiry(self.differ.next_expiry)) => {}
                }
            }
            self.stale = true;
            match self.source.look(self.differ.revision).await {
                Ok(look) => {
                    self.stale = false;
                    self.sight.regain();
                    if self.failure.take().is_some() {
                        tracing::info!("lease store: readable again");
                    }
                    self.events.extend(look.map(|look| self.differ.compare(look)).unwrap_or_default());
                }
                Err(error) => self.note_failure(error),
            }
        }
    }

    fn note_failure(&mut self, error: StoreError) {
        let wait = match &self.failure {
            Some(before) => (before.wait * 2).min(BACK_OFF.1),
            None => BACK_OFF.0,
        };
        if self.failure.as_ref().is_none_or(|before| before.error != error) {
            tracing::warn!("watching leases: {error}");
        }
        self.sight.lose();
        self.failure = Some(Failure { error, wait, until: Instant::now() + wait });
    }
}

impl Source {
    async fn hint(&mut self) {
        match self {
            Source::Sqlite(changes) => changes.hint().await,
            Source::Memory(changes) => changes.hint().await,
        }
    }

    /// `None` if the rows are still those of `seen`.
    async fn look(&mut self, seen: Option<u64>) -> Result<Option<Look>, StoreError> {
        match self {
            Source::Sqlite(changes) => changes.look(seen).await,
            Source::Memory(changes) => Ok(changes.look(seen)),
        }
    }
}

fn until_next_expiry(expiry: Option<u64>) -> Duration {
    let Some(expiry) = expiry else { return LONGEST_SLEEP };
    let end = UNIX_EPOCH.checked_add(Duration::from_secs(expiry));
    // A millisecond more: a timer that fires early would look once too often.
    let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    left.saturating_add(Duration::from_millis(1)).min(LONGEST_SLEEP)
}

/// What was seen last.
#[derive(Debug, Default)]
struct Differ {
    revision: Option<u64>,
    known: BTreeMap<SubnetKey, Lease>,
    complaints: BTreeSet<String>,
    next_expiry: Option<u64>,
}

impl Differ {
    /// Events that lead from the last look to this one: a snapshot for the first, later removals before
    /// additions, so that two leases never seem to hold one subnet.
    fn compare(&mut self, look: Look) -> Vec<Event> {
        let Contents { leases, complaints, .. } = understand(look.rows);
        for complaint in complaints.difference(&self.complaints) {
            tracing::warn!("lease store: {complaint}; skipped");
        }
        self.complaints = complaints;
        self.next_expiry = leases.iter().filter_map(|lease| lease.expires).min();
        let current: BTreeMap<SubnetKey, Lease> =
            leases.into_iter().map(|lease| (lease.key, lease)).collect();
        let events = if self.revision.is_none() {
            vec![Event::Snapshot(current.values().cloned().collect())]
        } else {
            let gone = self.known.keys().filter(|key| !current.contains_key(key));
            let put = current.values().filter(|lease| self.known.get(&lease.key) != Some(lease));
            gone.map(|key| Event::Removed(*key)).chain(put.map(|lease| Event::Put(lease.clone()))).collect()
        };
        self.revision = Some(look.revision);
        self.known = current;
        events
    }
}
