//! Finds changes by comparing two looks at the rows, for stores that do not report changes themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::lease::{Lease, SubnetKey};

use crate::rows::{Contents, Row, understand};
use crate::stream::{Follow, Halt, Sink};
use crate::{Event, Position, StoreError};

/// Longest sleep without a look. An expiry is a point of the wall clock, which may jump during the sleep, as
/// after a suspend.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Looks at a store whenever it may have changed.
#[derive(Debug)]
pub(crate) struct Poller<S> {
    source: S,
    differ: Differ,
    /// The store may differ from what `differ` has seen.
    stale: bool,
}

/// A store that a poller can look at.
pub(crate) trait Source: Send + 'static {
    /// Returns when something may have changed.
    fn hint(&mut self) -> impl Future<Output = ()> + Send;

    /// Reads the rows; `None` if they are still those of `seen`, and of the same store.
    fn look(&mut self, seen: Option<u64>) -> impl Future<Output = Result<Option<Look>, StoreError>> + Send;
}

/// The rows as of one revision.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) revision: u64,
    pub(crate) rows: Vec<Row>,
    /// These are not the rows that were looked at before: the store was replaced.
    pub(crate) replaced: bool,
}

impl<S: Source> Poller<S> {
    /// Starts with the position that an earlier run has read up to.
    pub(crate) fn new(source: S, since: Option<Position>) -> Poller<S> {
        Poller { source, differ: Differ { since, ..Differ::default() }, stale: true }
    }

    async fn try_follow(&mut self, sink: &mut Sink) -> Result<std::convert::Infallible, Halt> {
        loop {
            if !self.stale {
                tokio::select! {
                    () = self.source.hint() => {}
                    () = tokio::time::sleep(until_next_expiry(self.differ.next_expiry)) => {}
                }
            }
            self.stale = true;
            let look = self.source.look(self.differ.revision).await.map_err(Halt::Failed)?;
            self.stale = false;
            sink.readable();
            for event in look.map(|look| self.differ.compare(look)).unwrap_or_default() {
                sink.send(event).await?;
            }
            if let Some(revision) = self.differ.revision {
                sink.reached(Position { cluster: 0, revision });
            }
        }
    }
}

impl<S: Source> Follow for Poller<S> {
    async fn follow(&mut self, sink: &mut Sink) -> Halt {
        match self.try_follow(sink).await {
            Ok(never) => match never {},
            Err(halt) => halt,
        }
    }
}

fn until_next_expiry(expiry: Option<u64>) -> Duration {
    let Some(expiry) = expiry else { return LONGEST_SLEEP };
    let end = UNIX_EPOCH.checked_add(Duration::from_secs(expiry));
    // Plus a millisecond: a timer that fires early would cause an extra look.
    let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    left.saturating_add(Duration::from_millis(1)).min(LONGEST_SLEEP)
}

/// The last look.
#[derive(Debug, Default)]
struct Differ {
    /// What an earlier run has read up to.
    since: Option<Position>,
    revision: Option<u64>,
    known: BTreeMap<SubnetKey, Lease>,
    complaints: BTreeSet<String>,
    next_expiry: Option<u64>,
}

impl Differ {
    /// Returns the events that lead from the last look to this one: a snapshot for the first, and for one of
    /// a store that has lost something; else removals before additions, so that two leases never seem to hold
    /// one subnet.
    fn compare(&mut self, look: Look) -> Vec<Event> {
        let seen = self.revision.or(self.since.map(|since| since.revision));
        let rewound = look.replaced || seen.is_some_and(|seen| look.revision < seen);
        let Contents { leases, complaints, .. } = understand(look.rows);
        for complaint in complaints.difference(&self.complaints) {
            tracing::warn!("lease store: {complaint}; skipped");
        }
        self.complaints = complaints;
        self.next_expiry = leases.iter().filter_map(|lease| lease.expires).min();
        let current: BTreeMap<SubnetKey, Lease> =
            leases.into_iter().map(|lease| (lease.key, lease)).collect();
        let events = if rewound {
            tracing::warn!(
                "lease store: its leases are older than those read before: it was wiped or restored; \
                 peers that are missing are kept until their leases expire"
            );
            vec![Event::Rewind(current.values().cloned().collect())]
        } else if self.revision.is_none() {
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
