//! Readings around a load: the machine's CPU time and the daemon's counters.

pub mod counters;
pub mod cpu;
