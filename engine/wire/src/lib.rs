//! Parses and writes packet headers.
//!
//! No I/O, no allocation, no unsafe code, no clock. Each header has one constructor for untrusted bytes,
//! `parse`, which returns a small `Copy` struct or [`Malformed`]. No input makes this crate panic. Callers
//! need not repeat the length checks that `parse` has made. `emit` writes the same bytes back and fails only
//! if the buffer is too short or a value does not fit its field.
//!
//! Modules depend downwards only: [`icmp`] builds on [`ipv4`] and [`ipv6`], and every header on [`addr`],
//! [`checksum`] and [`Malformed`].
#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
mod bytes;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
mod malformed;
pub mod tcp;
pub mod udp;
pub mod virtio;
pub mod vxlan;
pub mod wireguard;

pub use malformed::Malformed;
