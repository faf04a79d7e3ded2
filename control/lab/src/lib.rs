//! A network lab on one machine: namespaces, links between them, and processes inside them.
//!
//! ```text
//! userns     privileges for a user who is not root: one call at the start of a program
//! namespace  a named network namespace, removed when its value is dropped
//! link       devices, addresses, routes and neighbours inside a namespace, over rtnetlink
//! ping       ICMP echo from inside a namespace
//! vxlan      the kernel's vxlan device, configured as flannel does
//! process    a child process inside a namespace, stopped when its value is dropped
//! mounts     mounts that are visible only to one thread and its children
//! topology   hosts connected by a switch, each with a pod: for the demo, the bench and the tests
//! needs      the requirements of a test, checked and named
//! ```
//!
//! Only `topology` depends on the others. Devices exist as long as their namespace, so a [`Namespace`] is the
//! only guard that a device needs. Guards clean up on unwinding, too. This crate runs no other program,
//! touches no device outside the namespaces that it created, and panics only in [`Needs::are_met`], in CI.

mod error;
mod link;
pub mod mounts;
mod namespace;
mod needs;
mod ping;
mod process;
mod topology;
pub mod userns;
mod vxlan;

pub use error::Error;
pub use link::{Link, Mac, Route, veth};
pub use namespace::{NETNS_DIRECTORY, Namespace};
pub use needs::{Needs, find};
pub use process::Process;
pub use topology::{Host, Lab, PodNetwork, Topology, Wiring};
pub use vxlan::{FlannelVxlan, VxlanPeer};

/// The types that closures for [`Namespace::netlink`] need, in the versions that this crate was built with.
pub use rtnetlink;
