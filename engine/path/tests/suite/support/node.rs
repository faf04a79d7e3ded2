//! A node whose two directions process one batch per call.

use std::net::{IpAddr, SocketAddr};

use path::egress::{self, HEADROOM};
use path::ingress;
use path::offload::coalesce::{Coalescer, Joins};
use path::outbox::Outbox;
use path::reply::Limiter;
use path::{Counters, DropReason, Fib, FibBuilder, Format, PeerSpec, Received, SegmentSizes, Verdict, Vxlan};
use wire::addr::{Mac, Vni};

/// Space for headers in the tests' arenas.
const SPACE: usize = 1 << 19;
pub(crate) const LANES: u16 = 8;
pub(crate) const VNI: u32 = 1;
pub(crate) const MTU: u16 = 1450;
pub(crate) const MACS: [[u8; 6]; 2] = [[0x0e, 0, 0, 0, 0, 0xa], [0x0e, 0, 0, 0, 0, 0xb]];
pub(crate) const BOTH: Joins = Joins { tcp: true, udp: true };

/// One of two nodes. Node 0 owns 10.1.0.0/24 and fd00:1::/64, node 1 owns 10.2.0.0/24 and fd00:2::/64.
pub(crate) struct Node {
    pub(crate) fib: Fib,
    pub(crate) sizes: SegmentSizes,
    pub(crate) counters: Counters,
    outbox: Outbox,
    coalescer: Coalescer,
}

/// A datagram to send on the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) to: SocketAddr,
    pub(crate) lane: u16,
    pub(crate) ecn: u8,
    pub(crate) bytes: Vec<u8>,
}

/// The results of a batch of packets from the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Egress {
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) sent: Vec<Sent>,
    /// Segment size and number of datagrams of each send.
    pub(crate) sends: Vec<(u16, u16)>,
    pub(crate) replies: Vec<Vec<u8>>,
}

/// The datagrams of one receive slot.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) bytes: Vec<u8>,
    pub(crate) segment_size: u16,
    pub(crate) ecn: u8,
}

pub(crate) fn vxlan(node: usize) -> Format {
    Format::Vxlan(Vxlan { vni: Vni::new(VNI).unwrap(), local_mac: Mac::new(MACS[node]) })
}

impl Node {
    pub(crate) fn new(index: usize, format: Format, mtu: u16, joins: Joins) -> Node {
        let own = index as u8 + 1;
        let reply = (format!("10.{own}.0.0").parse().unwrap(), format!("fd00:{own}::").parse().unwrap());
        let mut builder = FibBuilder::new(format).reply_from(Some(reply.0), Some(reply.1));
        let other = 1 - index;
        for prefix in [format!("10.{}.0.0/24", other + 1), format!("fd00:{}::/64", other + 1)] {
            let remote = SocketAddr::new(IpAddr::from([192, 0, 2, other as u8 + 1]), 8472);
            let peer = PeerSpec { remote, mac: Some(Mac::new(MACS[other])), mtu };
            builder.add(prefix.parse().unwrap(), peer).unwrap();
        }
        Node {
            fib: builder.build().unwrap(),
            sizes: SegmentSizes::new(mtu, 7),
            counters: Counters::default(),
            outbox: Outbox::new(0..SPACE as u32),
            coalescer: Coalescer::new(0..SPACE as u32, joins),
        }
    }

    /// Processes a batch from the pods; each packet begins with its virtio header.
    pub(crate) fn egress(&mut self, reads: &[Vec<u8>]) -> Egress {
        let before = self.counters.clone();
        let first = self.egress_over(reads, 0x00);
        self.counters = before;
        let second = self.egress_over(reads, 0xff);
        assert_eq!(first, second, "an output depends on the previous contents of the arena");
        second
    }

    fn egress_over(&mut self, reads: &[Vec<u8>], fill: u8) -> Egress {
        let room: usize = reads.iter().map(|r| r.len() + HEADROOM + 64).sum();
        let mut arena = vec![fill; SPACE + room];
        let mut at = SPACE;
        let mut out = Egress::default();
        let mut limiter = Limiter::new();
        for read in reads {
            let start = at + HEADROOM;
            arena[start..start + read.len()].copy_from_slice(read);
            let span = start as u32..(start + read.len()) as u32;
            at = (start + read.len()).next_multiple_of(64);
            let verdict = match egress::check(&mut arena, span.clone(), &self.fib, &self.sizes) {
                Ok(bound) => {
                    if !bound.fits(&self.outbox) {
                        collect(&arena, &mut self.outbox, &mut out);
                    }
                    if bound.fits(&self.outbox) {
                        egress::queue(&mut arena, &bound, LANES, &mut self.outbox, &mut self.counters.egress)
                    } else {
                        Verdict::Drop(DropReason::BadOffload)
                    }
                }
                Err(refusal) => {
                    let limiter = (&mut limiter, 1);
                    egress::refuse(&mut arena, span, refusal, &self.fib, &mut self.outbox, limiter)
                }
            };
            out.verdicts.push(verdict);
        }
        collect(&arena, &mut self.outbox, &mut out);
        out
    }

    /// Processes a batch from the underlay and returns the writes to the overlay, virtio header first.
    pub(crate) fn ingress(&mut self, arrivals: &[Arrival]) -> Vec<Vec<u8>> {
        let before = self.counters.clone();
        let first = self.ingress_over(arrivals, 0x00);
        self.counters = before;
        let second = self.ingress_over(arrivals, 0xff);
        assert_eq!(first, second, "an output depends on the previous contents of the arena");
        second
    }

    fn ingress_over(&mut self, arrivals: &[Arrival], fill: u8) -> Vec<Vec<u8>> {
        let room: usize = arrivals.iter().map(|a| a.bytes.len() + 64).sum();
        let mut arena = vec![fill; SPACE + room];
        let mut at = SPACE;
        let mut writes = vec![];
        for arrival in arrivals {
            if !self.coalescer.has_room() {
                flush(&mut arena, &mut self.coalescer, &mut writes);
            }
            let end = at + arrival.bytes.len();
            arena[at..end].copy_from_slice(&arrival.bytes);
            let received = Received {
                source: SocketAddr::from(([192, 0, 2, 9], 40_000)),
                at: at as u32,
                len: arrival.bytes.len() as u32,
                segment_size: arrival.segment_size,
                ecn: arrival.ecn,
            };
            let (coalescer, counters) = (&mut self.coalescer, &mut self.counters.ingress);
            ingress::ingress(&mut arena, received, &self.fib, &self.sizes, coalescer, counters);
            at = end.next_multiple_of(64);
        }
        flush(&mut arena, &mut self.coalescer, &mut writes);
        writes
    }

    /// Returns the ingress drop reasons and their counts, without those that are 0.
    pub(crate) fn dropped(&self) -> Vec<(DropReason, u64)> {
        let count = |reason: &DropReason| (*reason, self.counters.ingress.dropped(*reason));
        DropReason::ALL.iter().map(count).filter(|(_, n)| *n > 0).collect()
    }
}

fn collect(arena: &[u8], outbox: &mut Outbox, out: &mut Egress) {
    for message in outbox.pending() {
        out.sends.push((message.segment_size, message.segments));
        let all: Vec<u8> = outbox
            .spans_of(message)
            .iter()
            .flat_map(|s| arena[s.start as usize..s.end as usize].iter().copied())
            .collect();
        let pieces: Vec<_> = all.chunks(usize::from(message.segment_size).max(1)).collect();
        assert_eq!(pieces.len(), usize::from(message.segments), "number of datagrams in a send");
        for piece in pieces {
            out.sent.push(Sent {
                to: message.to,
                lane: message.lane,
                ecn: message.ecn,
                bytes: piece.to_vec(),
            });
        }
    }
    for reply in outbox.replies() {
        out.replies.push(arena[reply.start as usize..reply.end as usize].to_vec());
    }
    outbox.clear();
}

fn flush(arena: &mut [u8], coalescer: &mut Coalescer, writes: &mut Vec<Vec<u8>>) {
    coalescer.seal(arena);
    for run in coalescer.runs() {
        writes.push(
            run.spans()
                .iter()
                .flat_map(|s| arena[s.start as usize..s.end as usize].iter().copied())
                .collect(),
        );
    }
    coalescer.clear();
}

/// Prepends an empty virtio header.
pub(crate) fn plain(packet: &[u8]) -> Vec<u8> {
    [&[0; 10], packet].concat()
}

/// Prepends a virtio header.
pub(crate) fn with_virtio(flags: u8, gso: u8, gso_size: u16, csum: (u16, u16), packet: &[u8]) -> Vec<u8> {
    let mut out = vec![flags, gso];
    // hdr_len is deliberately wrong, as on forwarded packets: nothing may rely on it.
    for half in [7, gso_size, csum.0, csum.1] {
        out.extend(half.to_ne_bytes());
    }
    out.extend(packet);
    out
}

/// Prepends the headers of node `from` towards the other node.
pub(crate) fn in_vxlan(from: usize, packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|b| b >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    let mut out = vec![8, 0, 0, 0, 0, 0, VNI as u8, 0];
    out.extend(MACS[1 - from]);
    out.extend(MACS[from]);
    out.extend(ethertype);
    out.extend(packet);
    out
}

/// Builds a slot with a single datagram.
pub(crate) fn single(bytes: Vec<u8>) -> Arrival {
    Arrival { bytes, segment_size: 0, ecn: 0 }
}

/// Joins adjacent datagrams of equal size as UDP_GRO does (at most 64; the last may be shorter).
pub(crate) fn joined(sent: &[Sent]) -> Vec<Arrival> {
    let mut out: Vec<(Arrival, usize, u16)> = vec![];
    for datagram in sent {
        if let Some((last, count, lane)) = out.last_mut() {
            let size = if *count == 1 { last.bytes.len() } else { usize::from(last.segment_size) };
            let open = last.bytes.len() == size * *count && *count < 64 && *lane == datagram.lane;
            let fits = last.bytes.len() + datagram.bytes.len() <= 65_507 && datagram.bytes.len() <= size;
            if open && fits && last.ecn == datagram.ecn {
                last.segment_size = size as u16;
                last.bytes.extend(&datagram.bytes);
                *count += 1;
                continue;
            }
        }
        out.push((
            Arrival { bytes: datagram.bytes.clone(), segment_size: 0, ecn: datagram.ecn },
            1,
            datagram.lane,
        ));
    }
    out.into_iter().map(|(arrival, ..)| arrival).collect()
}
