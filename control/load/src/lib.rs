//! A small load generator, so that measuring a network needs nothing installed.
//!
//! ```text
//! server   answers on one TCP port; what it received is what counts
//! client   one function per kind of load: tcp, verify, udp, rtt, sizes
//! report   the figures, one JSON object per run
//! message  the control connection between the two: one JSON value a line
//! ```
//!
//! ```text
//! client                                   server
//!   │ ── control: what is to come ───────────▶ │  makes data sockets of its own
//!   │ ◀──────────── control: ready on port P ─ │
//!   │ ══ data to port P ═════════════════════▶ │  skips the warm-up, counts one interval
//!   │ ◀──────────── control: what arrived ──── │
//! ```
//!
//! Rates are the receiver's count over the receiver's interval. Every wait has an end: a lost packet, a
//! lost peer or a full queue yields an error or a smaller figure, never a hang. All sockets belong to the
//! network namespace of the thread that calls, so either side runs wherever its caller put itself.

mod client;
mod echo;
mod error;
mod kinds;
mod message;
mod meter;
mod report;
mod server;
mod stop;
mod streams;
mod tcp;
mod udp;
mod verify;

pub use client::{rtt, sizes, tcp, udp, verify};
pub use error::Error;
pub use kinds::{RttLoad, SizesLoad, TcpLoad, UdpLoad, VerifyLoad};
pub use report::{Report, RttReport, SizesReport, TcpReport, UdpReport, VerifyReport};
pub use server::Server;
pub use stop::Stop;

/// The port that a server listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 5299;
