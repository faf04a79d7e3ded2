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

/// Our own lease: what is stored, and what we asked for. The two may differ: an administrator may overwrite the public
/// address (flannel's `public-ip-overwrite`), and then the peers have to use that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// As it is stored: what the peers see.
    pub published: Lease,
    /// What this node asked to publish.
    pub wished: LeaseAttrs,
}

/// Who holds a lease that is stored under our key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// We, even if what is published differs from what we wished.
    Us,
    /// Another daemon that publishes our address.
    Rival,
    /// Another node.
    Stranger,
}

impl Owned {
    /// A lease that is published as it was wished.
    pub fn as_wished(published: Lease) -> Owned {
        let wished = published.attrs.clone();
        Owned { published, wished }
    }

    /// Its subnets.
    pub fn key(&self) -> SubnetKey {
        self.published.key
    }
}

/// Says who holds a lease with the attributes `stored`, where nobody but its holder writes to a lease: it is ours if
/// it says what we wished.
pub(crate) fn holder(wished: &LeaseAttrs, stored: &LeaseAttrs) -> Holder {
    if wished == stored {
        Holder::Us
    } else if same_node(wished, stored) {
        Holder::Rival
    } else {
        Holder::Stranger
    }
}

/// Returns true if `theirs` was published by the node that publishes `ours`. The IPv4 address decides, as in
/// flannel; between nodes without one, the IPv6 address does.
pub(crate) fn same_node(ours: &LeaseAttrs, theirs: &LeaseAttrs) -> bool {
    if ours.public_ip.is_unspecified() {
        return theirs.public_ip.is_unspecified()
            && ours.public_ipv6.is_some()
            && ours.public_ipv6 == theirs.public_ipv6;
    }
    ours.public_ip == theirs.public_ip
}
