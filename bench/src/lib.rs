//! The harness: measures loden beside other ways to carry pod packets, and reports medians of ratios.
//!
//! ```text
//! scenario    what can be measured, by name
//! subject     a system under test on a testbed of its own
//! load        a load generator in the pods
//! probe       CPU time and counters around a load
//! run         rounds: all of the above, interleaved
//! raw         the results as JSON
//! scale       many peers: what they cost, and a restart among them
//! report      raw results to a table, a page, plots
//! ```
//!
//! It starts the programs it measures and links none of them. `report` and `raw` need neither root nor
//! Linux features, so old results can be shown anywhere.

pub mod affinity;
pub mod cli;
pub mod ethtool;
pub mod host;
pub mod interrupt;
pub mod load;
pub mod probe;
pub mod progress;
pub mod raw;
pub mod report;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod subject;
