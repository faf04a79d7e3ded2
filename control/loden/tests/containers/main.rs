//! loden under real container runtimes: its plugin called by containerd and podman, its options by dockerd.
//!
//! ```text
//! image       an image of busybox, built here
//! setup       a host's plugins and configuration, by `loden install-cni`
//! cage        namespaces that contain a runtime and what it leaves behind
//! talk        the traffic between two containers on two hosts that must work
//! cri         pods without crictl
//! containerd  a runtime for one host
//! pods        tests: containerd, over each backend, in both families
//! engines     tests: podman with its CNI backend, dockerd by `mk-docker-opts`
//! kills       tests: plugins, delegates and containerd are killed at random, and nothing remains
//! shipped     tests: the image of `deploy/release` under containerd and podman, started as flannel's is
//! old_kernel  tests: a host whose kernel has only TUN joins, and one without TUN reports that
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
mod shipped;
mod talk;
