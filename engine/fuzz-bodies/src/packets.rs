//! Targets for bytes from pods and peers.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;

use path::egress::{self, HEADROOM};
use path::ingress;
use path::offload::coalesce::{Coalescer, Joins};
use path::outbox::Outbox;
use path::quote::{self, Own};
use path::reply::Limiter;
use path::{
    Counters, DropReason, Fib, FibBuilder, Format, Ipip, PathEnd, PeerSpec, Received, SegmentSizes, Verdict,
    Vxlan,
};
use wire::addr::{Mac, Vni};
use wire::{ipv4, ipv6};

/// Space for headers, less than a worker has, so that the targets also exhaust it.
const SPACE: usize = 1 << 16;
const MTU: u16 = 1450;
const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const REMOTE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 8472);
const PEER: Mac = Mac::new([2, 0, 0, 0, 0, 2]);

/// Runs packets through both directions of the path.
///
/// The input is a first byte (bit 0: udp in place of vxlan; bits 1 and 2: no TCP and no UDP super-packets on
/// the overlay), then records: length and segment size (two bytes each, little-endian), ECN, bytes. Each
/// record is both a packet from a pod and a receive from the underlay, all in one batch.
///
/// Nothing may panic, every packet ends once, every byte written was received or created in this batch, and
/// every write to the pods is a whole IP packet.
pub fn packets(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let format = match Vni::new(1) {
        Some(vni) if first & 1 == 0 => Format::Vxlan(Vxlan { vni, local_mac: OWN }),
        _ => Format::Udp,
    };
    both_ways(rest, &table(format), first);
}

/// Runs packets through both directions of an ipip tunnel, and judges them as ICMP messages about it.
///
/// The input is as for [`packets`], but bit 0 of its first byte says that packets to pods are written to the
/// tunnel's port as they are, behind an outer header of this tunnel's, and bits 3 to 5 choose a path MTU.
pub fn ipip(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let local = Ipv4Addr::new(192, 0, 2, 1);
    let fib = table(Format::Ipip(Ipip { local }));
    let limit = [None, Some(576), Some(577), Some(996), Some(1280), Some(1380), Some(1449), Some(1450)];
    fib.set_path_limit(PathEnd::Remote((*REMOTE.ip()).into()), limit[usize::from(first >> 3 & 7)]);
    let mut input = Vec::new();
    if first & 1 == 0 {
        input.extend_from_slice(rest);
    } else {
        for record in records(rest) {
            let mut datagram = outer(record, local);
            datagram.extend_from_slice(record.bytes);
            input.extend((datagram.len() as u16).to_le_bytes());
            input.extend(record.segment_size.to_le_bytes());
            input.push(record.ecn);
            input.extend(datagram);
        }
    }
    both_ways(&input, &fib, first);
    let own = Own { address: Some(local.into()), ports: Vec::new() };
    for record in records(rest) {
        if let Some(announcement) = quote::judge(record.bytes, false, &fib, &own) {
            assert!(announcement.limit >= 576);
        }
        assert_eq!(quote::judge(record.bytes, true, &fib, &own), None, "ipip has no IPv6 underlay");
    }
}

/// Builds the outer header that the peer sends a packet with.
fn outer(record: Record<'_>, local: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0; ipv4::MIN_HEADER_LEN];
    let fields = ipv4::Header {
        header_len: ipv4::MIN_HEADER_LEN,
        tos: record.ecn,
        total_len: (ipv4::MIN_HEADER_LEN + record.bytes.len()) as u16,
        id: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: path::encap::ipip::PROTOCOL,
        checksum: 0,
        src: *REMOTE.ip(),
        dst: local,
    };
    assert!(fields.emit(&mut header).is_ok());
    header
}

fn both_ways(input: &[u8], fib: &Fib, first: u8) {
    let joins = Joins { tcp: first & 2 == 0, udp: first & 4 == 0 };
    let records = records(input);
    assert_eq!(
        from_pods(&records, fib, 0x00),
        from_pods(&records, fib, 0xff),
        "sent bytes depend on the previous contents of the arena"
    );
    assert_eq!(
        from_peers(&records, fib, joins, 0x00),
        from_peers(&records, fib, joins, 0xff),
        "written bytes depend on the previous contents of the arena"
    );
}

/// Parses the bytes as a virtio header, and runs them as a packet from a pod. A header that parses must be
/// written back unchanged.
pub fn virtio(data: &[u8]) {
    if let Ok(header) = wire::virtio::Header::parse(data) {
        let mut out = [0xee; wire::virtio::HEADER_LEN];
        assert!(header.emit(&mut out).is_ok());
        assert_eq!(wire::virtio::Header::parse(&out), Ok(header));
        assert_eq!(out[..], data[..wire::virtio::HEADER_LEN]);
    }
    let record = Record { bytes: data, segment_size: 0, ecn: 0 };
    from_pods(&[record], &table(Format::Udp), 0);
}

#[derive(Clone, Copy)]
struct Record<'d> {
    bytes: &'d [u8],
    segment_size: u16,
    ecn: u8,
}

fn records(mut data: &[u8]) -> Vec<Record<'_>> {
    let mut records = vec![];
    while let Some((&[l0, l1, s0, s1, ecn], rest)) = data.split_first_chunk::<5>() {
        let len = usize::from(u16::from_le_bytes([l0, l1])).min(rest.len());
        let (bytes, after) = rest.split_at(len);
        data = after;
        records.push(Record { bytes, segment_size: u16::from_le_bytes([s0, s1]), ecn: ecn & 3 });
        if records.len() == 64 {
            break;
        }
    }
    records
}

fn table(format: Format) -> Fib {
    let mut builder =
        FibBuilder::new(format).reply_from(Some([10, 1, 0, 0].into()), Some(0xfd00_u128.into()));
    for prefix in ["10.2.0.0/24", "10.3.0.0/16", "fd00:2::/64"] {
        let peer = PeerSpec { remote: REMOTE.into(), mac: Some(PEER), mtu: MTU };
        if let Ok(prefix) = prefix.parse() {
            assert_eq!(builder.add(prefix, peer), Ok(()));
        }
    }
    builder.build().unwrap_or_else(|error| panic!("{error}"))
}

/// Concatenates spans, which must lie in the arena.
fn gather(arena: &[u8], spans: &[Range<u32>]) -> Vec<u8> {
    let mut out = vec![];
    for span in spans {
        let bytes = arena.get(span.start as usize..span.end as usize);
        out.extend(bytes.unwrap_or_else(|| panic!("{span:?} lies outside the arena")));
    }
    out
}

fn from_pods(records: &[Record<'_>], fib: &Fib, fill: u8) -> Vec<Vec<u8>> {
    let room: usize = records.iter().map(|r| r.bytes.len() + HEADROOM + 64).sum();
    let mut arena = vec![fill; SPACE + room];
    let sizes = SegmentSizes::new(MTU, 7);
    let (mut outbox, mut counters) = (Outbox::new(0..SPACE as u32), Counters::default());
    let (mut at, mut sent) = (SPACE, vec![]);
    let mut limiter = Limiter::new();
    let mut expected = 0;
    for record in records {
        let start = at + HEADROOM;
        let end = start + record.bytes.len();
        arena[start..end].copy_from_slice(record.bytes);
        at = end.next_multiple_of(64);
        let read = start as u32..end as u32;
        let verdict = match egress::check(&mut arena, read.clone(), fib, &sizes) {
            Ok(bound) => {
                if !bound.fits(&outbox) {
                    take_sent(&arena, &mut outbox, &mut sent);
                }
                if bound.fits(&outbox) {
                    let verdict = egress::queue(&mut arena, &bound, 4, &mut outbox, &mut counters.egress);
                    if let Verdict::ToUnderlay(n) = verdict {
                        assert!(n as usize >= bound.datagrams());
                        expected += n as usize;
                    }
                    verdict
                } else {
                    Verdict::Drop(DropReason::BadOffload)
                }
            }
            Err(refusal) => egress::refuse(&mut arena, read, refusal, fib, &mut outbox, (&mut limiter, 1)),
        };
        if let Verdict::Reply(_) = verdict {
            expected += 1;
        }
    }
    take_sent(&arena, &mut outbox, &mut sent);
    assert_eq!(sent.len(), expected, "each packet ends according to its verdict");
    sent
}

fn take_sent(arena: &[u8], outbox: &mut Outbox, sent: &mut Vec<Vec<u8>>) {
    for message in outbox.pending() {
        let bytes = gather(arena, outbox.spans_of(message));
        let pieces = bytes.chunks(usize::from(message.segment_size).max(1));
        assert_eq!(pieces.len(), usize::from(message.segments));
        sent.extend(pieces.map(<[u8]>::to_vec));
    }
    sent.extend(outbox.replies().iter().map(|reply| gather(arena, std::slice::from_ref(reply))));
    outbox.clear();
}

fn from_peers(records: &[Record<'_>], fib: &Fib, joins: Joins, fill: u8) -> Vec<Vec<u8>> {
    let room: usize = records.iter().map(|r| r.bytes.len() + 64).sum();
    let mut arena = vec![fill; SPACE + room];
    let sizes = SegmentSizes::new(MTU, 7);
    let mut coalescer = Coalescer::new(0..SPACE as u32, joins);
    let (mut counters, mut writes, mut at) = (Counters::default(), vec![], SPACE);
    for record in records {
        if !coalescer.has_room() {
            take_writes(&mut arena, &mut coalescer, &mut writes);
        }
        let end = at + record.bytes.len();
        arena[at..end].copy_from_slice(record.bytes);
        let &Record { segment_size, ecn, .. } = record;
        let source = SocketAddr::V4(REMOTE);
        let received = Received { at: at as u32, len: record.bytes.len() as u32, segment_size, ecn, source };
        ingress::ingress(&mut arena, received, fib, &sizes, &mut coalescer, &mut counters.ingress);
        at = end.next_multiple_of(64);
    }
    take_writes(&mut arena, &mut coalescer, &mut writes);
    let ingress = &counters.ingress;
    let ends = ingress.segments + ingress.dropped_total() - ingress.dropped(DropReason::TooManySegments);
    assert_eq!(ingress.packets, ends, "each datagram ends once");
    writes
}

fn take_writes(arena: &mut [u8], coalescer: &mut Coalescer, writes: &mut Vec<Vec<u8>>) {
    coalescer.seal(arena);
    for i in 0..coalescer.runs().len() {
        let write = gather(arena, coalescer.runs()[i].spans());
        assert_whole(&write);
        writes.push(write);
        coalescer.split(i, arena, |arena, spans| {
            let piece = gather(arena, spans);
            assert_whole(&piece);
            writes.push(piece);
        });
    }
    coalescer.clear();
}

/// Checks that a write is a virtio header followed by exactly one IP packet.
fn assert_whole(write: &[u8]) {
    assert!(wire::virtio::Header::parse(write).is_ok());
    let packet = &write[wire::virtio::HEADER_LEN..];
    let len = match (ipv4::Header::parse(packet), ipv6::Header::parse(packet)) {
        (Ok(header), _) => {
            assert!(ipv4::checksum_is_valid(&packet[..header.header_len]));
            usize::from(header.total_len)
        }
        (_, Ok(header)) => ipv6::HEADER_LEN + usize::from(header.payload_len),
        _ => panic!("not an IP packet: {packet:02x?}"),
    };
    assert_eq!(len, packet.len());
}
