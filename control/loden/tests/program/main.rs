//! The program as its user meets it: `loden demo`, `loden install-cni`, what lies in `deploy/`, and what the
//! documentation says of them.

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod build;
#[path = "../common/mod.rs"]
mod common;
mod demo;
mod deploy;
mod docs;
mod house;
mod install;
mod output;
