//! loden beside stock flannel, and beside the tunnels of a kernel that is set up as stock flannel sets it up.

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod interop_kernel_ipip;
mod interop_kernel_vxlan;
mod interop_kernel_wireguard;
mod segment_sizes;
mod stock_flanneld;
