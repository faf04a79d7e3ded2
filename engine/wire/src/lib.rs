//! Header formats: bytes in, values out.
//!
//! No I/O, no allocation, no unsafe, no clock. Untrusted bytes meet one constructor per header, `parse`, which
//! answers with a small `Copy` struct or with [`Malformed`]; nothing in this crate panics, whatever the bytes
//! are. Lengths that `parse` has checked against the slice it was given need no second check by the caller.
//! `emit` writes the same bytes back and fails only when the buffer is too short or a value does not fit its
//! field.
//!
//! Modules depend downwards only: [`icmp`] builds on [`ipv4`] and [`ipv6`]; every header on [`addr`],
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
