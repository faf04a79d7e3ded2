//! Servers of stores, for tests alone: a failure here is a panic.

#![allow(clippy::unwrap_used)]

pub mod etcd;
pub mod kube;
