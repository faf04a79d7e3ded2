//! The packet path as a whole, from outside: whole packets in, whole packets out.
//!
//! - `support` packets built byte by byte, sums worked out naively, a node's two directions as one call each
//! - `offload` cutting and joining are inverses; `joins` what must stay apart, and in order
//! - `two_nodes` what one node encapsulates another one strips; `kernel_peer` what a kernel vxlan peer sends
//! - `ipip` the same for IP in IP
//! - `model` a slow and plain twin that must agree; `rules` ECN, hops, answers; `noise` no input panics
//!
//! Nothing here uses the crate `wire` to judge what the path has made of a packet, and each batch runs twice
//! over arenas with different contents: an output that differs holds bytes that were never part of it.

// clippy.toml allows these in test functions, not in the helpers beside them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod ipip;
mod joins;
mod kernel_peer;
mod model;
mod noise;
mod offload;
mod rules;
mod support;
mod two_nodes;
