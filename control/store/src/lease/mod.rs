//! The life of a lease, decided without a clock, a random source or a store: all three are arguments.
//!
//! ```text
//! allocator   which subnet a node gets, given all that are held
//! renewal     when to renew, retry or start over
//! ledger      the peers, out of snapshots and single changes
//! ```

pub mod allocator;
pub mod ledger;
pub mod renewal;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;

/// What a node asks a store for.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The pools to choose from.
    pub config: &'a NetConfig,
    /// What to publish. The public address in it also finds the lease of an earlier run.
    pub attrs: LeaseAttrs,
    /// The subnets of an earlier run as `subnet.env` recorded them.
    pub previous: Option<SubnetKey>,
}

/// One change of the set of leases, our own among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All leases there are; whatever is not among them is gone.
    Snapshot(Vec<Lease>),
    /// A lease that is new, or whose attributes or expiry are.
    Put(Lease),
    /// A lease that was given up or ran out.
    Removed(SubnetKey),
}

/// Whether `theirs` was published by the node that publishes `ours`. The IPv4 address decides, as in
/// flannel; between nodes without one, the IPv6 address does.
pub fn same_node(ours: &LeaseAttrs, theirs: &LeaseAttrs) -> bool {
    if ours.public_ip.is_unspecified() {
        return theirs.public_ip.is_unspecified()
            && ours.public_ipv6.is_some()
            && ours.public_ipv6 == theirs.public_ipv6;
    }
    ours.public_ip == theirs.public_ip
}
