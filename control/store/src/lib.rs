//! The stores of leases, and the life of a lease.
//!
//! ```text
//! store    the only entrance: a store of any kind
//! spec     which store, and where
//! lease    which subnet, when to renew, who the peers are: pure
//! error    the errors of all stores, by meaning
//! kind     what the failures that share a line of the log have in common
//! stream   the stream of changes, which outlives every failure of a store
//! position how far a stream has read, which shows that a store has lost something
//! now      a moment on both clocks
//! health   since when a stream cannot read its store
//!
//! etcd     flannel's, for a cluster
//! kube     Kubernetes: the subnets are given by it, the attributes annotations of its nodes
//! sqlite   one file, several daemons of one machine
//! memory   the fake
//! rows     the meaning of stored rows, shared by all stores but Kubernetes
//! complaints what was logged of broken entries
//! poll     changes between two looks at the rows, for stores that do not report changes themselves
//! ```
//!
//! Every store keeps these promises, which `contract_tests` checks:
//!
//! - From the second of its expiry on, a lease is void, as if it did not exist. A reservation has no expiry
//!   and keeps none, whoever uses it.
//! - `acquire` and `renew` are atomic: of two nodes that want the same subnet one gets it.
//! - `renew` writes only while the stored lease is still the caller's.
//! - The published attributes may differ from the wish, and the lease is still the caller's.
//! - A watch delivers a snapshot, then every lasting change in an order that leads to the stored state.
//!   Changes that undo each other between two looks may be left out.
//! - A store that was wiped or restored is noticed at the next look, and a watch says so.
//! - An unreadable row is skipped alone, with a warning, and its subnet counts as held.
//!
//! The crate depends on `model` and on nothing of the host. Nothing here may panic, except in `testing`.

pub mod aside;
pub mod etcd;
pub mod kube;
pub mod lease;
pub mod memory;
pub mod regular;
pub mod sqlite;

mod complaints;
mod error;
mod health;
mod kind;
mod now;
mod poll;
mod position;
mod rows;
mod spec;
mod store;
mod stream;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use error::{Cause, StoreError};
pub use etcd::Etcd;
pub use health::Health;
pub use kind::{Kind, gist};
pub use kube::Kube;
pub use lease::{Event, Holder, Owned, Wish};
pub use memory::Memory;
pub use now::Now;
pub use position::Position;
pub use spec::{Spec, SpecError, StoreId};
pub use sqlite::Sqlite;
pub use store::{Network, Store};
pub use stream::Watch;

/// The life of a lease from each acquisition and renewal, as in flannel.
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the wall clock's unix seconds, in which expiries are stored.
fn unix_now() -> u64 {
    // A clock before 1970 is wrong; leases then look long-lived rather than void.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod contract_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
