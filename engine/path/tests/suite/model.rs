//! A slow model of the path that follows the rules literally: one packet at a time, with copies and naive
//! checksums. For generated sequences of valid and malformed packets, model and path must agree on each
//! packet's verdict, on the bytes delivered and on the order within each flow.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use path::{DropReason, Format, Verdict};
use proptest::prelude::*;

use crate::support::node::{Arrival, BOTH, MACS, MTU, Node, VNI, in_vxlan, vxlan, with_virtio};
use crate::support::packet::{Checksum, FIN, ICMP, PSH, Packet, RST, TCP, UDP, pattern};
use crate::support::reference::{
    View, as_kernel, checksum_at, cut, finish, flows, fold, header_len, ip_checksum_valid, pseudo,
    transport_checksum_valid,
};

type Refusal = DropReason;

fn word(p: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([p[at], p[at + 1]]))
}

/// Returns the offset of the IP packet in a datagram that node 1 receives, and the IP version in its headers.
fn strip(format: Format, d: &[u8]) -> Result<(usize, Option<u8>), Refusal> {
    if format == Format::Udp {
        return if d.is_empty() { Err(DropReason::Truncated) } else { Ok((0, None)) };
    }
    if d.len() < 8 {
        return Err(DropReason::Truncated);
    }
    if d[0] != 8 || d[1..4] != [0; 3] || d[7] != 0 {
        return Err(DropReason::VxlanReserved);
    }
    if d[4..7] != VNI.to_be_bytes()[1..] {
        return Err(DropReason::WrongVni);
    }
    if d.len() < 22 {
        return Err(DropReason::Truncated);
    }
    if d[14..20] == MACS[1] {
        return Err(DropReason::OwnMac);
    }
    if d[8..14] != MACS[1] {
        return Err(DropReason::WrongMac);
    }
    match d[20..22] {
        [0x08, 0x00] => Ok((22, Some(4))),
        [0x86, 0xdd] => Ok((22, Some(6))),
        _ => Err(DropReason::WrongEthertype),
    }
}

/// Parses a packet's headers and checks that they agree with each other and with the length.
fn parse(p: &[u8]) -> Result<View, Refusal> {
    let v = match p.first().ok_or(DropReason::Truncated)? >> 4 {
        4 => parse_v4(p)?,
        6 => parse_v6(p)?,
        _ => return Err(DropReason::NotIp),
    };
    if !v.fragment && [TCP, UDP].contains(&v.protocol) && v.transport + 4 > v.len {
        return Err(DropReason::BadTransportHeader);
    }
    Ok(v)
}

fn parse_v4(p: &[u8]) -> Result<View, Refusal> {
    if p.len() < 20 {
        return Err(DropReason::Truncated);
    }
    let (header, len) = (usize::from(p[0] & 15) * 4, word(p, 2));
    if header < 20 || len < header {
        return Err(DropReason::BadIpHeader);
    }
    if len > p.len() {
        return Err(DropReason::Truncated);
    }
    Ok(View { v6: false, protocol: p[9], transport: header, len, fragment: word(p, 6) & 0x3fff != 0 })
}

fn parse_v6(p: &[u8]) -> Result<View, Refusal> {
    if p.len() < 40 || 40 + word(p, 4) > p.len() {
        return Err(DropReason::Truncated);
    }
    let mut v = View { v6: true, protocol: p[6], transport: 40, len: 40 + word(p, 4), fragment: false };
    for _ in 0..8 {
        if ![0, 43, 44, 60].contains(&v.protocol) {
            return Ok(v);
        }
        if v.transport + 8 > v.len {
            return Err(DropReason::Truncated);
        }
        let header = &p[v.transport..];
        if v.protocol == 44 {
            if v.fragment {
                return Err(DropReason::BadIpHeader);
            }
            v = View { protocol: header[0], transport: v.transport + 8, fragment: true, ..v };
            if word(header, 2) >> 3 != 0 {
                return Ok(v);
            }
        } else {
            v = View { protocol: header[0], transport: v.transport + 8 + usize::from(header[1]) * 8, ..v };
            if v.transport > v.len {
                return Err(DropReason::Truncated);
            }
        }
    }
    if [0, 43, 44, 60].contains(&v.protocol) { Err(DropReason::BadIpHeader) } else { Ok(v) }
}

fn one_hop_less(p: &mut [u8]) -> Result<(), Refusal> {
    let at = if p[0] >> 4 == 4 { 8 } else { 7 };
    if p[at] <= 1 {
        return Err(DropReason::TtlExpired);
    }
    p[at] -= 1;
    refill_ip(p);
    Ok(())
}

fn refill_ip(p: &mut [u8]) {
    if p[0] >> 4 == 4 {
        let header = usize::from(p[0] & 15) * 4;
        p[10..12].fill(0);
        let check = !fold(0, &p[..header]);
        p[10..12].copy_from_slice(&check.to_be_bytes());
    }
}

fn mark(p: &mut [u8], outer: u8) -> Result<(), Refusal> {
    let v6 = p[0] >> 4 == 6;
    let inner = if v6 { p[1] >> 4 & 3 } else { p[1] & 3 };
    let merged = match (inner, outer) {
        (0, 3) => return Err(DropReason::EcnUnheard),
        (1 | 2, 3) => 3,
        (2, 1) => 1,
        _ => inner,
    };
    if merged != inner {
        p[1] = if v6 { p[1] & 0xcf | merged << 4 } else { p[1] & 0xfc | merged };
        refill_ip(p);
    }
    Ok(())
}

#[derive(PartialEq)]
enum Sum {
    Good,
    Open,
    Unknown,
}

/// A kernel may leave a checksum open, other senders complete theirs.
fn verify(p: &[u8], v: &View, may_be_open: bool) -> Result<Sum, Refusal> {
    let Some(at) = checksum_at(v) else { return Ok(Sum::Unknown) };
    let len = v.len - v.transport;
    if v.protocol == UDP {
        let stated = word(p, v.transport + 4);
        if stated > len {
            return Err(DropReason::BadTransportHeader);
        }
        if stated < len {
            return Ok(Sum::Unknown);
        }
        if word(p, at) == 0 {
            return Ok(Sum::Unknown);
        }
    }
    if may_be_open && word(p, at) == usize::from(pseudo(p, v.protocol, len)) {
        return Ok(Sum::Open);
    }
    if transport_checksum_valid(p) { Ok(Sum::Good) } else { Err(DropReason::BadTransportChecksum) }
}

/// Whether a packet has TCP or UDP headers followed by payload.
fn can_be_cut(p: &[u8], v: &View) -> bool {
    let Some(_) = checksum_at(v) else { return false };
    let header = header_len(p, v);
    (v.protocol == UDP || p[v.transport + 12] >> 4 >= 5) && header < v.len && header <= 192
}

/// Whether no other node may send packets with this source.
fn is_bad_source(p: &[u8]) -> bool {
    if p[0] >> 4 == 4 {
        let source = Ipv4Addr::new(p[12], p[13], p[14], p[15]);
        let special = source.is_loopback() || source.is_link_local() || source.is_multicast();
        return special || source.is_broadcast() || p[12] == 0;
    }
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(&p[8..24]).unwrap());
    let special = source.is_loopback() || source.is_unicast_link_local() || source.is_multicast();
    special || source.is_unspecified()
}

/// Returns the payload that every host accepts in a segment: an MSS of 256 or 1220, less the options.
fn segment_size(p: &[u8], v: &View) -> usize {
    let (mss, headers) = if v.v6 { (1220, 60) } else { (256, 40) };
    let options = header_len(p, v) - headers;
    if mss > options + 8 { mss - options } else { 8 }
}

/// Returns the packets that one datagram, or one uncut super-packet, delivers.
fn take(format: Format, d: &[u8], ecn: u8, split: usize, uncut: bool) -> Result<Vec<Vec<u8>>, Refusal> {
    let (offset, version) = strip(format, d)?;
    let mut p = d[offset..].to_vec();
    let v = parse(&p)?;
    p.truncate(v.len);
    if version.is_some_and(|version| version != p[0] >> 4) {
        return Err(DropReason::NotIp);
    }
    if !ip_checksum_valid(&p) {
        return Err(DropReason::BadIpChecksum);
    }
    if is_bad_source(&p) {
        return Err(DropReason::BadSource);
    }
    mark(&mut p, ecn)?;
    if format == Format::Udp {
        one_hop_less(&mut p)?;
    }
    let sum = verify(&p, &v, format != Format::Udp)?;
    let size = if uncut {
        (sum != Sum::Unknown && can_be_cut(&p, &v)).then_some(split)
    } else {
        // Without a SYN nothing is known of the connection.
        let alone = split == 0 || v.len > MTU.into();
        let tcp = alone && v.protocol == TCP && sum == Sum::Open && can_be_cut(&p, &v);
        tcp.then(|| segment_size(&p, &v)).filter(|size| v.len - header_len(&p, &v) > *size)
    };
    if let Some(size) = size {
        return Ok(cut(&p, size));
    }
    if sum == Sum::Open {
        finish(&mut p);
    }
    Ok(vec![p])
}

/// Returns the packets that node 1 delivers, in order, and its drops by reason.
fn ingress(format: Format, arrivals: &[Arrival]) -> (Vec<Vec<u8>>, BTreeMap<&'static str, u64>) {
    let (mut packets, mut drops) = (vec![], BTreeMap::new());
    let mut drop = |reason: DropReason| *drops.entry(reason.name()).or_insert(0) += 1;
    for a in arrivals {
        let split = usize::from(a.segment_size);
        let size = if split == 0 { a.bytes.len() } else { split };
        let uncut = format != Format::Udp && size < a.bytes.len() && covers_all(format, &a.bytes, size);
        let dubious = uncut && strip(format, &a.bytes[size..]).is_ok();
        let mut pieces: Vec<&[u8]> =
            if uncut || a.bytes.is_empty() { vec![&a.bytes] } else { a.bytes.chunks(size).collect() };
        let too_many = pieces.len() > 128;
        pieces.truncate(128);
        for piece in pieces {
            match take(format, piece, a.ecn, split, uncut) {
                Ok(_) if dubious => drop(DropReason::Truncated),
                Ok(delivered) => packets.extend(delivered),
                Err(reason) => drop(reason),
            }
        }
        if too_many {
            drop(DropReason::TooManySegments);
        }
    }
    (packets, drops)
}

/// Whether the inner IP length covers more than one piece.
fn covers_all(format: Format, received: &[u8], piece: usize) -> bool {
    let Ok((offset, _)) = strip(format, received) else { return false };
    let len = match (&received[offset..], received.get(offset).map(|b| b >> 4)) {
        (p, Some(4)) if p.len() >= 4 => word(p, 2),
        (p, Some(6)) if p.len() >= 6 => 40 + word(p, 4),
        _ => return false,
    };
    (piece + 1..=received.len()).contains(&(offset + len))
}

/// Returns the datagrams that node 0 sends for one read, or the drop reason and whether the sender gets an
/// error.
fn egress(format: Format, read: &[u8]) -> Result<Vec<Vec<u8>>, (Refusal, bool)> {
    let silent = |reason| (reason, false);
    if read.len() < 10 {
        return Err(silent(DropReason::Truncated));
    }
    let (h, p) = read.split_at(10);
    let half = |at: usize| usize::from(u16::from_ne_bytes([h[at], h[at + 1]]));
    let kind = h[1] & 0x7f;
    if ![0, 1, 4, 5].contains(&kind) {
        return Err(silent(DropReason::BadOffload));
    }
    let v = parse(p).map_err(silent)?;
    let mut p = p[..v.len].to_vec();
    let known = if v.v6 { p[24..32] == [0xfd, 0, 0, 2, 0, 0, 0, 0] } else { p[16..19] == [10, 2, 0] };
    if !known {
        let to_many = if v.v6 { p[24] == 0xff } else { p[16] >> 4 == 0xe || p[16..20] == [0xff; 4] };
        return Err(if to_many { silent(DropReason::Multicast) } else { (DropReason::NoRoute, true) });
    }
    if format == Format::Udp {
        // The kernel delivers valid header checksums; the path would not repair an invalid one.
        let valid = ip_checksum_valid(&p);
        one_hop_less(&mut p).map_err(|reason| (reason, true))?;
        assert!(valid, "the generator keeps the header checksums of pods' packets valid");
    }
    let size = half(4);
    if kind != 0 {
        if v.fragment || size == 0 || ![TCP, UDP].contains(&v.protocol) {
            return Err(silent(DropReason::BadOffload));
        }
        let t = &p[v.transport..];
        let whole = match v.protocol {
            TCP => t.len() >= 20 && t[12] >> 4 >= 5 && usize::from(t[12] >> 4) * 4 <= t.len(),
            _ => t.len() >= 8,
        };
        if !whole {
            return Err(silent(DropReason::BadTransportHeader));
        }
        let agrees = match kind {
            1 => !v.v6 && v.protocol == TCP,
            4 => v.v6 && v.protocol == TCP,
            _ => v.protocol == UDP,
        };
        if !can_be_cut(&p, &v) || !agrees {
            return Err(silent(DropReason::BadOffload));
        }
    }
    let largest = if kind == 0 { v.len } else { v.len.min(header_len(&p, &v) + size) };
    if largest > MTU.into() {
        return Err((DropReason::TooBig, v.v6 || p[6] & 0x40 != 0));
    }
    // The kernel has neither verified the checksum nor left it to the path.
    if h[0] & 3 == 0 {
        let sum = verify(&p, &v, false).map_err(silent)?;
        if kind != 0 && sum != Sum::Good {
            return Err(silent(DropReason::BadTransportChecksum));
        }
    }
    let packets = if kind != 0 {
        cut(&p, size)
    } else {
        if h[0] & 1 != 0 {
            let (start, field) = (half(6), half(6) + half(8));
            if field + 2 > p.len() {
                return Err(silent(DropReason::BadOffload));
            }
            let check = !fold(0, &p[start..]);
            p[field..field + 2].copy_from_slice(&if check == 0 { 0xffff } else { check }.to_be_bytes());
        }
        vec![p]
    };
    Ok(packets.iter().map(|p| if format == Format::Udp { p.clone() } else { in_vxlan(0, p) }).collect())
}

/// Normalises what has no meaning: the id of packets with DF (RFC 6864 section 4.1), and which of the two
/// zeros a checksum has.
fn canonical(mut p: Vec<u8>) -> Vec<u8> {
    let Ok(v) = parse(&p) else { return p };
    if !v.v6 && p[6] & 0x40 != 0 {
        p[4..6].fill(0);
    }
    let covered = checksum_at(&v)
        .is_some_and(|at| v.protocol == TCP || word(&p, at) != 0 && word(&p, at - 2) == v.len - v.transport);
    if covered {
        finish(&mut p)
    } else {
        refill_ip(&mut p)
    }
    p
}

/// A fault to inject into a packet.
#[derive(Clone, Debug)]
enum Fault {
    None,
    Flip(usize, u8),
    Set(usize, u8),
    Cut(usize),
    Pad(usize, u8),
    Fill(u8),
}

fn faults() -> impl Strategy<Value = Fault> {
    let near = || prop_oneof![0usize..90, 0usize..1600];
    prop_oneof![
        6 => Just(Fault::None),
        2 => (near(), 0u8..8).prop_map(|(at, bit)| Fault::Flip(at, bit)),
        1 => (near(), prop_oneof![Just(0u8), Just(255), any::<u8>()]).prop_map(|(at, to)| Fault::Set(at, to)),
        1 => near().prop_map(Fault::Cut),
        1 => (1usize..40, any::<u8>()).prop_map(|(n, b)| Fault::Pad(n, b)),
        1 => prop_oneof![Just(Fault::Fill(0)), Just(Fault::Fill(255))],
    ]
}

impl Fault {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match *self {
            Fault::None => {}
            Fault::Flip(at, bit) => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << bit),
            Fault::Set(at, to) => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = to),
            Fault::Cut(at) => bytes.truncate(at),
            Fault::Pad(n, b) => bytes.extend(vec![b; n]),
            Fault::Fill(b) => bytes.fill(b),
        }
    }
}

#[derive(Clone, Debug)]
struct Step {
    flow: u8,
    kind: u8,
    len: usize,
    fault: Fault,
    ecn: u8,
    /// On ingress the number of similar datagrams that follow in the same receive, on egress the segment
    /// size.
    more: u16,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![4 => Just(600usize), 2 => 0usize..1400, 1 => 1400usize..9000];
    let ecn = prop_oneof![4 => Just(0u8), 1 => 0u8..4];
    let more = prop_oneof![3 => Just(0u16), 1 => 1u16..4, 1 => 4u16..1500];
    let step = (0u8..4, 0u8..20, len, faults(), ecn, more);
    let step =
        step.prop_map(|(flow, kind, len, fault, ecn, more)| Step { flow, kind, len, fault, ecn, more });
    prop::collection::vec(step, 1..40)
}

/// Generates consecutive packets of a few flows, which can be joined.
#[derive(Default)]
struct Flows {
    seq: [u32; 4],
    id: [u16; 4],
}

impl Flows {
    fn next(&mut self, step: &Step) -> Packet {
        let flow = usize::from(step.flow);
        let (v6, is_tcp) = (flow & 1 == 1, flow & 2 == 2);
        let mut p =
            if is_tcp { Packet::tcp(v6, self.seq[flow], step.len) } else { Packet::udp(v6, 0, step.len) };
        p.id = self.id[flow];
        p.tos = 2;
        match step.kind {
            0 => p.flags |= PSH,
            1 => p.flags |= FIN,
            2 => p.flags |= RST,
            3 => p.checksum = Checksum::Zero,
            4 => p.checksum = Checksum::Invalid,
            5 | 6 => p.checksum = Checksum::Open,
            7 if v6 => p.ip_options = vec![p.protocol, 0, 1, 4, 0, 0, 0, 0],
            7 => p.ip_options = vec![1; 8],
            8 if v6 => (p.extension, p.ip_options) = (44, vec![p.protocol, 0, 0, 9, 0, 0, 0, 1]),
            8 => p.fragment = 0x2000,
            9 => p.tos = 0,
            10 => p.tos = 3,
            11 => p.ttl = step.ecn,
            12 => p.df = true,
            13 => p.protocol = if v6 { 58 } else { ICMP },
            14 => p.payload = pattern(9, 0),
            15 => p.dst = 200,
            _ => {}
        }
        self.seq[flow] = self.seq[flow].wrapping_add(p.payload.len() as u32);
        self.id[flow] = self.id[flow].wrapping_add(1);
        p
    }
}

fn arrivals(format: Format, steps: &[Step]) -> Vec<Arrival> {
    let mut state = Flows::default();
    let framed = |p: &Packet| if format == Format::Udp { p.bytes() } else { in_vxlan(0, &p.bytes()) };
    let arrival = |step: &Step| {
        let first = state.next(step);
        let mut bytes = framed(&first);
        let mut segment_size = 0;
        match step.more {
            0 => {}
            1..4 => {
                // Datagrams joined as by UDP_GRO; the last may be shorter.
                segment_size = bytes.len() as u16;
                for _ in 0..step.more {
                    bytes.extend(framed(&state.next(step)));
                }
                bytes.truncate(65_000);
            }
            // An uncut super-packet, or an arbitrary segment size.
            size => segment_size = size,
        }
        if step.kind == 16 && format != Format::Udp {
            // The node's own frame returns.
            bytes[14..20].copy_from_slice(&MACS[1]);
        }
        step.fault.apply(&mut bytes);
        Arrival { bytes, segment_size, ecn: step.ecn }
    };
    steps.iter().map(arrival).collect()
}

fn agree_on_ingress(format: Format, own: Format, steps: &[Step]) {
    let arrivals = arrivals(format, steps);
    let mut node = Node::new(1, own, MTU, BOTH);
    let got: Vec<_> = node.ingress(&arrivals).iter().flat_map(|w| as_kernel(w)).collect();
    let (expected, drops) = ingress(format, &arrivals);
    let counted: BTreeMap<_, _> = node.dropped().into_iter().map(|(reason, n)| (reason.name(), n)).collect();
    assert_eq!(counted, drops);
    let valid = |p: &Vec<u8>| matches!(verify(p, &parse(p).unwrap(), false), Ok(Sum::Good | Sum::Unknown));
    assert!(got.iter().all(valid), "no invalid or open checksum is delivered");
    let canonical = |packets: Vec<Vec<u8>>| flows(&packets.into_iter().map(canonical).collect::<Vec<_>>());
    assert_eq!(canonical(got), canonical(expected));
    let all = node.counters.ingress.segments + node.counters.ingress.dropped_total();
    let spare = node.counters.ingress.dropped(DropReason::TooManySegments);
    assert_eq!(node.counters.ingress.packets, all - spare, "each datagram ends once");
}

fn agree_on_egress(format: Format, steps: &[Step]) {
    let mut state = Flows::default();
    let read = |step: &Step| {
        let p = state.next(step);
        let mut bytes = p.bytes();
        step.fault.apply(&mut bytes);
        // The kernel has checked the header of each packet that it routes to the TUN.
        if parse(&bytes).is_ok() {
            refill_ip(&mut bytes);
        }
        let gso = match (step.more, p.protocol, p.v6) {
            (0, ..) => 0,
            (_, TCP, false) => 1,
            (_, TCP, true) => 4,
            _ => 5,
        };
        // Sometimes a GSO type that does not fit or does not exist.
        let gso = if step.kind == 19 { step.ecn + 2 } else { gso };
        // Open, verified by the kernel, or neither.
        let open = u8::from(p.checksum == Checksum::Open || gso != 0 && step.flow != 3);
        let open = if step.kind == 9 { 2 } else { open };
        let field = if p.protocol == TCP { 16 } else { 6 };
        let csum = if step.kind == 18 { (step.len as u16, 6) } else { (p.ip_len() as u16, field) };
        // Up to a thousand segments, ten times as many as any kernel sends.
        let size = if step.more == 0 { 0 } else { step.more.max(p.payload.len() as u16 / 1000 + 1) };
        let mut read = with_virtio(open, gso, size, csum, &bytes);
        if step.kind == 17 {
            read.truncate(step.len % 40);
        }
        read
    };
    let reads: Vec<_> = steps.iter().map(read).collect();
    let out = Node::new(0, format, MTU, BOTH).egress(&reads);
    let mut expected = vec![];
    for (i, (read, verdict)) in reads.iter().zip(&out.verdicts).enumerate() {
        match (egress(format, read), *verdict) {
            (Ok(datagrams), Verdict::ToUnderlay(n)) if n as usize == datagrams.len() => {
                expected.extend(datagrams)
            }
            (Err((reason, _)), Verdict::Drop(actual)) if reason == actual => {}
            (Err((reason, true)), Verdict::Reply(actual)) if reason == actual => {}
            (model, path) => panic!("read {i}: the model returns {model:02x?}, the path {path:?}"),
        }
    }
    let offset = if format == Format::Udp { 0 } else { 22 };
    let inner = |datagrams: Vec<Vec<u8>>| {
        let framing: Vec<_> = datagrams.iter().map(|d| d[..offset].to_vec()).collect();
        assert!(framing.iter().all(|f| f.is_empty() || f[..20] == in_vxlan(0, &[])[..20]));
        flows(&datagrams.iter().map(|d| d[offset..].to_vec()).collect::<Vec<_>>())
    };
    assert_eq!(inner(out.sent.into_iter().map(|s| s.bytes).collect()), inner(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ingress_agrees_for_vxlan(steps in steps()) {
        agree_on_ingress(vxlan(0), vxlan(1), &steps);
    }

    #[test]
    fn ingress_agrees_for_udp(steps in steps()) {
        agree_on_ingress(Format::Udp, Format::Udp, &steps);
    }

    #[test]
    fn egress_agrees_for_vxlan(steps in steps()) {
        agree_on_egress(vxlan(0), &steps);
    }

    #[test]
    fn egress_agrees_for_udp(steps in steps()) {
        agree_on_egress(Format::Udp, &steps);
    }
}

/// A rule that the generator never reaches is not tested.
#[test]
fn the_generator_reaches_every_drop_reason() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut reached, mut joined, mut single) = (BTreeMap::new(), 0, 0);
    for _ in 0..600 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        for (format, own) in [(vxlan(0), vxlan(1)), (Format::Udp, Format::Udp)] {
            let mut node = Node::new(1, own, MTU, BOTH);
            for write in node.ingress(&arrivals(format, &steps)) {
                *(if write[1] == 0 { &mut single } else { &mut joined }) += 1;
            }
            for (reason, n) in node.dropped() {
                *reached.entry(reason.name()).or_insert(0) += n;
            }
        }
    }
    let elsewhere = [
        "no_route",
        "multicast",
        "too_big",
        "bad_offload",
        "wrong_family",
        "own_source",
        "underlay_full",
        "underlay_error",
        "overlay_error",
    ];
    for reason in
        DropReason::ALL.iter().filter(|r| !elsewhere.contains(&r.name()) && !r.name().starts_with("wg_"))
    {
        assert!(reached.contains_key(reason.name()), "{} is never reached: {reached:?}", reason.name());
    }
    assert!(joined > 300 && single > 3000, "{joined} super-packets, {single} packets");
}
