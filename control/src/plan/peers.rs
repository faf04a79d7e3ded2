//! Selects the leases that become peers, and leaves the others out with a reason.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::lease::{Lease, SubnetKey};

use super::intent::{Ignored, Peer};
use store::lease::ledger::LeaseSet;

/// Peers by tunnel, and the leases left out; both sorted, so that equal sets of leases give equal plans.
pub(super) struct Sifted {
    /// One list per tunnel.
    pub peers: Vec<Vec<Peer>>,
    /// Leases left out.
    pub ignored: Vec<Ignored>,
}

/// Leaves out the leases that no backend can use. For each of the others, `to_peers` returns its peer on each
/// tunnel, or what is wrong with it.
///
/// Two leases may claim the same IPv4 subnet, one with an IPv6 part and one without: a node that went
/// dual-stack leaves its old key behind until the lease expires. The lease with both parts wins. Leases that
/// overlap in any other way are the result of a mistake or malice. Of those, the lease with prefixes as long
/// as our own wins, so that a longer prefix cannot divert its packets.
pub(super) fn sift(
    own: &Lease,
    leases: &LeaseSet,
    tunnels: usize,
    to_peers: impl Fn(&Lease) -> Result<Vec<(usize, Peer)>, String>,
) -> Sifted {
    let mut sifted = Sifted { peers: vec![Vec::new(); tunnels], ignored: Vec::new() };
    let mut holders: BTreeMap<IpNetwork, SubnetKey> = BTreeMap::new();
    let mut ordered: Vec<&Lease> = leases.iter().filter(|lease| lease.key != own.key).collect();
    let of_our_length = |key: &SubnetKey| lengths(key) == lengths(&own.key);
    ordered.sort_by_key(|lease| (lease.key.ipv6().is_none(), !of_our_length(&lease.key), lease.key));
    for lease in ordered {
        let result = usable(own, lease).and_then(|()| to_peers(lease)).and_then(|peers| {
            match peers.iter().find_map(|(_, peer)| overlapped(&holders, peer.subnet)) {
                Some((subnet, holder)) if peers.iter().any(|(_, peer)| peer.subnet == subnet) => {
                    Err(format!("the lease {holder} claims the same subnet"))
                }
                Some((_, holder)) => Err(format!("it overlaps the lease {holder}")),
                None => Ok(peers),
            }
        });
        match result {
            Ok(peers) => {
                for (tunnel, peer) in peers {
                    holders.insert(peer.subnet, lease.key);
                    sifted.peers[tunnel].push(peer);
                }
            }
            Err(reason) => sifted.ignored.push(Ignored { subnet: lease.key.to_string(), reason }),
        }
    }
    for peers in &mut sifted.peers {
        peers.sort_unstable();
    }
    sifted.ignored.sort_unstable();
    sifted
}

/// Returns what is wrong with a lease of another backend.
pub(super) fn check_type(lease: &Lease, ours: &str) -> Result<(), String> {
    let theirs = &lease.attrs.backend_type;
    if theirs == ours { Ok(()) } else { Err(format!("its backend type is {theirs:?}, ours is {ours:?}")) }
}

fn lengths(key: &SubnetKey) -> (Option<u8>, Option<u8>) {
    (key.ipv4().map(|subnet| subnet.prefix()), key.ipv6().map(|subnet| subnet.prefix()))
}

/// Finds a subnet in use that overlaps `subnet`. Subnets in use do not overlap each other, so only the
/// nearest on either side can.
fn overlapped(holders: &BTreeMap<IpNetwork, SubnetKey>, subnet: IpNetwork) -> Option<(IpNetwork, SubnetKey)> {
    let share = |(other, _): &(&IpNetwork, &SubnetKey)| {
        other.is_ipv4() == subnet.is_ipv4()
            && (other.contains(subnet.network()) || subnet.contains(other.network()))
    };
    let before = holders.range(..=subnet).next_back().filter(share);
    let found = before.or_else(|| holders.range(subnet..).next().filter(share));
    found.map(|(other, key)| (*other, *key))
}

fn usable(own: &Lease, lease: &Lease) -> Result<(), String> {
    if lease.key.overlaps(&own.key) {
        return Err(format!("it overlaps our own subnet {}", own.key));
    }
    let same_v4 = !own.attrs.public_ip.is_unspecified() && lease.attrs.public_ip == own.attrs.public_ip;
    let same_v6 = own.attrs.public_ipv6.is_some() && lease.attrs.public_ipv6 == own.attrs.public_ipv6;
    if same_v4 || same_v6 {
        let shared: IpAddr = match lease.attrs.public_ipv6 {
            Some(ip) if !same_v4 => ip.into(),
            _ => lease.attrs.public_ip.into(),
        };
        return Err(format!("it has our own public address {shared}"));
    }
    Ok(())
}
