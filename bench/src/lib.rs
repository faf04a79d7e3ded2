//! The harness: measures loden side by side with other ways to carry pod packets, and reports medians of
//! ratios.
//!
//! ```text
//! scenario    the names of testbeds, subjects, loads and figures
//! subject     a system under test on its own testbed
//! load        a load generator in the pods
//! probe       CPU time and counters around a load
//! run         rounds: all of the above, interleaved
//! raw         the results as JSON
//! scale       the cost of many peers, and of a restart among them
//! report      tables, pages and plots from raw results
//! ```
//!
//! The harness starts the programs that it measures and links none of them. `report` and `raw` need neither
//! root nor Linux features, so old results can be viewed anywhere.

pub mod affinity;
pub mod cli;
pub mod ethtool;
pub mod host;
pub mod interrupt;
pub mod load;
pub mod output;
pub mod probe;
pub mod progress;
pub mod raw;
pub mod report;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod subject;
