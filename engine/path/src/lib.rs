//! The packet path: pure decisions about the packets in a worker's arena.
//!
//! Read [`egress`] and [`ingress`] first: they are the two directions, with their steps in order. They use:
//!
//! - [`inner`] parses and checks an inner IP packet, once
//! - [`fib`] finds the peer that owns a destination; [`template`] prepends the headers towards that peer
//! - [`encap`] implements the tunnel formats, both directions of each in one file
//! - [`offload`] cuts and joins super-packets, handles their checksums, and fragments; [`offload::mss`] knows
//!   how long the segments of a TCP connection are
//! - [`outbox`] gathers datagrams per peer and source port; [`offload::coalesce`] is its counterpart on
//!   ingress
//! - [`quote`] judges ICMP messages about path MTUs
//! - [`verdict`] defines how a packet can end, [`counters`] counts it, and [`reply`] builds ICMP errors for
//!   pods
//!
//! No I/O, no clock, no allocation per packet, no unsafe code. Bytes live in one arena per worker and
//! direction and are referred to by `Range<u32>` spans into it. No packet causes a panic.

pub mod counters;
pub mod egress;
pub mod encap;
pub mod fib;
pub mod flow;
pub mod ingress;
pub mod inner;
pub mod offload;
pub mod outbox;
pub mod quote;
pub mod reply;
pub mod sources;
pub mod space;
pub mod template;
pub mod verdict;
pub mod wireguard;

pub use batch::{PeerId, Received, Transmit, WorkerIndex};
pub use counters::{Counters, Direction};
pub use encap::Format;
pub use encap::ipip::Ipip;
pub use encap::vxlan::Vxlan;
pub use fib::{Fib, FibBuilder, FibError, IPV6_MIN_MTU, PathEnd, PeerSpec};
pub use offload::mss::SegmentSizes;
pub use sources::Sources;
pub use verdict::{DropReason, Verdict};
