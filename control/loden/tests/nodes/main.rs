//! Nodes of a cluster: how they start, stop, restart and follow each other, whatever their store and their
//! host do.
//!
//! ```text
//! run            tests: one or two nodes from start to stop
//! life           tests: what a start puts on the host, and what a stop and a crash leave
//! life_cycle     tests: probes, metrics, systemd, `loden status`, `loden cleanup`
//! restart        tests: restarts, a swap of stock flannel for loden, removed devices
//! bad_start      tests: starts that cannot succeed
//! files          tests: FIFOs, hanging mounts and removed files where the daemon has its own
//! host_settings  tests: settings, routes and addresses of the host that are in the way
//! kubernetes     tests: the daemon on an API server of Kubernetes
//! in_process     tests: the daemon on a store in memory, where a public address is overwritten
//! etcd           tests: an etcd that comes late, crashes and forgets
//! store_faults   tests: stores that are wiped, restored, changed, locked or replaced
//! cluster        tests: five nodes on an etcd with TLS and users
//! bad_cluster    tests: a store and a host that do it wrong
//! scale          tests: ten thousand leases
//! scheduling     tests: what the workers ask of the scheduler, and what becomes of it
//! threads        tests: a host on which no more threads can be made
//! ```

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bad_cluster;
mod bad_start;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod etcd;
mod files;
mod host_settings;
mod in_process;
mod kubernetes;
mod life;
mod life_cycle;
mod restart;
mod run;
mod scale;
mod scheduling;
mod store_faults;
mod threads;
