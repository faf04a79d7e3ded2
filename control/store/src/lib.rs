//! Where leases are kept, and the life of a lease.
//!
//! ```text
//! store    the one door: a store of any kind
//! spec     which store, and where
//! lease    which subnet, when to renew, who the peers are: pure
//! error    what any store may answer, by meaning
//! stream   the one stream of changes, over all that can happen to a store
//! health   since when a stream is blind
//!
//! etcd     flannel's, for a cluster
//! sqlite   one file, several daemons of one machine
//! memory   the fake
//! rows     the meaning of stored rows, shared by all stores
//! poll     from looks at rows to changes, for stores that do not report changes themselves
//! ```
//!
//! What every store promises, and `contract_tests` checks for each:
//!
//! - A lease is void from the second of its expiry on, as if it were not there. A reservation has no
//!   expiry and keeps none, whoever uses it.
//! - `acquire` and `renew` are one step each: of two nodes that want the same subnet one gets it.
//! - `renew` writes only while the stored lease is still the caller's.
//! - What is published may differ from what was wished, and the lease is the caller's all the same.
//! - A watch delivers a snapshot, then every lasting change in an order that leads to the stored state.
//!   Changes that undo each other between two looks may be left out.
//! - A row that makes no sense is skipped alone, with a warning, and its subnet counts as held.
//!
//! The crate knows `model` and nothing of the host. Nothing here may panic, except in `testing`.

pub mod etcd;
pub mod lease;
pub mod memory;
pub mod sqlite;

mod error;
mod health;
mod poll;
mod rows;
mod spec;
mod store;
mod stream;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use error::{Cause, StoreError};
pub use etcd::Etcd;
pub use health::Health;
pub use lease::{Event, Holder, Owned, Wish};
pub use memory::Memory;
pub use spec::{Spec, SpecError};
pub use sqlite::Sqlite;
pub use store::{Network, Store};
pub use stream::Watch;

/// Life of a lease from each acquisition and renewal, as in flannel.
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The wall clock, which is what expiries are written in.
fn unix_now() -> u64 {
    // A clock before 1970 is no clock; leases then look long-lived rather than void.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod contract_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
