//! The fake store: it keeps the same promises as the real ones and ends with the process.
//!
//! Like an administrator of Kubernetes, a test can publish another address than the node wished. Rows hold
//! the wishes; all readers get the published attributes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use tokio::sync::watch;

use crate::lease::{self, Holder, Owned, Wish};
use crate::poll::{Look, Poller, Source};
use crate::rows::{self, Row, Table};
use crate::{LEASE_TTL, Position, StoreError, Watch, unix_now};

/// Leases in memory. Clones are handles to the same store, and equal.
#[derive(Debug, Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    ttl: Duration,
}

/// A poller's source.
struct Changes {
    shared: Arc<Shared>,
    revisions: watch::Receiver<u64>,
}

struct Shared {
    contents: Mutex<Contents>,
    revision: watch::Sender<u64>,
    on_ready: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// What was stored at one time.
#[derive(Debug, Clone, Default)]
pub struct Backup(Contents);

#[derive(Debug, Clone, Default)]
struct Contents {
    config: Option<String>,
    rows: BTreeMap<String, Row>,
    /// The address to publish for the node of a key; `None` after that was taken back. A node with an entry
    /// is identified by its key, as in Kubernetes by its name, and no longer by its address.
    overwrites: BTreeMap<String, Option<Ipv4Addr>>,
    revision: u64,
}

impl Memory {
    /// Creates an empty store.
    pub fn new() -> Memory {
        let shared = Shared {
            contents: Mutex::default(),
            revision: watch::Sender::new(0),
            on_ready: Mutex::default(),
        };
        Memory { shared: Arc::new(shared), ttl: LEASE_TTL }
    }

    /// Changes the life of leases granted by this handle.
    pub fn with_ttl(self, ttl: Duration) -> Memory {
        Memory { ttl, ..self }
    }

    /// Writes a row as an administrator would: any text, and no expiry for a reservation.
    pub fn put_row(&self, key: &str, value: &str, expires: Option<u64>) {
        let row = Row { key: key.to_owned(), value: value.to_owned(), expires };
        self.shared.step(|contents| contents.insert(row));
    }

    /// Publishes `address` for the node that holds `key`, whatever that node wishes, as flannel's annotation
    /// `public-ip-overwrite` does; `None` takes it back.
    pub fn overwrite_public_ip(&self, key: &SubnetKey, address: Option<Ipv4Addr>) {
        self.shared.step(|contents| {
            contents.overwrites.insert(key.to_string(), address);
            contents.revision += 1;
        });
    }

    /// Copies what is stored now, for [`Memory::restore`].
    pub fn backup(&self) -> Backup {
        Backup(self.shared.lock().clone())
    }

    /// Replaces all that is stored by an older state, revision included; the default is an empty store.
    pub fn restore(&self, backup: Backup) {
        self.shared.step(|contents| *contents = backup.0);
    }

    /// Calls `hook` whenever a daemon announces that it is ready.
    pub fn on_ready(&self, hook: impl Fn() + Send + 'static) {
        *self.shared.on_ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    pub(crate) fn net_config(&self) -> Option<String> {
        self.shared.lock().config.clone()
    }

    pub(crate) fn set_net_config(&self, text: &str) {
        self.shared.lock().config = Some(text.to_owned());
    }

    pub(crate) fn acquire(&self, wish: &Wish<'_>) -> Result<Owned, StoreError> {
        let now = unix_now();
        let expires = now.saturating_add(self.ttl.as_secs());
        self.shared.step(|contents| {
            let lease = rows::acquire(contents, wish, now, expires, &mut rand::rng())?;
            Ok(contents.owned(lease))
        })
    }

    pub(crate) fn update(&self, own: &Owned, wished: &LeaseAttrs) -> Result<Owned, StoreError> {
        let now = unix_now();
        let expires = now.saturating_add(self.ttl.as_secs());
        let known = Lease { attrs: own.wished.clone(), ..own.published.clone() };
        self.shared.step(|contents| {
            let lease = rows::update(contents, &known, wished, now, expires)?;
            Ok(contents.owned(lease))
        })
    }

    pub(crate) fn holder(&self, wished: &LeaseAttrs, stored: &Lease) -> Holder {
        let by_key = self.shared.lock().overwrites.contains_key(&stored.key.to_string());
        let apart_from_the_address = LeaseAttrs { public_ip: wished.public_ip, ..stored.attrs.clone() };
        if by_key && apart_from_the_address == *wished {
            return Holder::Us;
        }
        lease::holder(wished, &stored.attrs)
    }

    pub(crate) fn leases(&self) -> Vec<Lease> {
        rows::understand(self.shared.step(|contents| contents.published(unix_now()))).leases
    }

    pub(crate) fn remove(&self, key: &SubnetKey) -> bool {
        let Ok(removed) = self.shared.step(|contents| rows::remove(contents, key, unix_now()));
        removed
    }

    pub(crate) fn watch(&self, since: Option<Position>) -> Watch {
        let revisions = self.shared.revision.subscribe();
        Watch::new(Poller::new(Changes { shared: self.shared.clone(), revisions }, since))
    }

    pub(crate) fn announce_ready(&self) {
        if let Some(hook) = &*self.shared.on_ready.lock().unwrap_or_else(PoisonError::into_inner) {
            hook();
        }
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl PartialEq for Memory {
    fn eq(&self, other: &Memory) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Memory {}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("contents", &self.contents).finish_non_exhaustive()
    }
}

impl Source for Changes {
    async fn hint(&mut self) {
        // The sender lives as long as `shared`, so this cannot fail.
        let _ = self.revisions.changed().await;
    }

    async fn look(&mut self, seen: Option<u64>) -> Result<Option<Look>, StoreError> {
        // Before the look: what is written after it must hint again.
        self.revisions.mark_unchanged();
        let look = self.shared.step(|contents| {
            let rows = contents.published(unix_now());
            Look { revision: contents.revision, rows, replaced: false }
        });
        Ok((seen != Some(look.revision)).then_some(look))
    }
}

impl Shared {
    /// Runs one atomic step and wakes the watches if it changed anything.
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

    /// Returns the rows as all readers get them.
    fn published(&mut self, now: u64) -> Vec<Row> {
        let mut rows = self.purge(now);
        for row in &mut rows {
            if let Some(Some(address)) = self.overwrites.get(&row.key)
                && let Ok(attrs) = LeaseAttrs::parse(&row.value)
            {
                row.value = LeaseAttrs { public_ip: *address, ..attrs }.to_json();
            }
        }
        rows
    }

    /// Returns our own lease for a row, which holds the wish.
    fn owned(&self, lease: Lease) -> Owned {
        let mut own = Owned::as_wished(lease);
        if let Some(Some(address)) = self.overwrites.get(&own.key().to_string()) {
            own.published.attrs.public_ip = *address;
        }
        own
    }

    fn insert(&mut self, row: Row) {
        self.revision += 1;
        self.rows.insert(row.key.clone(), row);
    }
}

impl Table for Contents {
    type Error = Infallible;

    fn live(&mut self, now: u64) -> Result<Vec<Row>, Infallible> {
        Ok(self.purge(now))
    }

    fn put(&mut self, row: Row) -> Result<(), Infallible> {
        self.insert(row);
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), Infallible> {
        self.revision += u64::from(self.rows.remove(key).is_some());
        Ok(())
    }
}
