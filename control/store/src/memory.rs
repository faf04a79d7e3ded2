//! The fake: the same promises as the real stores, gone with the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use tokio::sync::watch;

use super::rows::{self, Row, Table};
use super::watch::{Look, Source};
use super::{LEASE_TTL, StoreError, Watch, Wish, unix_now};

/// Leases in memory. Clones are handles to the same store.
#[derive(Debug, Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    ttl: Duration,
}

/// What a watch needs of it.
#[derive(Debug)]
pub(super) struct Changes {
    shared: Arc<Shared>,
    revisions: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    contents: Mutex<Contents>,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Contents {
    config: Option<String>,
    rows: BTreeMap<String, Row>,
    revision: u64,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Memory {
        let shared = Shared { contents: Mutex::default(), revision: watch::Sender::new(0) };
        Memory { shared: Arc::new(shared), ttl: LEASE_TTL }
    }

    /// The same store with leases of another length from now on.
    pub fn with_ttl(self, ttl: Duration) -> Memory {
        Memory { ttl, ..self }
    }

    /// Writes a row as an administrator would: any text, and no expiry for a reservation.
    pub fn put_row(&self, key: &str, value: &str, expires: Option<u64>) {
        let row = Row { key: key.to_owned(), value: value.to_owned(), expires };
        self.shared.step(|contents| contents.insert(row));
    }

    pub(super) fn net_config(&self) -> Option<String> {
        self.shared.lock().config.clone()
    }

    pub(super) fn set_net_config(&self, text: &str) {
        self.shared.lock().config = Some(text.to_owned());
    }

    pub(super) fn acquire(&self, wish: &Wish<'_>) -> Result<Lease, StoreError> {
        let now = unix_now();
        let expires = now.saturating_add(self.ttl.as_secs());
        self.shared.step(|contents| rows::acquire(contents, wish, now, expires, &mut rand::rng()))
    }

    pub(super) fn update(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, StoreError> {
        let now = unix_now();
        let expires = now.saturating_add(self.ttl.as_secs());
        self.shared.step(|contents| rows::update(contents, lease, attrs, now, expires))
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        rows::understand(self.shared.step(|contents| contents.purge(unix_now()))).leases
    }

    pub(super) fn remove(&self, key: &SubnetKey) -> Result<bool, StoreError> {
        self.shared.step(|contents| rows::remove(contents, key, unix_now()))
    }

    pub(super) fn watch(&self) -> Watch {
        let revisions = self.shared.revision.subscribe();
        Watch::new(Source::Memory(Changes { shared: self.shared.clone(), revisions }))
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Changes {
    pub(super) async fn hint(&mut self) {
        // The sender lives as long as `shared`, so this cannot fail.
        let _ = self.revisions.changed().await;
    }

    pub(super) fn look(&mut self, seen: Option<u64>) -> Option<Look> {
        // Before the look: what is written after it must hint again.
        self.revisions.mark_unchanged();
        let look = self.shared.step(|contents| {
            let rows = contents.purge(unix_now());
            Look { revision: contents.revision, rows }
        });
        (seen != Some(look.revision)).then_some(look)
    }
}

impl Shared {
    /// One indivisible step, announced if it changed anything.
    fn step<T>(&self, step: impl FnOnce(&mut Contents) -> T) -> T {
        let mut contents = self.lock();
        let outcome = step(&mut contents);
        self.revision
            .send_if_modified(|seen| std::mem::replace(seen, contents.revision) != contents.revision);
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn purge(&mut self, now: u64) -> Vec<Row> {
        let before = self.rows.len();
        self.rows.retain(|_, row| row.expires.is_none_or(|expires| now < expires));
        self.revision += (before - self.rows.len()) as u64;
        self.rows.values().cloned().collect()
    }

    fn insert(&mut self, row: Row) {
        self.revision += 1;
        self.rows.insert(row.key.clone(), row);
    }
}

impl Table for Contents {
    fn live(&mut self, now: u64) -> Result<Vec<Row>, StoreError> {
        Ok(self.purge(now))
    }

    fn put(&mut self, row: Row) -> Result<(), StoreError> {
        self.insert(row);
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), StoreError> {
        self.revision += u64::from(self.rows.remove(key).is_some());
        Ok(())
    }
}
