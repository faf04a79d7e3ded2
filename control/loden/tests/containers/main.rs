//! loden under real container runtimes: its plugin called by containerd and podman, its options by dockerd.
//!
//! ```text
//! image       an image of busybox, made here
//! setup       a host's plugins and configuration, by `loden install-cni`
//! cage        namespaces for a runtime, and for all that it leaves behind
//! talk        what two containers on two hosts must be able to say to each other
//! cri         pods without crictl
//! containerd  a runtime of a host's own
//! pods        tests: containerd, over each backend, in both families
//! engines     tests: podman with its CNI backend, dockerd by `mk-docker-opts`
//! kills       tests: plugins, delegates and containerd are killed at random, and nothing is left
//! old_kernel  tests: a host whose kernel has TUN and no more joins, and one without TUN says so
//! ```

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod cage;
#[path = "../common/mod.rs"]
mod common;
mod containerd;
mod cri;
mod engines;
mod image;
mod kills;
mod old_kernel;
mod pods;
mod setup;
mod talk;
