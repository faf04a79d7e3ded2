//! What happens to a packet, as pure decisions over a worker's arena.
//!
//! Read [`egress`] and [`ingress`] first: they are the two ways through, in reading order. The rest is what
//! they use:
//!
//! - [`inner`] the one check an inner IP packet meets; after it, nothing checks again
//! - [`fib`] who owns a destination; [`template`] what goes in front of the packet towards that peer
//! - [`encap`] the framings, both directions of each in one file
//! - [`offload`] cutting and joining super-packets, and their checksums
//! - [`outbox`] datagrams gathered per peer and source port; [`offload::coalesce`] its mirror
//! - [`verdict`] how a packet may end, [`counters`] how often it did, [`reply`] what a pod hears of it
//!
//! No I/O, no clock, no allocation per packet, no unsafe. Bytes live in one arena per worker and direction;
//! everything here speaks of them by `Range<u32>` spans into it. Nothing panics on any packet.

pub mod counters;
pub mod egress;
pub mod encap;
pub mod fib;
pub mod flow;
pub mod ingress;
pub mod inner;
pub mod offload;
pub mod outbox;
pub mod reply;
pub mod space;
pub mod template;
pub mod verdict;
pub mod wireguard;

pub use batch::{PeerId, Received, Transmit, WorkerIndex};
pub use counters::{Counters, Direction};
pub use encap::Format;
pub use encap::ipip::Ipip;
pub use encap::vxlan::Vxlan;
pub use fib::{Fib, FibBuilder, FibError, PeerSpec};
pub use verdict::{DropReason, Verdict};
