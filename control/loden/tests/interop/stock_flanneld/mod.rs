//! loden and stock flanneld on the hosts of one cluster, with their leases in one etcd.
//!
//! ```text
//! world         hosts with daemons of either kind, and their etcd
//! join          tests: both kinds join in either order; packets, keys and values
//! restart       tests: either kind restarts under traffic, and renews its lease
//! store_faults  tests: what happens to etcd, under traffic of both kinds
//! takeover      tests: a host changes its kind, or its backend
//! ```

mod join;
mod restart;
mod store_faults;
mod takeover;
mod world;
