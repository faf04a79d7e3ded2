//! Forwarding tables: converts the plan's list of peers into the tables that the workers read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::wireguard::PeerConfig;
use path::fib::{Fib, FibBuilder, FibError, PeerSpec};
use path::wireguard::PublicKey;
use path::{PeerId, Sources};

use crate::plan::{Peer, Tunnel};

/// The receiver of finished tables: the engine, or a test.
pub trait Tables {
    /// Returns the number of packets that may wait in each queue of a tunnel's device.
    fn queue_length(&self, tunnel: usize) -> u32;
    /// Replaces the table of the tunnel with this index by `fib`.
    fn publish(&self, tunnel: usize, fib: Arc<Fib>);
    /// Replaces the peers of a tunnel that encrypts.
    fn set_peers(&self, tunnel: usize, peers: Vec<PeerConfig>);
}

impl Tables for engine::Engine {
    fn queue_length(&self, tunnel: usize) -> u32 {
        self.chosen().nth(tunnel).map_or(0, |chosen| chosen.queue_length)
    }

    fn publish(&self, tunnel: usize, fib: Arc<Fib>) {
        engine::Engine::publish(self, tunnel, &fib);
    }

    fn set_peers(&self, tunnel: usize, peers: Vec<PeerConfig>) {
        engine::Engine::set_peers(self, tunnel, peers);
    }
}

/// The numbers by which tables and workers identify peers with a key. A number is never reused, so that state
/// of a removed peer cannot be mistaken for another peer's.
#[derive(Debug, Default)]
pub struct Numbers(BTreeMap<PublicKey, PeerId>, u32);

impl Numbers {
    fn of(&mut self, key: PublicKey) -> PeerId {
        let Numbers(known, next) = self;
        *known.entry(key).or_insert_with(|| {
            *next += 1;
            PeerId(*next - 1)
        })
    }

    /// Forgets the keys that no peer has anymore.
    fn keep(&mut self, peers: &[Peer]) {
        let keys: BTreeSet<PublicKey> = peers.iter().filter_map(|peer| peer.key).collect();
        self.0.retain(|key, _| keys.contains(key));
    }
}

/// Returns the peers of a tunnel that encrypts, one for each key; empty for other tunnels.
pub fn sealed_peers(tunnel: &Tunnel, numbers: &mut Numbers) -> Vec<PeerConfig> {
    let Some(secrets) = &tunnel.secrets else { return Vec::new() };
    numbers.keep(&tunnel.peers);
    let mut peers: BTreeMap<PublicKey, PeerConfig> = BTreeMap::new();
    for peer in &tunnel.peers {
        let Some(key) = peer.key else { continue };
        peers.entry(key).or_insert_with(|| PeerConfig {
            id: numbers.of(key),
            key,
            psk: secrets.psk.clone(),
            endpoint: Some(peer.remote),
            keepalive: Duration::from_secs(secrets.keepalive.into()),
        });
    }
    peers.into_values().collect()
}

/// Builds the forwarding table of one tunnel. Packets from the underlay must not have an address of `host` as
/// their source.
pub fn build(tunnel: &Tunnel, numbers: &mut Numbers, host: &BTreeSet<IpAddr>) -> Result<Fib, FibError> {
    let (mut v4, mut v6) = (None, None);
    for address in tunnel.link.addresses() {
        match address.ip() {
            IpAddr::V4(ip) => v4 = Some(ip),
            IpAddr::V6(ip) => v6 = Some(ip),
        }
    }
    let sources = Sources::new(v4.is_some(), v6.is_some(), host.iter().copied());
    let mut builder = FibBuilder::new(tunnel.format).reply_from(v4, v6).admit(sources);
    for peer in &tunnel.peers {
        let spec = PeerSpec { remote: peer.remote, mac: peer.mac, mtu: tunnel.link.mtu.get() };
        match peer.key {
            Some(key) => builder.add_numbered(peer.subnet, spec, numbers.of(key))?,
            None => builder.add(peer.subnet, spec)?,
        }
    }
    builder.build()
}
