//! The bodies of the fuzz targets, as plain functions.
//!
//! `engine/fuzz` wraps them for cargo-fuzz, which needs a nightly toolchain and a separate workspace.
//! `tests/replay.rs` runs them on the checked-in corpus and on random data with any toolchain. A body reports
//! a failure by panicking.

#![allow(clippy::panic, reason = "a fuzz target fails by panicking")]

mod crypt;
mod input;
mod packets;
mod texts;
mod tun;
pub mod wireguard;

pub use crypt::crypt;
pub use packets::{ipip, packets, virtio};
pub use texts::{control_socket, lease_value, net_conf, subnet_env, subnet_key};
pub use tun::tun;
pub use wireguard::wireguard;

/// The name and body of a fuzz target.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 11] = [
    ("packets", packets),
    ("ipip", ipip),
    ("crypt", crypt),
    ("tun", tun),
    ("virtio", virtio),
    ("net_conf", net_conf),
    ("subnet_env", subnet_env),
    ("lease_value", lease_value),
    ("subnet_key", subnet_key),
    ("wireguard", wireguard),
    ("control_socket", control_socket),
];
