//! A small load generator, so that measuring a network requires no other program.
//!
//! ```text
//! server   listens on one TCP port and counts what it receives
//! client   one function per kind of load: tcp, verify, udp, rtt, sizes
//! report   the figures, one JSON object per run
//! message  the control connection between client and server: one JSON value per line
//! ```
//!
//! ```text
//! client                                   server
//!   │ ── control: request ───────────────────▶ │  opens data sockets
//!   │ ◀──────────── control: ready on port P ─ │
//!   │ ══ data to port P ═════════════════════▶ │  skips the warm-up, counts one interval
//!   │ ◀──────────── control: counts ────────── │
//! ```
//!
//! Rates are the receiver's count over the receiver's interval. Every wait has a timeout: a lost packet, a
//! lost peer or a full queue leads to an error or a smaller figure, never to a hang. All sockets belong to
//! the network namespace of the calling thread.

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

/// The default port of a server.
pub const DEFAULT_PORT: u16 = 5299;
