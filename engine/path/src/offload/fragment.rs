//! Fragments IPv4 packets before they are encapsulated (RFC 791 section 3.2), so that the underlay does not
//! have to.

use std::ops::Range;

use wire::ipv4;

use crate::space::{Space, bytes_mut};
use crate::template::TEMPLATE_MAX;

/// Maximum header space of a fragment: a template, an IPv4 header with options, and a UDP header.
pub const HEADER_MAX: usize = TEMPLATE_MAX + 60 + 8;

/// MF and the offset of the header's fragment field.
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// A packet in the arena, as `(start, end)` positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// The IPv4 header with its options.
    pub header: (u32, u32),
    /// Up to eight bytes behind the header that lie apart from the payload; may be empty.
    pub lead: (u32, u32),
    /// The rest.
    pub payload: (u32, u32),
}

/// Returns the number of fragments of up to `size` bytes.
pub fn count(header_len: usize, payload: usize, size: u16) -> usize {
    payload.div_ceil(step(header_len, size)).max(1)
}

/// Returns the payload of each fragment except the last.
fn step(header_len: usize, size: u16) -> usize {
    (usize::from(size).saturating_sub(header_len) & !7).max(8)
}

/// Splits a packet into fragments of up to `size` bytes. Allocates `prefix` bytes and the headers of each
/// fragment from `space`, and calls `emit` with that span and the fragment's payload. The packet may be a
/// fragment itself.
pub fn fragment(
    arena: &mut [u8],
    packet: &Whole,
    prefix: usize,
    size: u16,
    space: &mut Space,
    mut emit: impl FnMut(&mut [u8], Range<u32>, Range<u32>),
) {
    let mut header = [0; 60];
    let header_len = (packet.header.1 - packet.header.0) as usize;
    let mut lead = [0; 8];
    let lead_len = (packet.lead.1 - packet.lead.0) as usize;
    let (Some(header), Some(lead)) = (header.get_mut(..header_len), lead.get_mut(..lead_len)) else { return };
    header.copy_from_slice(bytes_mut(arena, &(packet.header.0..packet.header.1)));
    lead.copy_from_slice(bytes_mut(arena, &(packet.lead.0..packet.lead.1)));
    let Some(field) = header.get(6..8).map(|field| u16::from_be_bytes([field[0], field[1]])) else { return };
    let (mut offset, more) = (field & OFFSET, field & MORE);
    let step = step(header_len, size) as u32;
    let (mut at, end) = (packet.payload.0, packet.payload.1);
    let mut lead = &lead[..];
    loop {
        let piece = at..end.min(at + step - lead.len() as u32);
        let Some(span) = space.take(prefix + header_len + lead.len()) else { return };
        let last = piece.end == end;
        let payload = lead.len() + (piece.end - piece.start) as usize;
        let field = offset | if last { more } else { MORE };
        if let Some(place) = bytes_mut(arena, &span).get_mut(prefix..) {
            place[..header_len].copy_from_slice(header);
            place[header_len..].copy_from_slice(lead);
            let place = &mut place[..header_len];
            ipv4::set_total_len(place, (header_len + payload) as u16);
            place[6..8].copy_from_slice(&field.to_be_bytes());
            ipv4::fill_checksum(place);
        }
        emit(arena, span, piece.clone());
        if last {
            return;
        }
        offset = offset.wrapping_add((payload / 8) as u16) & OFFSET;
        at = piece.end;
        lead = &[];
        blank_options(header);
    }
}

/// Replaces the options that only the first fragment carries (RFC 791 section 3.1, the copied flag) with
/// no-operations, as the kernel does (net/ipv4/ip_options.c, ip_options_fragment).
fn blank_options(header: &mut [u8]) {
    let mut at = ipv4::MIN_HEADER_LEN;
    while let Some(kind) = header.get(at).copied() {
        let len = match kind {
            0 => return,
            1 => 1,
            _ => match header.get(at + 1) {
                Some(len) if *len >= 2 && at + usize::from(*len) <= header.len() => usize::from(*len),
                _ => return,
            },
        };
        if kind & 0x80 == 0 {
            header[at..at + len].fill(1);
        }
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fragments a packet with `lead` bytes apart, and returns the fragments.
    fn split(packet: &[u8], lead: usize, size: u16) -> Vec<Vec<u8>> {
        let header = usize::from(packet[0] & 15) * 4;
        let (len, room) = (packet.len() as u32, 64 << 10);
        let mut arena = packet.to_vec();
        arena.resize(packet.len() + room as usize, 0);
        let mut space = Space::new(len..len + room);
        let (split, lead) = (header as u32, (header + lead) as u32);
        let whole = Whole { header: (0, split), lead: (split, lead), payload: (lead, len) };
        let mut all = Vec::new();
        fragment(&mut arena, &whole, 3, size, &mut space, |arena, header, payload| {
            let mut bytes = bytes_mut(arena, &header)[3..].to_vec();
            bytes.extend_from_slice(bytes_mut(arena, &payload));
            all.push(bytes);
        });
        assert_eq!(all.len(), count(header, packet.len() - header, size));
        all
    }

    /// Reassembles fragments as RFC 815 says, and returns the payload.
    fn join(fragments: &[Vec<u8>]) -> (u16, Vec<u8>, bool) {
        let mut payload = Vec::new();
        let first = ipv4::Header::parse(&fragments[0]).unwrap();
        let mut more = true;
        for fragment in fragments {
            let header = ipv4::Header::parse(fragment).unwrap();
            assert!(ipv4::checksum_is_valid(&fragment[..header.header_len]));
            assert_eq!(usize::from(header.total_len), fragment.len());
            assert!(more, "nothing follows the last fragment");
            assert_eq!((header.id, header.protocol, header.ttl), (first.id, first.protocol, first.ttl));
            let offset = usize::from(header.fragment_offset - first.fragment_offset) * 8;
            assert_eq!(offset, payload.len());
            payload.extend_from_slice(&fragment[header.header_len..]);
            more = header.more_fragments;
        }
        (first.fragment_offset, payload, more)
    }

    fn packet(options: &[u8], payload: &[u8], field: u16) -> Vec<u8> {
        let header_len = 20 + options.len();
        let mut bytes = vec![0; header_len];
        bytes[0] = 0x40 | (header_len / 4) as u8;
        bytes[4..10].copy_from_slice(&[0x12, 0x34, (field >> 8) as u8, field as u8, 63, 17]);
        bytes[12..20].copy_from_slice(&[10, 1, 0, 5, 10, 2, 0, 7]);
        bytes[20..].copy_from_slice(options);
        ipv4::set_total_len(&mut bytes, (header_len + payload.len()) as u16);
        ipv4::fill_checksum(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn fragments_fit_and_reassemble_to_the_packet(
            payload in proptest::collection::vec(any::<u8>(), 8..9000),
            words in 0usize..=10, apart in any::<bool>(), size in 576u16..1500,
            offset in 0u16..1000, more in any::<bool>(),
        ) {
            // A fragment that others follow has a multiple of eight bytes.
            let payload = if more { &payload[..payload.len() & !7] } else { &payload[..] };
            let field = offset | if more { MORE } else { 0 };
            let packet = packet(&vec![1; 4 * words], payload, field);
            let fragments = split(&packet, if apart { 8 } else { 0 }, size);
            prop_assert!(fragments.iter().all(|one| one.len() <= usize::from(size)));
            prop_assert_eq!(join(&fragments), (offset, payload.to_vec(), more));
        }
    }

    #[test]
    fn options_without_the_copied_flag_stay_in_the_first_fragment() {
        // A timestamp (68), a router alert (148), and a no-operation.
        let options = [68, 7, 5, 0, 0, 0, 0, 148, 4, 0, 0, 1];
        let fragments = split(&packet(&options, &[7; 2000], 0), 0, 1000);
        assert_eq!(fragments.len(), 3);
        assert_eq!(fragments[0][20..32], options);
        for later in &fragments[1..] {
            assert_eq!(later[20..32], [1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 1]);
        }
    }
}
