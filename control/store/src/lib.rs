//! Where leases are kept: one interface, several stores.
//!
//! What every store promises, and `contract_tests` checks for each:
//!
//! - A lease is void from the second of its expiry on, as if it were not there. A reservation has no
//!   expiry and keeps none, whoever uses it.
//! - `acquire` and `renew` are one step each: of two nodes that want the same subnet one gets it.
//! - `renew` writes only while the stored lease is still the caller's.
//! - A watch delivers a snapshot, then every lasting change in an order that leads to the stored state.
//!   Changes that undo each other between two looks may be left out.
//! - A row that makes no sense is skipped alone, with a warning, and its subnet counts as held.
//!
//! ```text
//! rows     the meaning of stored rows, shared by all stores
//! watch    from looks at the rows to events
//! etcd     flannel's, for a cluster
//! sqlite   one file, several daemons of one machine
//! memory   the fake
//! ```

mod error;
pub mod etcd;
mod health;
pub mod lease;
pub mod memory;
mod rows;
pub mod sqlite;
mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::lease::{Lease, LeaseAttrs, SubnetKey};

pub use error::StoreError;
pub use etcd::Etcd;
pub use health::Sight;
pub use lease::{Event, Wish};
pub use memory::Memory;
pub use sqlite::Sqlite;
pub use watch::Watch;

/// Life of a lease from each acquisition and renewal, as in flannel.
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A store of any kind. Clones share the store and its connection.
#[derive(Debug, Clone)]
pub enum Store {
    /// What a flannel cluster uses.
    Etcd(Etcd),
    /// A file shared by the daemons of one machine.
    Sqlite(Sqlite),
    /// Nothing outlives the process.
    Memory(Memory),
}

impl Store {
    /// Opens the store that `spec` names: `sqlite:PATH`, `memory:`, or `etcd` with flannel's default
    /// options; [`Store::etcd`] takes others.
    pub async fn open(spec: &str) -> Result<Store, StoreError> {
        match spec.split_once(':') {
            None if spec == "etcd" => Store::etcd(etcd::Config::default()),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Store::Sqlite(Sqlite::open(path).await?)),
            Some(("memory", "")) => Ok(Store::Memory(Memory::new())),
            _ => Err(StoreError::UnknownKind { spec: spec.to_owned() }),
        }
    }

    /// Opens a cluster's store. The cluster need not be there yet.
    pub fn etcd(config: etcd::Config) -> Result<Store, StoreError> {
        Etcd::open(config).map(Store::Etcd)
    }

    /// The network configuration's text, if one was set.
    pub async fn net_config(&self) -> Result<Option<String>, StoreError> {
        match self {
            Store::Etcd(store) => store.net_config().await,
            Store::Sqlite(store) => store.net_config().await,
            Store::Memory(store) => Ok(store.net_config()),
        }
    }

    /// Sets the network configuration's text, unchecked. Leases stay as they are.
    pub async fn set_net_config(&self, text: &str) -> Result<(), StoreError> {
        match self {
            Store::Etcd(store) => store.set_net_config(text).await,
            Store::Sqlite(store) => store.set_net_config(text).await,
            Store::Memory(store) => {
                store.set_net_config(text);
                Ok(())
            }
        }
    }

    /// Gets a lease: the one with our public address, else the previous subnets, else a random choice of
    /// the first hundred free ones. The attributes are stored with it.
    pub async fn acquire(&self, wish: &Wish<'_>) -> Result<Lease, StoreError> {
        match self {
            Store::Etcd(store) => store.acquire(wish).await,
            Store::Sqlite(store) => store.acquire(wish).await,
            Store::Memory(store) => store.acquire(wish),
        }
    }

    /// Renews `lease`, attributes unchanged; [`StoreError::Lost`] if it is no longer stored as ours.
    pub async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.update(lease, &lease.attrs).await
    }

    /// Renews `lease` and gives it new attributes; [`StoreError::Lost`] if it is no longer stored as ours.
    pub async fn update(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, StoreError> {
        match self {
            Store::Etcd(store) => store.update(lease, attrs).await,
            Store::Sqlite(store) => store.update(lease, attrs).await,
            Store::Memory(store) => store.update(lease, attrs),
        }
    }

    /// All leases that can be read and are not void.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        match self {
            Store::Etcd(store) => store.leases().await,
            Store::Sqlite(store) => store.leases().await,
            Store::Memory(store) => Ok(store.leases()),
        }
    }

    /// Removes a lease, whoever holds it; whether there was one.
    pub async fn remove(&self, key: &SubnetKey) -> Result<bool, StoreError> {
        match self {
            Store::Etcd(store) => store.remove(key).await,
            Store::Sqlite(store) => store.remove(key).await,
            Store::Memory(store) => store.remove(key),
        }
    }

    /// Follows all leases, our own among them. The first event is a snapshot.
    pub async fn watch(&self) -> Result<Watch, StoreError> {
        match self {
            Store::Etcd(store) => Ok(Watch::of_events(store.watch())),
            Store::Sqlite(store) => store.watch().await,
            Store::Memory(store) => Ok(store.watch()),
        }
    }
}

/// The wall clock, which is what expiries are written in.
fn unix_now() -> u64 {
    // A clock before 1970 is no clock; leases then look long-lived rather than void.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod contract_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
