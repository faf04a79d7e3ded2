//! Super-packets: cut before the underlay, joined before the overlay.

pub mod checksum;
pub mod coalesce;
pub mod segment;
