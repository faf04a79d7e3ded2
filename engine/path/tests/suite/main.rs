//! Tests of the whole packet path from outside: whole packets in, whole packets out.
//!
//! - `support` builds packets byte by byte, computes checksums naively and runs a node's two directions
//! - `offload` cutting and joining are inverses; `joins` which packets are joined, and in which order
//! - `two_nodes` one node strips what another encapsulates; `kernel_peer` packets of a kernel vxlan peer;
//!   `ipip` both for IP in IP
//! - `sums` checksums that nobody has verified; `segment_sizes` the segments of uncut super-packets
//! - `path_limit` packets that fit the tunnel but not the path
//! - `model` a slow, simple model that must agree; `rules` ECN, TTL, ICMP errors; `noise` no input panics
//!
//! The tests do not use the crate `wire` to check results. Each batch runs twice over arenas with different
//! contents: if the outputs differ, they contain bytes that are not part of the batch.

#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy exempts test functions but not their helpers")]

mod ipip;
mod joins;
mod kernel_peer;
mod model;
mod noise;
mod offload;
mod path_limit;
mod rules;
mod segment_sizes;
mod sums;
mod support;
mod two_nodes;
