//! Forwarding tables: from the plan's list of peers to what the workers read.

use std::net::IpAddr;
use std::sync::Arc;

use path::fib::{Fib, FibBuilder, FibError, PeerSpec};

use crate::plan::Tunnel;

/// Whoever takes finished tables: the engine, or a test.
pub trait Tables {
    /// Makes `fib` the table of the tunnel with this index, replacing the one before.
    fn publish(&self, tunnel: usize, fib: Arc<Fib>);
}

impl Tables for engine::Engine {
    fn publish(&self, tunnel: usize, fib: Arc<Fib>) {
        engine::Engine::publish(self, tunnel, &fib);
    }
}

/// Builds the table of one tunnel.
pub fn build(tunnel: &Tunnel) -> Result<Fib, FibError> {
    let (v4, v6) = match tunnel.link.address.ip() {
        IpAddr::V4(ip) => (Some(ip), None),
        IpAddr::V6(ip) => (None, Some(ip)),
    };
    let mut builder = FibBuilder::new(tunnel.format).reply_from(v4, v6);
    for peer in &tunnel.peers {
        builder
            .add(peer.subnet, PeerSpec { remote: peer.remote, mac: peer.mac, mtu: tunnel.link.mtu.get() })?;
    }
    builder.build()
}
