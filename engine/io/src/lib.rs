//! Moves bytes in and out of the kernel through TUN queues and batched sockets, without interpreting them.
//!
//! # Map
//!
//! | module | contents | may be called per packet |
//! |---|---|---|
//! | [`tun`] | multi-queue TUN devices; a [`tun::Queue`] is an [`Overlay`] | read and write |
//! | [`raw`] | a worker's raw IPv4 socket; [`raw::RawPort`] is an [`Underlay`] too | receive and transmit |
//! | [`udp`] | a worker's sockets; a [`udp::UdpPort`] is an [`Underlay`] | receive and transmit |
//! | [`route`], [`too_big`] | the MTU of a route's devices, and ICMP messages about path MTUs | no |
//! | [`memory`] | in-memory ports of both kinds, for tests | yes |
//! | [`wait`] | sleeping until a port is readable or another thread wakes the worker | once per turn |
//! | [`probe`] | the features that this kernel and container grant | no |
//! | [`nat`] | whether a flow's addresses are translated, and who computes its checksums | no |
//! | [`netns`], [`thread`] | a private network namespace, its number, and a core for one thread | no |
//! | [`overflow`] | what the kernel dropped because a queue was full | no |
//! | [`scheduler`] | what a thread is granted by the scheduler | no |
//! | [`files`] | the limit of open files | no |
//! | [`clock`] | the time since boot | once per turn |
//! | [`heap`] | returning freed memory to the kernel | no |
//! | [`mask`] | hiding kernel features, for tests | no |
//! | `sys` | one wrapper per system call | through the modules above |
//!
//! `sys` depends on no other module; `tun`, `udp`, `raw` and `wait` use `sys`. No module knows packet
//! formats. Nothing on the packet path allocates, locks or logs. No input from the kernel or a caller causes
//! a panic: a span outside the arena is an error outcome.
//!
//! # Safety
//!
//! This is the only crate in the workspace that contains `unsafe`. It uses it in four ways:
//!
//! 1. **A system call whose pointers the kernel follows.** The wrapper in `sys` takes slices or
//!    references, so the memory is live and has the stated length for the whole call, and the kernel
//!    keeps no pointer after the call returns. `msghdr` arrays are the exception: they hold raw
//!    pointers. They are refilled from slices at the start of each `receive` or `transmit`, used before
//!    that call returns, and never dereferenced afterwards; the arena is borrowed for the whole call.
//!    [`udp::UdpPort`] can therefore move between threads.
//! 2. **A new descriptor that becomes an `OwnedFd`.** The wrapper that received the descriptor converts
//!    it immediately, so there is exactly one owner.
//! 3. **Plain C structures that are zeroed, or read through one field of a union.** Only for types
//!    for which every bit pattern is valid; the family is checked before a union field is chosen.
//! 4. **Memory shared with a program in the kernel**: the counts of TUN queues, accessed only as atomics,
//!    by a type that owns the mapping.
//!
//! Spans ([`Range<u32>`](std::ops::Range)) become pointers in one place for TUN and one for UDP, after a
//! bounds check against the arena. Control buffers that the kernel has written are parsed in safe code, as
//! bytes with checked lengths.

pub mod clock;
mod error;
pub mod files;
pub mod heap;
pub mod mask;
pub mod memory;
pub mod nat;
mod netlink;
pub mod netns;
pub mod overflow;
mod port;
pub mod probe;
pub mod raw;
pub mod route;
pub mod scheduler;
mod sys;
pub mod thread;
pub mod too_big;
pub mod tun;
pub mod udp;
pub mod wait;

#[cfg(test)]
mod scratch;

pub use batch::{PeerId, Received, Transmit};
pub use error::Error;
pub use port::{Overlay, PortCounters, Shape, TransmitOutcome, Underlay};
pub use wait::{Ready, Waiter, Waker};
