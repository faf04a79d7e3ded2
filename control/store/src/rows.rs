//! The meaning of stored rows, and the steps that change them. A store supplies the rows and makes each step
//! atomic.

use std::collections::BTreeSet;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use rand::Rng;

use crate::StoreError;
use crate::lease::{Wish, allocator};

/// One stored lease as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) value: String,
    /// Unix seconds; `None` for a reservation.
    pub(crate) expires: Option<u64>,
}

/// The contents of rows.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) leases: Vec<Lease>,
    /// Keys of rows whose value, or whose spelling of the key, is wrong.
    pub(crate) unreadable: Vec<SubnetKey>,
    /// The problem of each skipped row, one sentence each.
    pub(crate) complaints: BTreeSet<String>,
}

/// A table of rows inside an atomic step.
pub(crate) trait Table {
    /// The store's error.
    type Error: Into<StoreError>;
    /// Removes rows that are void at `now`, then lists the others.
    fn live(&mut self, now: u64) -> Result<Vec<Row>, Self::Error>;
    /// Inserts or replaces by key.
    fn put(&mut self, row: Row) -> Result<(), Self::Error>;
    /// Removes by key, if there.
    fn remove(&mut self, key: &str) -> Result<(), Self::Error>;
}

/// Reads each row on its own: a broken one affects no other.
pub(crate) fn understand(rows: Vec<Row>) -> Contents {
    let mut contents = Contents::default();
    for row in rows {
        let key = match row.key.parse::<SubnetKey>() {
            // Another spelling of a key would be a second lease for the same subnet.
            Ok(key) if key.to_string() == row.key => key,
            Ok(key) => {
                contents.unreadable.push(key);
                contents.complaints.insert(format!("row {:?}: key should be {key}", row.key));
                continue;
            }
            Err(error) => {
                contents.complaints.insert(format!("row {:?}: {error}", row.key));
                continue;
            }
        };
        match LeaseAttrs::parse(&row.value) {
            Ok(attrs) => contents.leases.push(Lease { key, attrs, expires: row.expires }),
            Err(error) => {
                contents.unreadable.push(key);
                contents.complaints.insert(format!("row {key}: {error}"));
            }
        }
    }
    contents
}

/// Grants `wish` until `expires`, or without an expiry where a reservation is used.
pub(crate) fn acquire<T: Table>(
    table: &mut T,
    wish: &Wish<'_>,
    now: u64,
    expires: u64,
    random: &mut impl Rng,
) -> Result<Lease, StoreError> {
    let contents = understand(table.live(now).map_err(T::Error::into)?);
    for complaint in &contents.complaints {
        tracing::warn!("lease store: {complaint}; skipped");
    }
    let decision = allocator::decide(wish, &contents.leases, &contents.unreadable, random)?;
    for key in &decision.remove {
        tracing::info!("lease {key} is ours but outside the network configuration; removed");
        table.remove(&key.to_string()).map_err(T::Error::into)?;
    }
    let stored = contents.leases.iter().find(|lease| decision.reuse && lease.key == decision.key);
    let expires = stored.map_or(Some(expires), |lease| lease.expires.map(|_| expires));
    let lease = Lease { key: decision.key, attrs: wish.attrs.clone(), expires };
    table.put(row_of(&lease)).map_err(T::Error::into)?;
    Ok(lease)
}

/// Gives `lease` these attributes and the expiry `expires`, if it is stored as the caller knows it.
pub(crate) fn update<T: Table>(
    table: &mut T,
    lease: &Lease,
    attrs: &LeaseAttrs,
    now: u64,
    expires: u64,
) -> Result<Lease, StoreError> {
    let key = lease.key.to_string();
    let lost = |why| StoreError::Lost { key: key.clone(), why };
    let row = table.live(now).map_err(T::Error::into)?.into_iter().find(|row| row.key == key);
    let row = row.ok_or_else(|| lost("it expired or was removed"))?;
    // The attributes decide, not the time: an administrator may have changed the expiry.
    if LeaseAttrs::parse(&row.value).ok().as_ref() != Some(&lease.attrs) {
        return Err(lost("another node wrote to it"));
    }
    let renewed = Lease { key: lease.key, attrs: attrs.clone(), expires: row.expires.map(|_| expires) };
    if renewed.expires != row.expires || renewed.attrs != lease.attrs {
        table.put(row_of(&renewed)).map_err(T::Error::into)?;
    }
    Ok(renewed)
}

/// Removes what is stored under `key`, readable or not. Returns true if there was anything that is not void.
pub(crate) fn remove<T: Table>(table: &mut T, key: &SubnetKey, now: u64) -> Result<bool, T::Error> {
    let key = key.to_string();
    let stored = table.live(now)?.iter().any(|row| row.key == key);
    if stored {
        table.remove(&key)?;
    }
    Ok(stored)
}

fn row_of(lease: &Lease) -> Row {
    Row { key: lease.key.to_string(), value: lease.attrs.to_json(), expires: lease.expires }
}
