//! `loden-cni`, installed as `flannel`: a CNI plugin that builds a configuration from this node's
//! `subnet.env` and delegates to another plugin, usually `bridge`.
//!
//! ```text
//! runtime ──► request ──► subnet.env ──► delegate (pure) ──► state ──► invoke ──► reply ──► runtime
//! ```

pub mod delegate;
pub mod files;
pub mod host_local;
pub mod invoke;
pub mod lock;
pub mod netns;
pub mod reply;
pub mod request;
pub mod state;
pub mod subnet;
pub mod verbs;
pub mod versions;
