//! Packets between nodes: what arrives, what it looks like on the wire, what it costs, and what becomes of
//! bad ones.
//!
//! ```text
//! backends         tests: host-gw, vxlan's direct routes, ipip, alloc and extension
//! bad_input        tests: datagrams that no well-behaved neighbour sends
//! broken_sums      tests: datagrams that were changed after they had been summed
//! fairness         tests: what a greedy pod leaves to its neighbours and to the host's memory
//! fallbacks        tests: each feature of the kernel is missing, alone and with all others
//! guards           tests: limits on system calls, checksums and order
//! inner_sources    tests: packets of the host's own protocols, and sources that nobody may use
//! masquerade       tests: traffic rules as packets meet them
//! on_the_wire      tests: outer headers beside the kernel's, and translation on the way
//! own_nat          tests: a host that translates its own tunnel packets
//! path_mtu         tests: paths that carry less, and forged messages that claim so
//! wireguard        tests: two lodens, and loden beside wireguard-go
//! wireguard_modes  tests: each mode in each family
//! wireguard_rekey  tests: a rekey by the real clock, under load
//! wireguard_storm  tests: ten thousand handshakes at once
//! ```

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod backends;
mod bad_input;
mod broken_sums;
#[path = "../common/mod.rs"]
mod common;
mod fairness;
mod fallbacks;
mod guards;
mod inner_sources;
mod masquerade;
mod on_the_wire;
mod own_nat;
mod path_mtu;
mod wireguard;
mod wireguard_modes;
mod wireguard_rekey;
mod wireguard_storm;
