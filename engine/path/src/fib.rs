//! The forwarding table: pod prefix → peer. Built once by control, then only read.
//!
//! flannel gives every node a subnet of the same size, so the usual table is a direct index: shift the
//! destination, subtract, load. Anything else (mixed sizes, nested prefixes, a sparse range) falls back to
//! disjoint ranges with a binary search, which is a longest-prefix match worked out in advance.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use batch::PeerId;
use ipnetwork::IpNetwork;
use wire::addr::Mac;

use crate::encap::Format;
use crate::template::Template;

/// A direct index may have this many places; beyond it the ranges are smaller and nearly as fast.
const DIRECT_MAX: u128 = 1 << 20;
const NONE: u32 = u32::MAX;

/// One remote node.
#[derive(Clone, Debug)]
pub struct NextHop {
    /// Tells peers apart: its place in the table, or the number it was given.
    pub id: PeerId,
    /// Where its datagrams go.
    pub remote: SocketAddr,
    /// Everything that precedes the inner IP header in each of them.
    pub template: Template,
    /// The largest inner IP packet that fits, in bytes.
    pub mtu: u16,
}

/// What control knows of a remote node.
#[derive(Clone, Copy, Debug)]
pub struct PeerSpec {
    /// Public address and tunnel port.
    pub remote: SocketAddr,
    /// Its inner MAC; needed by vxlan, ignored by the others.
    pub mac: Option<Mac>,
    /// The largest inner IP packet that fits, in bytes.
    pub mtu: u16,
}

/// Why a table cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FibError {
    /// The same prefix twice.
    Duplicate(IpNetwork),
    /// A vxlan peer without a MAC.
    NoMac(IpNetwork),
    /// An ipip peer at an IPv6 address.
    NotIpv4(IpNetwork),
}

impl std::fmt::Display for FibError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FibError::Duplicate(prefix) => write!(f, "two peers claim {prefix}"),
            FibError::NotIpv4(prefix) => write!(f, "the ipip peer of {prefix} has no IPv4 address"),
            FibError::NoMac(prefix) => write!(f, "the vxlan peer of {prefix} has no MAC"),
        }
    }
}

impl std::error::Error for FibError {}

/// The table of one tunnel.
#[derive(Clone, Debug)]
pub struct Fib {
    format: Format,
    reply_v4: Option<Ipv4Addr>,
    reply_v6: Option<Ipv6Addr>,
    peers: Vec<NextHop>,
    v4: Index,
    v6: Index,
}

impl Fib {
    /// A table that knows no peer.
    pub fn empty(format: Format) -> Fib {
        Fib { format, reply_v4: None, reply_v6: None, peers: Vec::new(), v4: Index::Empty, v6: Index::Empty }
    }

    /// How packets are framed on the underlay.
    #[inline]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The peer that owns `dst`, by its longest prefix.
    #[inline]
    pub fn lookup_v4(&self, dst: Ipv4Addr) -> Option<(u32, &NextHop)> {
        self.peer(self.v4.find(u128::from(u32::from(dst))))
    }

    /// As [`Fib::lookup_v4`].
    #[inline]
    pub fn lookup_v6(&self, dst: Ipv6Addr) -> Option<(u32, &NextHop)> {
        self.peer(self.v6.find(u128::from(dst)))
    }

    /// The tunnel device's own address. IPv4 pods are sent ICMP errors only where there is one; their source
    /// is the address that was asked for, see [`reply`](crate::reply).
    pub fn reply_v4(&self) -> Option<Ipv4Addr> {
        self.reply_v4
    }

    /// The source of ICMP errors towards IPv6 pods: the tunnel device's own address.
    pub fn reply_v6(&self) -> Option<Ipv6Addr> {
        self.reply_v6
    }

    /// Number of peers.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Memory that it takes, in bytes. Workers share it.
    pub fn bytes(&self) -> usize {
        size_of::<Fib>() + size_of_val(&self.peers[..]) + self.v4.bytes() + self.v6.bytes()
    }

    /// Whether it knows no peer.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    #[inline]
    fn peer(&self, index: u32) -> Option<(u32, &NextHop)> {
        self.peers.get(index as usize).map(|peer| (index, peer))
    }
}

/// Collects prefixes, then builds the index.
#[derive(Clone, Debug)]
pub struct FibBuilder {
    fib: Fib,
    v4: Vec<Entry>,
    v6: Vec<Entry>,
}

impl FibBuilder {
    /// Starts an empty table for this framing.
    pub fn new(format: Format) -> FibBuilder {
        FibBuilder { fib: Fib::empty(format), v4: Vec::new(), v6: Vec::new() }
    }

    /// Sets the tunnel device's own addresses; without one, pods of that family are sent no ICMP errors.
    pub fn reply_from(mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> FibBuilder {
        self.fib.reply_v4 = v4;
        self.fib.reply_v6 = v6;
        self
    }

    /// Adds a peer with its prefix. Nested prefixes are fine, the longest wins.
    pub fn add(&mut self, prefix: IpNetwork, peer: PeerSpec) -> Result<(), FibError> {
        let place = PeerId(self.fib.peers.len() as u32);
        self.add_numbered(prefix, peer, place)
    }

    /// The same for a peer that has a number of its own, which may have several prefixes.
    pub fn add_numbered(&mut self, prefix: IpNetwork, peer: PeerSpec, id: PeerId) -> Result<(), FibError> {
        let fault = match self.fib.format {
            Format::Ipip(_) => FibError::NotIpv4(prefix),
            Format::Vxlan(_) | Format::Udp | Format::Wireguard => FibError::NoMac(prefix),
        };
        let template = self.fib.format.template(peer.remote, peer.mac).ok_or(fault)?;
        let index = self.fib.peers.len() as u32;
        self.fib.peers.push(NextHop { id, remote: peer.remote, template, mtu: peer.mtu });
        match prefix.network() {
            IpAddr::V4(net) => self.v4.push(Entry::new(u128::from(u32::from(net)), 32, prefix, index)),
            IpAddr::V6(net) => self.v6.push(Entry::new(u128::from(net), 128, prefix, index)),
        }
        Ok(())
    }

    /// The finished table.
    pub fn build(mut self) -> Result<Fib, FibError> {
        self.fib.v4 = Index::build(&mut self.v4)?;
        self.fib.v6 = Index::build(&mut self.v6)?;
        // It grew by doubling, and stays as it is from here on.
        self.fib.peers.shrink_to_fit();
        Ok(self.fib)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    first: u128,
    last: u128,
    /// Host bits: addresses in the prefix are `1 << shift`.
    shift: u8,
    prefix: IpNetwork,
    peer: u32,
}

impl Entry {
    fn new(first: u128, width: u8, prefix: IpNetwork, peer: u32) -> Entry {
        let shift = width - prefix.prefix();
        let last = if shift >= 128 { u128::MAX } else { first | ((1u128 << shift) - 1) };
        Entry { first, last, shift, prefix, peer }
    }
}

#[derive(Clone, Debug)]
enum Index {
    Empty,
    Direct {
        first: u128,
        shift: u8,
        peers: Vec<u32>,
    },
    /// `starts[i]` opens a range that belongs to `peers[i]` and ends where the next one starts.
    Ranges {
        starts: Vec<u128>,
        peers: Vec<u32>,
    },
}

impl Index {
    #[inline]
    fn find(&self, key: u128) -> u32 {
        match self {
            Index::Empty => NONE,
            Index::Direct { first, shift, peers } => {
                let place = (key >> shift).wrapping_sub(*first);
                usize::try_from(place).ok().and_then(|at| peers.get(at)).copied().unwrap_or(NONE)
            }
            Index::Ranges { starts, peers } => match starts.partition_point(|start| *start <= key) {
                0 => NONE,
                after => peers[after - 1],
            },
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Index::Empty => 0,
            Index::Direct { peers, .. } => size_of_val(&peers[..]),
            Index::Ranges { starts, peers } => size_of_val(&starts[..]) + size_of_val(&peers[..]),
        }
    }

    fn build(entries: &mut [Entry]) -> Result<Index, FibError> {
        // Outer prefixes before the ones nested in them.
        entries.sort_by_key(|e| (e.first, std::cmp::Reverse(e.shift)));
        if let Some(pair) = entries.windows(2).find(|p| p[0].first == p[1].first && p[0].shift == p[1].shift)
        {
            return Err(FibError::Duplicate(pair[0].prefix));
        }
        let (Some(low), Some(high)) = (entries.first(), entries.last()) else { return Ok(Index::Empty) };
        let shift = low.shift;
        if shift < 128 && entries.iter().all(|e| e.shift == shift) {
            let first = low.first >> shift;
            let places = (high.first >> shift) - first + 1;
            if places <= DIRECT_MAX {
                let mut peers = vec![NONE; places as usize];
                for e in entries.iter() {
                    peers[((e.first >> shift) - first) as usize] = e.peer;
                }
                return Ok(Index::Direct { first, shift, peers });
            }
        }
        Ok(Index::ranges(entries))
    }

    /// Prefixes nest or are disjoint, so one pass with a stack of the open ones yields disjoint ranges.
    fn ranges(sorted: &[Entry]) -> Index {
        let (mut starts, mut peers) = (Vec::new(), Vec::new());
        let mut open: Vec<Entry> = Vec::new();
        let mut begin = |at: u128, peer: u32| {
            if starts.last() == Some(&at) {
                starts.pop();
                peers.pop();
            }
            starts.push(at);
            peers.push(peer);
        };
        let close = |open: &mut Vec<Entry>, before: Option<u128>, begin: &mut dyn FnMut(u128, u32)| {
            while let Some(inner) = open.last().copied().filter(|e| before.is_none_or(|b| e.last < b)) {
                open.pop();
                if let Some(next) = inner.last.checked_add(1) {
                    begin(next, open.last().map_or(NONE, |outer| outer.peer));
                }
            }
        };
        for entry in sorted {
            close(&mut open, Some(entry.first), &mut begin);
            begin(entry.first, entry.peer);
            open.push(*entry);
        }
        close(&mut open, None, &mut begin);
        starts.shrink_to_fit();
        peers.shrink_to_fit();
        Index::Ranges { starts, peers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(n: u8) -> PeerSpec {
        PeerSpec { remote: SocketAddr::from(([192, 0, 2, n], 8285)), mac: None, mtu: 1472 }
    }

    fn build(prefixes: &[IpNetwork]) -> Result<Fib, FibError> {
        let mut builder = FibBuilder::new(Format::Udp);
        for (i, prefix) in prefixes.iter().enumerate() {
            builder.add(*prefix, spec(i as u8))?;
        }
        builder.build()
    }

    fn owner(fib: &Fib, dst: IpAddr) -> Option<u32> {
        match dst {
            IpAddr::V4(dst) => fib.lookup_v4(dst).map(|(i, _)| i),
            IpAddr::V6(dst) => fib.lookup_v6(dst).map(|(i, _)| i),
        }
    }

    #[test]
    fn equal_sizes_use_the_direct_index() {
        let nets: Vec<IpNetwork> = (1..=200u8).map(|n| format!("10.244.{n}.0/24").parse().unwrap()).collect();
        let fib = build(&nets).unwrap();
        assert!(matches!(fib.v4, Index::Direct { .. }));
        assert_eq!(owner(&fib, "10.244.7.255".parse().unwrap()), Some(6));
        assert_eq!(owner(&fib, "10.244.0.1".parse().unwrap()), None);
        assert_eq!(owner(&fib, "10.244.201.1".parse().unwrap()), None);
        assert_eq!(owner(&fib, "9.0.0.1".parse().unwrap()), None);
        assert_eq!(owner(&fib, "fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn ten_thousand_peers_take_little_memory() {
        let net = |n: u32, len| IpNetwork::new(Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), len).unwrap();
        let dense: Vec<IpNetwork> = (0..10_000).map(|n| net(n, 24)).collect();
        let spread: Vec<IpNetwork> = (0..10_000).map(|n| net(n * 6, 24)).collect();
        let mixed: Vec<IpNetwork> = (0..10_000).map(|n| net(n * 2, 23 + (n % 2) as u8)).collect();
        for nets in [dense, spread, mixed] {
            let fib = build(&nets).unwrap();
            let each = (fib.bytes() - build(&[]).unwrap().bytes()) as f64 / nets.len() as f64;
            assert!(each <= 128.0, "{each} bytes a peer");
            assert_eq!(fib.peers.capacity(), nets.len());
        }
    }

    #[test]
    fn the_same_prefix_twice_is_refused() {
        let net: IpNetwork = "10.1.0.0/24".parse().unwrap();
        assert_eq!(build(&[net, net]).unwrap_err(), FibError::Duplicate(net));
    }

    #[test]
    fn everything_and_the_last_address_are_prefixes_too() {
        let fib = build(&[
            "0.0.0.0/0".parse().unwrap(),
            "255.255.255.255/32".parse().unwrap(),
            "::/0".parse().unwrap(),
        ])
        .unwrap();
        assert_eq!(owner(&fib, "255.255.255.255".parse().unwrap()), Some(1));
        assert_eq!(owner(&fib, "255.255.255.254".parse().unwrap()), Some(0));
        assert_eq!(owner(&fib, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()), Some(2));
    }

    fn any_prefix() -> impl Strategy<Value = IpNetwork> {
        let v4 = (any::<u8>(), 4u8..=32).prop_map(|(low, len)| {
            let addr = Ipv4Addr::from(0x0af4_0000 | u32::from(low) << 5);
            let net = IpNetwork::new(IpAddr::V4(addr), len).unwrap();
            IpNetwork::new(net.network(), len).unwrap()
        });
        let v6 = (any::<u8>(), 40u8..=128).prop_map(|(low, len)| {
            let addr = Ipv6Addr::from(0xfd00u128 << 112 | u128::from(low) << 60);
            let net = IpNetwork::new(IpAddr::V6(addr), len).unwrap();
            IpNetwork::new(net.network(), len).unwrap()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_longest_prefix_match(
            mut nets in proptest::collection::vec(any_prefix(), 0..24),
            probes in proptest::collection::vec(any::<(bool, u16)>(), 64),
        ) {
            nets.sort();
            nets.dedup();
            let fib = build(&nets).unwrap();
            for (six, low) in probes {
                let dst: IpAddr = if six {
                    Ipv6Addr::from(0xfd00u128 << 112 | u128::from(low) << 56).into()
                } else {
                    Ipv4Addr::from(0x0af4_0000 | u32::from(low)).into()
                };
                let model = nets.iter().enumerate().filter(|(_, n)| n.contains(dst)).max_by_key(|(_, n)| n.prefix());
                prop_assert_eq!(owner(&fib, dst), model.map(|(i, _)| i as u32));
            }
        }
    }
}
