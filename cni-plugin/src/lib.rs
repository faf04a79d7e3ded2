//! `loden-cni`, installed as `flannel`: a CNI plugin that reads what the daemon says of this node's subnet, makes a
//! configuration of it, and has another plugin, usually `bridge`, do the work.
//!
//! ```text
//! runtime ──► request ──► subnet.env ──► delegate (pure) ──► state ──► invoke ──► reply ──► runtime
//! ```

pub mod delegate;
pub mod host_local;
pub mod invoke;
pub mod netns;
pub mod reply;
pub mod request;
pub mod state;
pub mod subnet;
pub mod verbs;
