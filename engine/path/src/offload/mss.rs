//! How large the segments of a TCP super-packet are that arrives without saying so.
//!
//! A kernel peer on a veth hands over TCP super-packets uncut, and a UDP or raw socket does not say how they
//! were to be cut (net/ipv4/udp.c, `udp_cmsg_recv`, reports UDP alone). Segments must be no longer than the
//! maximum segment size (MSS) that the connection has negotiated, or they do not fit the pod's link. So the
//! workers remember the MSS options of SYNs, and lower what a router on the pods' side announces. Nothing
//! depends on their memory: of a connection that is older than the daemon, or whose entry another one has
//! taken, segments have the size that every host accepts.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use wire::{ipv4, ipv6, tcp};

use crate::fib::IPV6_MIN_MTU;
use crate::inner::{Inner, TCP};
use crate::offload::segment::TCP_SEGMENT_MIN;

/// Number of connections that are remembered.
const ENTRIES: usize = 4096;
/// The MSS of a connection that nothing is known about: the smallest that Linux announces on its own
/// (net.ipv4.route.min_adv_mss, net.ipv6.route.min_adv_mss).
const UNKNOWN_V4: u16 = 256;
const UNKNOWN_V6: u16 = IPV6_MIN_MTU - HEADERS_V6 as u16;
/// The MSS of a host that announces none (RFC 9293 section 3.7.1).
const UNSTATED_V4: u16 = 536;
const UNSTATED_V6: u16 = IPV6_MIN_MTU - HEADERS_V6 as u16;
/// The MSS below which Linux does not go: net.ipv4.tcp_min_snd_mss.
const LEAST: u16 = 48;
/// The path MTU below which Linux does not go: net.ipv4.route.min_pmtu.
const MIN_PMTU: u16 = 552;
/// The headers that an MSS leaves room for (RFC 6691 section 2).
const HEADERS_V4: usize = ipv4::MIN_HEADER_LEN + tcp::MIN_HEADER_LEN;
const HEADERS_V6: usize = ipv6::HEADER_LEN + tcp::MIN_HEADER_LEN;

/// The MSS of recent connections through one tunnel. The tunnel's workers share it, because the directions
/// of a connection may belong to different workers.
#[derive(Debug)]
pub struct SegmentSizes {
    mtu: u16,
    secret: u64,
    /// For each connection 32 bits of its hash, and what each side has announced.
    entries: Box<[AtomicU64]>,
}

/// A connection as its packets from the underlay show it.
#[derive(Hash)]
struct Key {
    src: u128,
    dst: u128,
    ports: u32,
}

/// What the ends of a connection have announced; 0 if nothing was seen.
#[derive(Clone, Copy, Default)]
struct Announced {
    by_pod: u16,
    by_peer: u16,
}

impl SegmentSizes {
    /// Creates an empty memory for an overlay with this MTU. The secret keeps senders from choosing which
    /// connections share an entry.
    pub fn new(mtu: u16, secret: u64) -> SegmentSizes {
        SegmentSizes { mtu, secret, entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns the overlay's MTU.
    #[inline]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns the payload of each segment of a TCP packet from the underlay with headers of `header_len`
    /// bytes.
    pub fn payload(&self, inner: &Inner, header_len: usize) -> u16 {
        let (unknown, headers) = if inner.v6 { (UNKNOWN_V6, HEADERS_V6) } else { (UNKNOWN_V4, HEADERS_V4) };
        let (entry, tag) = self.entry(&Key { src: inner.src, dst: inner.dst, ports: inner.ports });
        // The pod's announcement binds its peer, which may have less room itself.
        let mss = match unpack(entry.load(Ordering::Relaxed), tag) {
            Announced { by_pod: 0, .. } => unknown,
            Announced { by_pod, by_peer: 0 } => by_pod,
            Announced { by_pod, by_peer } => by_pod.min(by_peer),
        };
        // Options take from the payload (RFC 6691 section 2).
        let options = header_len.saturating_sub(headers) as u16;
        let fits = self.mtu.saturating_sub(header_len as u16);
        mss.saturating_sub(options).min(fits).max(TCP_SEGMENT_MIN)
    }

    /// Remembers what a packet from the underlay announces.
    #[inline]
    pub fn observe_ingress(&self, inner: &Inner, packet: &[u8]) {
        if is_syn(inner, packet) {
            let key = Key { src: inner.src, dst: inner.dst, ports: inner.ports };
            self.learn(&key, |known| Some(Announced { by_peer: announced(inner, packet), ..known }));
        }
    }

    /// Remembers what a packet from a pod announces: the pod's MSS, or the MTU of a router in front of it.
    #[inline]
    pub fn observe_egress(&self, inner: &Inner, packet: &[u8]) {
        if is_syn(inner, packet) {
            let key = Key { src: inner.dst, dst: inner.src, ports: inner.ports.rotate_left(16) };
            self.learn(&key, |known| Some(Announced { by_pod: announced(inner, packet), ..known }));
        } else if inner.protocol != TCP && !inner.fragment {
            self.observe_too_big(inner, packet);
        }
    }

    /// Lowers the MSS of the connection that a "fragmentation needed" or "packet too big" message quotes. Who
    /// lies in such a message costs a connection efficiency.
    #[inline]
    fn observe_too_big(&self, inner: &Inner, packet: &[u8]) {
        let message = packet.get(inner.transport..inner.len).unwrap_or_default();
        let quoted = match (inner.v6, inner.protocol, message) {
            // RFC 1191 section 4; the MTU is 0 from older routers.
            (false, 1, [3, 4, _, _, _, _, m0, m1, quote @ ..]) => {
                quoted_v4(u16::from_be_bytes([*m0, *m1]), quote)
            }
            // RFC 4443 section 3.2.
            (true, 58, [2, 0, _, _, m0, m1, m2, m3, quote @ ..]) => {
                let mtu = u32::from_be_bytes([*m0, *m1, *m2, *m3]);
                quoted_v6(mtu.min(u32::from(u16::MAX)) as u16, quote)
            }
            _ => None,
        };
        if let Some((key, limit)) = quoted {
            // An unknown connection has the least already.
            self.learn(&key, |known| (known.by_pod > limit).then_some(Announced { by_pod: limit, ..known }));
        }
    }

    #[cold]
    fn learn(&self, key: &Key, change: impl Fn(Announced) -> Option<Announced>) {
        let (entry, tag) = self.entry(key);
        let renew = |old| {
            let Announced { by_pod, by_peer } = change(unpack(old, tag))?;
            Some(u64::from(tag) << 32 | u64::from(by_pod) << 16 | u64::from(by_peer))
        };
        // The error is that nothing changes.
        let _ = entry.fetch_update(Ordering::Relaxed, Ordering::Relaxed, renew);
    }

    fn entry(&self, key: &Key) -> (&AtomicU64, u32) {
        let mut hasher = DefaultHasher::new();
        self.secret.hash(&mut hasher);
        key.hash(&mut hasher);
        let hash = hasher.finish();
        (&self.entries[hash as usize % ENTRIES], (hash >> 32) as u32)
    }
}

fn unpack(entry: u64, tag: u32) -> Announced {
    if (entry >> 32) as u32 != tag {
        return Announced::default();
    }
    Announced { by_pod: (entry >> 16) as u16, by_peer: entry as u16 }
}

#[inline]
fn is_syn(inner: &Inner, packet: &[u8]) -> bool {
    const FLAGS: usize = 13;
    inner.protocol == TCP
        && !inner.fragment
        && packet.get(inner.transport + FLAGS).is_some_and(|flags| flags & tcp::SYN != 0)
}

/// Returns the MSS that a SYN announces (RFC 9293 section 3.7.1).
fn announced(inner: &Inner, packet: &[u8]) -> u16 {
    let unstated = if inner.v6 { UNSTATED_V6 } else { UNSTATED_V4 };
    let segment = packet.get(inner.transport..inner.len).unwrap_or_default();
    let Ok(header) = tcp::Header::parse(segment) else { return LEAST };
    let mut options = segment.get(tcp::MIN_HEADER_LEN..header.header_len).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => break,
            (1, _) => rest,
            (2, [4, m0, m1, ..]) => match u16::from_be_bytes([*m0, *m1]) {
                // As in the kernel, tcp_parse_options.
                0 => break,
                mss => return mss.max(LEAST),
            },
            (_, [len, ..]) if *len >= 2 => options.get(usize::from(*len)..).unwrap_or_default(),
            _ => break,
        };
    }
    unstated
}

/// Returns the connection of a quoted packet, and the MSS that fits an MTU.
fn quoted_v4(mtu: u16, quote: &[u8]) -> Option<(Key, u16)> {
    let header_len = usize::from(quote.first()? & 15) * 4;
    let head = quote.first_chunk::<{ ipv4::MIN_HEADER_LEN }>()?;
    let first = head[6] & 0x1f == 0 && head[7] == 0;
    if head[0] >> 4 != 4 || head[9] != TCP || !first || mtu == 0 {
        return None;
    }
    let ports = quote.get(header_len..)?.first_chunk::<4>()?;
    let address = |at| u128::from(u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let key = Key { src: address(12), dst: address(16), ports: u32::from_be_bytes(*ports) };
    Some((key, mtu.max(MIN_PMTU) - HEADERS_V4 as u16))
}

fn quoted_v6(mtu: u16, quote: &[u8]) -> Option<(Key, u16)> {
    let (head, rest) = quote.split_first_chunk::<{ ipv6::HEADER_LEN }>()?;
    if head[0] >> 4 != 6 || head[6] != TCP {
        return None;
    }
    let ports = rest.first_chunk::<4>()?;
    let address = |at: usize| head.get(at..)?.first_chunk::<16>().copied().map(u128::from_be_bytes);
    let key = Key { src: address(8)?, dst: address(24)?, ports: u32::from_be_bytes(*ports) };
    Some((key, mtu.max(IPV6_MIN_MTU) - HEADERS_V6 as u16))
}
