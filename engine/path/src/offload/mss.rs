//! How large the segments of a TCP super-packet are that arrives without saying so.
//!
//! A kernel peer on a veth hands over TCP super-packets uncut, and a UDP or raw socket does not say how they
//! were to be cut (net/ipv4/udp.c, `udp_cmsg_recv`, reports UDP alone). Segments must be no longer than the
//! maximum segment size (MSS) that the connection has negotiated, or they do not fit the pod's link. So the
//! workers remember the MSS options of SYNs, and lower what a router on the pods' side announces. Nothing
//! depends on their memory: of a connection that is older than the daemon, or whose entry another one has
//! taken, segments have the size that every host accepts.
//!
//! Anybody can send a SYN. So a new connection takes no entry whose connection carries data, and a SYN that
//! names such a connection changes little: its kernel takes it for a mistake (RFC 5961 section 4).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use wire::{ipv4, ipv6, tcp};

use crate::fib::IPV6_MIN_MTU;
use crate::inner::{Inner, TCP};
use crate::offload::segment::TCP_SEGMENT_MIN;

/// Number of sets of entries. A connection may have any entry of one set.
const SETS: usize = 4096;
/// Number of entries in a set.
const WAYS: usize = 4;
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
    sets: Box<[[AtomicU64; WAYS]]>,
}

/// A connection as its packets from the underlay show it.
#[derive(Hash)]
struct Key {
    src: u128,
    dst: u128,
    ports: u32,
}

impl Key {
    #[inline]
    fn of_ingress(inner: &Inner) -> Key {
        Key { src: inner.src, dst: inner.dst, ports: inner.ports }
    }

    #[inline]
    fn of_egress(inner: &Inner) -> Key {
        Key { src: inner.dst, dst: inner.src, ports: inner.ports.rotate_left(16) }
    }
}

/// What is remembered of a connection, in one word.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// 28 bits of the connection's hash.
    tag: u32,
    /// Whether `by_pod` is not announced, but the longest segment that the peer has sent.
    proven: bool,
    /// [`NEW`], [`CLOSED`], or how recently the connection carried data: from [`RESTING`] to [`BUSY`].
    age: u8,
    /// What the ends of the connection have announced; 0 if nothing was seen.
    by_pod: u16,
    by_peer: u16,
}

/// The connection has carried no super-packet since its SYN.
const NEW: u8 = 0;
/// The pod has sent its last packet: a SYN begins another connection.
const CLOSED: u8 = 1;
/// The connection has carried data, but none while many SYNs asked for its entry.
const RESTING: u8 = 2;
const BUSY: u8 = 7;

impl Entry {
    #[inline]
    fn unpack(word: u64) -> Entry {
        Entry {
            tag: (word >> 36) as u32,
            proven: word >> 35 & 1 == 1,
            age: (word >> 32) as u8 & 7,
            by_pod: (word >> 16) as u16,
            by_peer: word as u16,
        }
    }

    #[inline]
    fn pack(self) -> u64 {
        let state = u64::from(self.proven) << 3 | u64::from(self.age);
        u64::from(self.tag) << 36 | state << 32 | u64::from(self.by_pod) << 16 | u64::from(self.by_peer)
    }

    /// Returns how much is lost with the entry: the least first.
    fn worth(self) -> u8 {
        match self.age {
            NEW if self.by_pod | self.by_peer == 0 => 0,
            NEW | CLOSED => 1,
            RESTING => 2,
            _ => 3,
        }
    }

    #[inline]
    fn carries_data(self) -> bool {
        self.age >= RESTING
    }

    /// Returns the entry after a SYN from the peer. Only the pod's kernel can tell a forged one, and the
    /// pod's own half alone keeps segments from being too long.
    fn after_syn_of_peer(self, mss: u16) -> Option<Entry> {
        (!self.carries_data()).then_some(Entry { age: NEW, by_peer: mss, ..self })
    }

    /// Returns the entry after a SYN from the pod, whose kernel may know better than that the connection
    /// lives.
    fn after_syn_of_pod(self, mss: u16, unknown: u16) -> Option<Entry> {
        if self.carries_data() {
            let by_pod = self.by_pod.min(mss.max(unknown));
            return Some(Entry { by_pod, ..self });
        }
        Some(Entry { age: NEW, proven: false, by_pod: mss, ..self })
    }
}

impl SegmentSizes {
    /// Creates an empty memory for an overlay with this MTU. The secret keeps senders from choosing which
    /// connections share an entry.
    pub fn new(mtu: u16, secret: u64) -> SegmentSizes {
        SegmentSizes { mtu, secret, sets: (0..SETS).map(|_| Default::default()).collect() }
    }

    /// Returns the overlay's MTU.
    #[inline]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns the payload of each segment of a TCP packet from the underlay with headers of `header_len`
    /// bytes. With `singles`, an unknown connection is remembered until [`SegmentSizes::observe_single`]
    /// shows more of it.
    pub fn payload(&self, inner: &Inner, header_len: usize, singles: bool) -> u16 {
        let unknown = unknown(inner);
        let key = Key::of_ingress(inner);
        let entry = self.touch(&key).unwrap_or_default();
        if entry.by_pod == 0 && singles {
            self.change(&key, |entry| {
                let new = Entry { proven: true, age: BUSY, by_pod: unknown, by_peer: 0, ..entry };
                (entry.by_pod == 0).then_some(new)
            });
        }
        // The pod's announcement binds its peer, which may have less room itself.
        let mss = match entry {
            Entry { by_pod: 0, .. } => unknown,
            Entry { by_pod, by_peer: 0, .. } => by_pod,
            Entry { by_pod, by_peer, .. } => by_pod.min(by_peer),
        };
        let fits = self.mtu.saturating_sub(header_len as u16);
        mss.saturating_sub(options(inner, header_len)).min(fits).max(TCP_SEGMENT_MIN)
    }

    /// Learns from a TCP packet that arrived as its sender cut it: the sender's own segment is as long as the
    /// connection allows. That restores a connection whose SYN nobody has seen.
    #[inline]
    pub fn observe_single(&self, inner: &Inner, header_len: usize) {
        let len = (inner.len - header_len) as u16;
        let mss = len.saturating_add(options(inner, header_len));
        if mss <= unknown(inner) {
            return;
        }
        let key = Key::of_ingress(inner);
        if self.touch(&key).is_some_and(|entry| entry.proven && entry.by_pod < mss) {
            let raise =
                |entry: Entry| (entry.proven && entry.by_pod < mss).then_some(Entry { by_pod: mss, ..entry });
            self.change(&key, raise);
        }
    }

    /// Remembers what a packet from the underlay announces.
    #[inline]
    pub fn observe_ingress(&self, inner: &Inner, packet: &[u8]) {
        if flags(inner, packet) & tcp::SYN != 0 {
            let mss = announced(inner, packet);
            self.change(&Key::of_ingress(inner), |entry| entry.after_syn_of_peer(mss));
        }
    }

    /// Remembers what a packet from a pod announces: the pod's MSS, the end of a connection, or the MTU of a
    /// router in front of the pod.
    #[inline]
    pub fn observe_egress(&self, inner: &Inner, packet: &[u8]) {
        let flags = flags(inner, packet);
        if flags & tcp::SYN != 0 {
            let (mss, unknown) = (announced(inner, packet), unknown(inner));
            self.change(&Key::of_egress(inner), |entry| entry.after_syn_of_pod(mss, unknown));
        } else if flags & (tcp::FIN | tcp::RST) != 0 {
            // The peer may go on; its next data protects the entry again.
            let close = |entry: Entry| entry.carries_data().then_some(Entry { age: CLOSED, ..entry });
            self.change(&Key::of_egress(inner), close);
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
            // An unknown connection has the least already. What the peer sends from now on proves nothing:
            // it may not have been told yet.
            let lower = |entry: Entry| {
                (entry.by_pod > limit).then_some(Entry { proven: false, by_pod: limit, ..entry })
            };
            self.change(&key, lower);
        }
    }

    /// Returns the entry of a connection and protects it, if the pod's half is known.
    #[inline]
    fn touch(&self, key: &Key) -> Option<Entry> {
        let (set, tag) = self.set(key);
        let (way, word) = find(set, tag)?;
        let entry = Entry::unpack(word);
        if entry.by_pod != 0 && entry.age != BUSY {
            let busy = Entry { age: BUSY, ..entry }.pack();
            // Whoever was faster knows more; the next packet tries again.
            let _ = way.compare_exchange(word, busy, Ordering::Relaxed, Ordering::Relaxed);
        }
        Some(entry)
    }

    /// Changes the entry of a connection, or fills one for it if it has none.
    #[cold]
    fn change(&self, key: &Key, change: impl Fn(Entry) -> Option<Entry>) {
        /// A worker that finds its word changed that often leaves the connection as it is.
        const ATTEMPTS: usize = 4;
        let (set, tag) = self.set(key);
        for _ in 0..ATTEMPTS {
            let found = find(set, tag);
            let old = found.map_or(Entry { tag, ..Entry::default() }, |(_, word)| Entry::unpack(word));
            let Some(new) = change(old) else { return };
            let Some((way, word)) = found.or_else(|| give_way(set, tag)) else { return };
            if way.compare_exchange(word, new.pack(), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    #[inline]
    fn set(&self, key: &Key) -> (&[AtomicU64; WAYS], u32) {
        let mut hasher = DefaultHasher::new();
        self.secret.hash(&mut hasher);
        key.hash(&mut hasher);
        let hash = hasher.finish();
        (&self.sets[hash as usize % SETS], (hash >> 36) as u32)
    }
}

#[inline]
fn find(set: &[AtomicU64; WAYS], tag: u32) -> Option<(&AtomicU64, u64)> {
    let words = set.iter().map(|way| (way, way.load(Ordering::Relaxed)));
    words.into_iter().find(|(_, word)| (word >> 36) as u32 == tag && *word as u32 != 0)
}

/// Returns the entry whose loss costs least. If all connections of the set carry data, each becomes older
/// instead, and the new one is not remembered.
fn give_way(set: &[AtomicU64; WAYS], tag: u32) -> Option<(&AtomicU64, u64)> {
    let ways = (0..WAYS).map(|i| &set[(tag as usize + i) % WAYS]);
    let words = ways.map(|way| (way, way.load(Ordering::Relaxed)));
    let least = words.min_by_key(|(_, word)| Entry::unpack(*word).worth())?;
    if Entry::unpack(least.1).age <= RESTING {
        return Some(least);
    }
    for way in set {
        let word = way.load(Ordering::Relaxed);
        let entry = Entry::unpack(word);
        if entry.age > RESTING {
            let older = Entry { age: entry.age - 1, ..entry }.pack();
            // The error is that the connection has carried data just now.
            let _ = way.compare_exchange(word, older, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
    None
}

fn unknown(inner: &Inner) -> u16 {
    if inner.v6 { UNKNOWN_V6 } else { UNKNOWN_V4 }
}

/// Returns the bytes of headers that take from the payload (RFC 6691 section 2).
fn options(inner: &Inner, header_len: usize) -> u16 {
    header_len.saturating_sub(if inner.v6 { HEADERS_V6 } else { HEADERS_V4 }) as u16
}

/// Returns the flags of a TCP packet, and none of any other.
#[inline]
fn flags(inner: &Inner, packet: &[u8]) -> u8 {
    const FLAGS: usize = 13;
    if inner.protocol != TCP || inner.fragment {
        return 0;
    }
    packet.get(inner.transport + FLAGS).copied().unwrap_or_default()
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
