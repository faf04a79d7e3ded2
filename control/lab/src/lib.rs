//! A network lab on one machine: namespaces, the links between them, and the processes inside them.
//!
//! ```text
//! userns     rights for a user who is not root: one call at the start of a program
//! namespace  a network namespace with a name, removed when its value is dropped
//! link       devices, addresses, routes and neighbours inside a namespace, over rtnetlink
//! ping       ICMP echo from inside a namespace
//! vxlan      the kernel's vxlan device, set up as flannel does
//! process    a child process inside a namespace, stopped when its value is dropped
//! mounts     mounts that only one thread and its children see
//! topology   hosts joined by a switch, a pod behind each: what the demo, the bench and the tests use
//! needs      what a test needs of the machine, checked and named
//! ```
//!
//! Everything below `topology` depends on nothing above it. Devices live as long as their namespace, so a
//! [`Namespace`] is the only guard that a device needs. Guards clean up on unwinding too. Nothing here runs
//! another program or touches a device outside the namespaces made here, and nothing panics but
//! [`Needs::are_met`] in CI.

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

/// The types that [`Namespace::netlink`] closures need, in the versions that this crate was built with.
pub use rtnetlink;
