//! The daemon: everything that is not packet work.
//!
//! A lease travels one way through it, and every arrow is a plain value:
//!
//! ```text
//! store ──► plan ──► apply ──► kernel: links, routes
//!            ▲         ├─────► engine: forwarding tables
//! underlay ──┘         └─────► subnet.env, last: it says "ready"
//! ```
//!
//! [`plan`] is pure; [`underlay`], [`apply`] and [`traffic`] talk to the kernel; [`persist`] holds what a
//! daemon keeps in files, [`serve`] what it shows of itself. [`daemon`] puts them together, as [`settings`]
//! ask for it.
//!
//! Nothing here may panic: a wrong input is an error with a sentence, at worst the end of the process with
//! exit code 1.

pub mod apply;
pub mod cgroup;
mod children;
pub mod cleanup;
pub mod daemon;
pub mod netlink;
pub mod persist;
pub mod plan;
pub mod serve;
pub mod settings;
pub mod traffic;
pub mod underlay;
