//! The forwarding table, which maps pod prefixes to peers. Control builds it; workers only read it.
//!
//! flannel gives every node a subnet of the same size, so the usual table is a direct index: shift the
//! destination, subtract, load. Other tables (mixed sizes, nested prefixes, sparse ranges) use disjoint
//! ranges and a binary search, which is a precomputed longest-prefix match.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use batch::PeerId;
use ipnetwork::IpNetwork;
use wire::addr::Mac;

use crate::encap::Format;
use crate::sources::Sources;
use crate::template::Template;

/// Maximum size of a direct index. Beyond it, ranges need less memory and are nearly as fast.
const DIRECT_MAX: u128 = 1 << 20;
const NONE: u32 = u32::MAX;

/// One remote node.
#[derive(Clone, Debug)]
pub struct NextHop {
    /// Identifies the peer: its position in the table, or the number it was added with.
    pub id: PeerId,
    /// The address and port to send its datagrams to.
    pub remote: SocketAddr,
    /// The bytes before the inner IP header in each datagram.
    pub template: Template,
    /// The largest inner IP packet that fits the tunnel, in bytes.
    pub mtu: u16,
    path: PathLimit,
}

/// The smallest MTU of an IPv6 link (RFC 8200 section 5).
pub const IPV6_MIN_MTU: u16 = 1280;

impl NextHop {
    /// Returns the largest inner IP packet that fits the tunnel and the path to the peer, as far as that is
    /// known. An IPv6 packet never has to be smaller than IPv6's minimum MTU.
    #[inline]
    pub fn limit(&self, v6: bool) -> u16 {
        let path = self.path.0.load(Ordering::Relaxed);
        self.mtu.min(if v6 { path.max(IPV6_MIN_MTU) } else { path })
    }
}

/// The largest inner packet that fits the path to a peer; `u16::MAX` while nothing is known. The only part of
/// a table that changes: any worker may see a change at any time.
#[derive(Debug)]
struct PathLimit(AtomicU16);

impl Clone for PathLimit {
    fn clone(&self) -> PathLimit {
        PathLimit(AtomicU16::new(self.0.load(Ordering::Relaxed)))
    }
}

/// Identifies the peer that a path leads to, in every table of a tunnel; see [`Fib::end_of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathEnd {
    /// The peer with this address.
    Remote(IpAddr),
    /// The peer with this number, for formats whose peers change their addresses.
    Peer(PeerId),
}

/// A remote node as control describes it.
#[derive(Clone, Copy, Debug)]
pub struct PeerSpec {
    /// Public address and tunnel port.
    pub remote: SocketAddr,
    /// The peer's inner MAC address; required by vxlan, ignored by the other formats.
    pub mac: Option<Mac>,
    /// The largest inner IP packet that fits, in bytes.
    pub mtu: u16,
}

/// The reason why a table cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FibError {
    /// Two peers have the same prefix.
    Duplicate(IpNetwork),
    /// A vxlan peer has no MAC address.
    NoMac(IpNetwork),
    /// An ipip peer has an IPv6 address.
    NotIpv4(IpNetwork),
}

impl std::fmt::Display for FibError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FibError::Duplicate(prefix) => write!(f, "two peers claim {prefix}"),
            FibError::NotIpv4(prefix) => write!(f, "the ipip peer of {prefix} has no IPv4 address"),
            FibError::NoMac(prefix) => write!(f, "the vxlan peer of {prefix} has no MAC address"),
        }
    }
}

impl std::error::Error for FibError {}

/// The forwarding table of one tunnel.
#[derive(Clone, Debug)]
pub struct Fib {
    format: Format,
    reply_v4: Option<Ipv4Addr>,
    reply_v6: Option<Ipv6Addr>,
    sources: Sources,
    peers: Vec<NextHop>,
    /// The positions of the peers, ordered by the ends of their paths.
    by_end: Vec<u32>,
    v4: Index,
    v6: Index,
}

impl Fib {
    /// Creates a table without peers.
    pub fn empty(format: Format) -> Fib {
        Fib {
            format,
            reply_v4: None,
            reply_v6: None,
            sources: Sources::default(),
            peers: Vec::new(),
            by_end: Vec::new(),
            v4: Index::Empty,
            v6: Index::Empty,
        }
    }

    /// Returns the tunnel format.
    #[inline]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Finds the peer whose longest matching prefix contains `dst`.
    #[inline]
    pub fn lookup_v4(&self, dst: Ipv4Addr) -> Option<(u32, &NextHop)> {
        self.peer(self.v4.find(u128::from(u32::from(dst))))
    }

    /// Finds the peer for an IPv6 destination; see [`Fib::lookup_v4`].
    #[inline]
    pub fn lookup_v6(&self, dst: Ipv6Addr) -> Option<(u32, &NextHop)> {
        self.peer(self.v6.find(u128::from(dst)))
    }

    /// Returns the tunnel device's IPv4 address. IPv4 pods receive ICMP errors only if there is one, although
    /// the source of the errors is the offending packet's destination, see [`reply`](crate::reply).
    pub fn reply_v4(&self) -> Option<Ipv4Addr> {
        self.reply_v4
    }

    /// Returns the tunnel device's IPv6 address, which is the source of ICMP errors to IPv6 pods.
    pub fn reply_v6(&self) -> Option<Ipv6Addr> {
        self.reply_v6
    }

    /// Returns the sources that packets from the underlay may have.
    #[inline]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Returns the peers, in the order in which they were added.
    pub fn peers(&self) -> &[NextHop] {
        &self.peers
    }

    /// Returns the number of peers.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Returns the size of the table in bytes. Workers share one table.
    pub fn bytes(&self) -> usize {
        size_of::<Fib>()
            + self.sources.bytes()
            + size_of_val(&self.peers[..])
            + size_of_val(&self.by_end[..])
            + self.v4.bytes()
            + self.v6.bytes()
    }

    /// Whether the table has no peers.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Sets the largest inner packet that fits the path to a peer; `None` if nothing is known. Returns
    /// whether the table has the peer.
    pub fn set_path_limit(&self, end: PathEnd, limit: Option<u16>) -> bool {
        let mut found = false;
        for peer in self.peers_at(end) {
            peer.path.0.store(limit.unwrap_or(u16::MAX), Ordering::Relaxed);
            found = true;
        }
        found
    }

    /// Returns the first peer at the end of a path.
    pub fn peer_at(&self, end: PathEnd) -> Option<&NextHop> {
        self.peers_at(end).next()
    }

    /// Returns the end of the path to a peer: WireGuard peers change their addresses, others are known by
    /// them.
    pub fn end_of(&self, id: PeerId, remote: IpAddr) -> PathEnd {
        if self.format == Format::Wireguard { PathEnd::Peer(id) } else { PathEnd::Remote(remote) }
    }

    /// Iterates over the peers at the end of a path, in the order in which they were added.
    fn peers_at(&self, end: PathEnd) -> impl Iterator<Item = &NextHop> {
        let peers = |from: usize| self.by_end[from..].iter().map(|index| &self.peers[*index as usize]);
        let end_of = |peer: &NextHop| self.end_of(peer.id, peer.remote.ip());
        let first = self.by_end.partition_point(|index| end_of(&self.peers[*index as usize]) < end);
        peers(first).take_while(move |peer| end_of(peer) == end)
    }

    #[inline]
    fn peer(&self, index: u32) -> Option<(u32, &NextHop)> {
        self.peers.get(index as usize).map(|peer| (index, peer))
    }
}

/// Collects peers and their prefixes, then builds the table.
#[derive(Clone, Debug)]
pub struct FibBuilder {
    fib: Fib,
    v4: Vec<Entry>,
    v6: Vec<Entry>,
}

impl FibBuilder {
    /// Starts an empty table for a tunnel format.
    pub fn new(format: Format) -> FibBuilder {
        FibBuilder { fib: Fib::empty(format), v4: Vec::new(), v6: Vec::new() }
    }

    /// Sets the tunnel device's addresses. Without an address, pods of that family receive no ICMP errors.
    pub fn reply_from(mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> FibBuilder {
        self.fib.reply_v4 = v4;
        self.fib.reply_v6 = v6;
        self
    }

    /// Sets the sources that packets from the underlay may have; without, those of both families.
    pub fn admit(mut self, sources: Sources) -> FibBuilder {
        self.fib.sources = sources;
        self
    }

    /// Adds a peer with its prefix. Prefixes may be nested; the longest match wins.
    pub fn add(&mut self, prefix: IpNetwork, peer: PeerSpec) -> Result<(), FibError> {
        let position = PeerId(self.fib.peers.len() as u32);
        self.add_numbered(prefix, peer, position)
    }

    /// Adds a peer under the given number. A peer with several prefixes is added once per prefix.
    pub fn add_numbered(&mut self, prefix: IpNetwork, peer: PeerSpec, id: PeerId) -> Result<(), FibError> {
        let fault = match self.fib.format {
            Format::Ipip(_) => FibError::NotIpv4(prefix),
            Format::Vxlan(_) | Format::Udp | Format::Wireguard => FibError::NoMac(prefix),
        };
        let template = self.fib.format.template(peer.remote, peer.mac).ok_or(fault)?;
        let index = self.fib.peers.len() as u32;
        self.fib.peers.push(NextHop {
            id,
            remote: peer.remote,
            template,
            mtu: peer.mtu,
            path: PathLimit(AtomicU16::new(u16::MAX)),
        });
        match prefix.network() {
            IpAddr::V4(net) => self.v4.push(Entry::new(u128::from(u32::from(net)), 32, prefix, index)),
            IpAddr::V6(net) => self.v6.push(Entry::new(u128::from(net), 128, prefix, index)),
        }
        Ok(())
    }

    /// Builds the table.
    pub fn build(mut self) -> Result<Fib, FibError> {
        self.fib.v4 = Index::build(&mut self.v4)?;
        self.fib.v6 = Index::build(&mut self.v6)?;
        // The vector has grown by doubling and does not change any more.
        self.fib.peers.shrink_to_fit();
        let fib = &self.fib;
        let mut by_end: Vec<u32> = (0..fib.peers.len() as u32).collect();
        by_end.sort_by_key(|index| {
            let peer = &fib.peers[*index as usize];
            fib.end_of(peer.id, peer.remote.ip())
        });
        self.fib.by_end = by_end;
        Ok(self.fib)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    first: u128,
    last: u128,
    /// Number of host bits: the prefix contains `1 << shift` addresses.
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
    /// `starts[i]` begins a range that belongs to `peers[i]` and ends where the next range begins.
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
                let position = (key >> shift).wrapping_sub(*first);
                usize::try_from(position).ok().and_then(|at| peers.get(at)).copied().unwrap_or(NONE)
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
        // Outer prefixes come before those nested in them.
        entries.sort_by_key(|e| (e.first, std::cmp::Reverse(e.shift)));
        if let Some(pair) = entries.windows(2).find(|p| p[0].first == p[1].first && p[0].shift == p[1].shift)
        {
            return Err(FibError::Duplicate(pair[0].prefix));
        }
        let (Some(low), Some(high)) = (entries.first(), entries.last()) else { return Ok(Index::Empty) };
        let shift = low.shift;
        if shift < 128 && entries.iter().all(|e| e.shift == shift) {
            let first = low.first >> shift;
            let size = (high.first >> shift) - first + 1;
            if size <= DIRECT_MAX {
                let mut peers = vec![NONE; size as usize];
                for e in entries.iter() {
                    peers[((e.first >> shift) - first) as usize] = e.peer;
                }
                return Ok(Index::Direct { first, shift, peers });
            }
        }
        Ok(Index::ranges(entries))
    }

    /// Builds disjoint ranges in one pass with a stack of open prefixes; any two prefixes are nested or
    /// disjoint.
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
            assert!(each <= 128.0, "{each} bytes per peer");
            assert_eq!(fib.peers.capacity(), nets.len());
        }
    }

    #[test]
    fn a_duplicate_prefix_is_rejected() {
        let net: IpNetwork = "10.1.0.0/24".parse().unwrap();
        assert_eq!(build(&[net, net]).unwrap_err(), FibError::Duplicate(net));
    }

    #[test]
    fn the_shortest_and_the_last_prefix_are_found() {
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
                let matching = nets.iter().enumerate().filter(|(_, n)| n.contains(dst));
                let model = matching.max_by_key(|(_, n)| n.prefix());
                prop_assert_eq!(owner(&fib, dst), model.map(|(i, _)| i as u32));
            }
        }
    }
}
