//! The life of a lease, decided without a clock, a random source or a store of its own: all three are
//! arguments.
//!
//! ```text
//! allocator   which subnet a node gets, given all held ones
//! renewal     when to renew, retry or start over
//! ledger      the set of peers, from snapshots and single changes
//! ```

pub mod allocator;
pub mod ledger;
pub mod renewal;

use std::net::IpAddr;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;

/// A node's request for a lease.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The pools to choose from.
    pub config: &'a NetConfig,
    /// The attributes to publish. Their public address also finds the lease of an earlier run.
    pub attrs: LeaseAttrs,
    /// The subnets of an earlier run as `subnet.env` recorded them.
    pub previous: Option<SubnetKey>,
    /// The lease of an earlier run as that run last saw it stored. Finds our lease after our public address
    /// has changed.
    pub former: Option<&'a Lease>,
}

/// One change of the set of leases, our own among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All leases; any other lease is gone.
    Snapshot(Vec<Lease>),
    /// All leases of a store that has lost some of what it reported before: it was wiped, or restored from an
    /// older state. The node of a lease that is missing may live.
    Rewind(Vec<Lease>),
    /// A lease that is new, or has new attributes or a new expiry.
    Put(Lease),
    /// A lease that was removed or has expired.
    Removed(SubnetKey),
}

/// Our own lease, as stored and as asked for. The two may differ: an administrator may overwrite the public
/// address (flannel's `public-ip-overwrite`), and then the peers have to use the administrator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The lease as stored, which is what the peers see.
    pub published: Lease,
    /// The attributes that this node asked to publish.
    pub wished: LeaseAttrs,
}

/// The holder of a lease that is stored under our key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// We, even if the published attributes differ from the wish.
    Us,
    /// Another daemon that publishes our address.
    Rival,
    /// Another node.
    Stranger,
}

impl Owned {
    /// Makes our own lease of one that is published as wished.
    pub fn as_wished(published: Lease) -> Owned {
        let wished = published.attrs.clone();
        Owned { published, wished }
    }

    /// Returns the subnets.
    pub fn key(&self) -> SubnetKey {
        self.published.key
    }
}

/// Returns the holder of a lease with the attributes `stored`, in a store where only its holder writes to a
/// lease: it is ours if it has the attributes that we wished.
pub(crate) fn holder(wished: &LeaseAttrs, stored: &LeaseAttrs) -> Holder {
    if wished == stored {
        Holder::Us
    } else if same_node(wished, stored) {
        Holder::Rival
    } else {
        Holder::Stranger
    }
}

/// Seconds by which two readings of one expiry may differ: etcd tells how many whole seconds are left.
const BLUR: u64 = 5;

/// Returns true if `stored` is `former`, untouched since. Where the attributes have nothing but addresses the
/// expiry decides as well: another node that has got our former address has renewed the lease as its own.
pub(crate) fn is_untouched(former: &Lease, stored: &Lease) -> bool {
    // A MAC address or a key, which is nobody else's.
    let unique = ["vxlan", "wireguard"].contains(&former.attrs.backend_type.as_str())
        && former.attrs.backend_data.is_some();
    let same_end = match (former.expires, stored.expires) {
        (Some(former), Some(stored)) => former.abs_diff(stored) <= BLUR,
        (former, stored) => former == stored,
    };
    former.key == stored.key && former.attrs == stored.attrs && (unique || same_end)
}

/// Returns true if `theirs` was published by the node that publishes `ours`.
pub fn same_node(ours: &LeaseAttrs, theirs: &LeaseAttrs) -> bool {
    node_address(ours).is_some_and(|address| Some(address) == node_address(theirs))
}

/// Returns the address that tells a node from all others: the IPv4 address, as in flannel, or the IPv6
/// address of a node without one.
pub fn node_address(attrs: &LeaseAttrs) -> Option<IpAddr> {
    let ipv4 = Some(attrs.public_ip).filter(|ip| !ip.is_unspecified());
    ipv4.map(IpAddr::V4).or(attrs.public_ipv6.map(IpAddr::V6))
}
