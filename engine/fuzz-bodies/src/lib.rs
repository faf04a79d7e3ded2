//! What each fuzz target does with its bytes, as plain functions.
//!
//! `engine/fuzz` wraps them for cargo-fuzz, which needs a nightly toolchain and has a workspace of its own;
//! `tests/replay.rs` runs them over the corpus in the tree and over noise with any toolchain. A body fails by
//! panicking, so its asserts are the point of it.

// An assert with a message is how a fuzz target fails.
#![allow(clippy::panic)]

mod packets;
mod texts;
pub mod wireguard;

pub use packets::{packets, virtio};
pub use texts::{control_socket, lease_value, net_conf, subnet_env, subnet_key};
pub use wireguard::wireguard;

/// A fuzz target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 8] = [
    ("packets", packets),
    ("virtio", virtio),
    ("net_conf", net_conf),
    ("subnet_env", subnet_env),
    ("lease_value", lease_value),
    ("subnet_key", subnet_key),
    ("wireguard", wireguard),
    ("control_socket", control_socket),
];
