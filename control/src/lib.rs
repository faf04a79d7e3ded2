//! The control side of loden: everything that is not packet work.
//!
//! A lease travels one way through it, and every arrow is a plain value:
//!
//! ```text
//! store ──► plan ──► apply ──► kernel: links, routes
//!            ▲         ├─────► engine: forwarding tables
//! underlay ──┘         └─────► subnet.env, last: it says "ready"
//! ```
//!
//! `plan` is pure; `store`, a crate of its own, `underlay` and `apply` talk to the world. [`daemon`] puts
//! them together. The same binary carries `demo`, `doctor` and the load generator.
//!
//! Nothing here may panic: a wrong input is an error with a sentence, at worst the end of the process with
//! exit code 1.

pub mod apply;
pub mod cleanup;
pub mod daemon;
pub mod demo;
pub mod docker_opts;
pub mod doctor;
pub mod flanneld;
pub mod install_cni;
pub mod load_command;
pub mod netlink;
pub mod options;
pub mod persist;
pub mod plan;
pub mod serve;
pub mod status;
pub mod traffic;
pub mod underlay;
