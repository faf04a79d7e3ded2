//! Super-packets, which are cut before the underlay and joined before the overlay.

pub mod checksum;
pub mod coalesce;
pub mod fragment;
pub mod mss;
pub mod segment;
