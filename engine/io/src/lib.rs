//! Bytes in and out of the kernel: TUN queues, batched UDP sockets, waiting. No meaning.
//!
//! # Map
//!
//! | module | holds | may be called per packet |
//! |---|---|---|
//! | [`tun`] | multi-queue TUN devices; a [`tun::Queue`] is an [`Overlay`] | read and write |
//! | [`raw`] | a worker's raw IPv4 socket; a [`raw::RawPort`] is an [`Underlay`] too | receive and transmit |
//! | [`udp`] | a worker's sockets; a [`udp::UdpPort`] is an [`Underlay`] | receive and transmit |
//! | [`memory`] | both traits without a kernel, for tests | yes |
//! | [`wait`] | sleeping until a port has something, or another thread calls | once a turn |
//! | [`probe`] | what this kernel and container grant | no |
//! | [`netns`], [`thread`] | a private network namespace, a core, for one thread | no |
//! | [`mask`] | an older kernel, for tests | no |
//! | `sys` | one wrapper per system call | through the above |
//!
//! `sys` knows no other module; `tun`, `udp`, `raw` and `wait` use `sys`; nothing here knows packet formats.
//! Nothing on the packet path allocates, locks or logs, and nothing panics on what the kernel or a
//! caller hands in: a span outside the arena is an error outcome.
//!
//! # Safety
//!
//! This is the only crate of the workspace with `unsafe`, and it has three kinds of it:
//!
//! 1. **A system call with pointers the kernel follows.** The wrapper in `sys` takes slices or
//!    references, so that the memory is live and of the stated length for the whole call, and the
//!    kernel keeps none of the pointers once it has returned. `msghdr` arrays are the exception: they
//!    hold raw pointers. They are refilled from slices at the start of each `receive` or `transmit`,
//!    used before that call returns, and never read through afterwards; the borrow of the arena lasts
//!    as long as the call. This is why [`udp::UdpPort`] may move between threads.
//! 2. **A descriptor fresh from the kernel becoming an `OwnedFd`.** Done at once, in the wrapper that
//!    received it, so that there is exactly one owner.
//! 3. **Plain C structures made of zero bytes, or read as one of a union's views.** Only for types
//!    where every bit pattern is a value, and the family field is checked before a view is chosen.
//!
//! A span ([`Range<u32>`](std::ops::Range)) is turned into a pointer in one place each for TUN and UDP,
//! after it was checked against the arena. What the kernel wrote into control buffers is parsed as
//! bytes, with checked lengths, in safe code.

mod error;
pub mod mask;
pub mod memory;
pub mod netns;
mod port;
pub mod probe;
pub mod raw;
mod sys;
pub mod thread;
pub mod tun;
pub mod udp;
pub mod wait;

#[cfg(test)]
mod scratch;

pub use batch::{PeerId, Received, Transmit};
pub use error::Error;
pub use port::{Overlay, PortCounters, Shape, TransmitOutcome, Underlay};
pub use wait::{Ready, Waiter, Waker};
