//! Servers of stores for tests, real ones. Only for tests: what goes wrong here is a panic.

#![allow(clippy::unwrap_used)]

pub mod etcd;
