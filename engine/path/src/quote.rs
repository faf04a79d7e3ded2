//! Judges the ICMP messages that announce a path MTU: "fragmentation needed" (RFC 1191) and "packet too big"
//! (RFC 4443 section 3.2).
//!
//! Anyone can send such a message, so it counts only if it quotes a packet that this node may just have sent:
//! from this node's address and ports to a peer, larger than the MTU that it announces, with the headers of
//! the tunnel, and around a packet for that peer's pods. What an outsider cannot know: the outer
//! identification of ipip ([`crate::encap::ipip`]), a WireGuard session's index, and the source ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::checksum::Sum;
use wire::{ipv4, ipv6, udp, wireguard};

use crate::encap::{Format, ipip};
use crate::fib::{Fib, PathEnd};
use crate::wireguard::SessionIndex;

/// This node's end of a tunnel.
#[derive(Clone, Debug)]
pub struct Own {
    /// The address that packets are sent from, if it is fixed.
    pub address: Option<IpAddr>,
    /// The UDP ports that packets are sent from.
    pub ports: Vec<u16>,
}

/// A believable announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The peer.
    pub whose: Whose,
    /// The largest inner packet that fits the path.
    pub limit: u16,
}

/// The peer that the quoted packet was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The peer at the end of this path.
    Path(PathEnd),
    /// The WireGuard peer whose session has this index at the peer.
    Session(SessionIndex),
}

/// Judges an ICMP message, which begins with its IPv4 header, or an ICMPv6 message. Returns `None` if it is not
/// to be believed.
pub fn judge(message: &[u8], v6: bool, fib: &Fib, own: &Own) -> Option<Announcement> {
    let (announced, quote) = if v6 { read_v6(message)? } else { read_v4(message)? };
    let outer = Outer::parse(quote, v6)?;
    if outer.len <= announced || own.address.is_some_and(|own| own != outer.src) {
        return None;
    }
    let limit = fib.format().inner_limit(announced, v6);
    let announcement = |whose| Some(Announcement { whose, limit });
    let end = PathEnd::Remote(outer.dst);
    if let Format::Ipip(_) = fib.format() {
        let peer = fib.peer_at(end)?;
        let expected = ipip::identification(outer.dst);
        let ours = outer.protocol == ipip::PROTOCOL && outer.dont_fragment && outer.id == expected;
        let inner = outer.payload;
        let len = inner.get(2..4).map(|len| u32::from(u16::from_be_bytes([len[0], len[1]])))?;
        let whole = inner.first().is_some_and(|first| first >> 4 == 4) && len + 20 == outer.len;
        let owned = inner.len() < ipv4::MIN_HEADER_LEN || owns(fib, inner, peer.remote.ip());
        return if ours && whole && owned { announcement(Whose::Path(end)) } else { None };
    }
    if outer.protocol != crate::inner::UDP {
        return None;
    }
    let [s0, s1, d0, d1, ..] = outer.payload else { return None };
    if !own.ports.contains(&u16::from_be_bytes([*s0, *s1])) {
        return None;
    }
    let datagram = outer.payload.get(udp::HEADER_LEN..)?;
    if let Format::Wireguard = fib.format() {
        // A data message begins with its type, three zeros, and the receiver's index.
        let head = datagram.first_chunk::<8>()?;
        let index = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let data = head[..4] == [wireguard::DATA, 0, 0, 0];
        return if data { announcement(Whose::Session(SessionIndex(index))) } else { None };
    }
    let peer = fib.peer_at(end)?;
    let prefix = peer.template.len();
    let ours = peer.remote.port() == u16::from_be_bytes([*d0, *d1])
        && peer.template.matches(datagram.get(..prefix)?)
        && owns(fib, datagram.get(prefix..)?, peer.remote.ip());
    if ours { announcement(Whose::Path(end)) } else { None }
}

/// Whether the destination of the quoted inner packet belongs to the peer with this address.
fn owns(fib: &Fib, inner: &[u8], peer: IpAddr) -> bool {
    let found = match inner.first().map(|first| first >> 4) {
        Some(4) => bytes_at::<4>(inner, 16).and_then(|dst| fib.lookup_v4(Ipv4Addr::from(dst))),
        Some(6) => bytes_at::<16>(inner, 24).and_then(|dst| fib.lookup_v6(Ipv6Addr::from(dst))),
        _ => None,
    };
    found.is_some_and(|(_, next)| next.remote.ip() == peer)
}

/// Returns the announced MTU and the quoted packet of an ICMP message.
fn read_v4(packet: &[u8]) -> Option<(u32, &[u8])> {
    let header = ipv4::Header::parse(packet).ok()?;
    // The kernel shows a raw socket the message before it verifies the checksum.
    let message = packet.get(header.header_len..usize::from(header.total_len))?;
    let [3, 4, _, _, _, _, m0, m1, quote @ ..] = message else { return None };
    let announced = u32::from(u16::from_be_bytes([*m0, *m1]));
    // Routers older than RFC 1191 announce nothing.
    (Sum::of(message).finish() == 0 && announced > 0).then_some((announced, quote))
}

fn read_v6(message: &[u8]) -> Option<(u32, &[u8])> {
    let [2, 0, _, _, m0, m1, m2, m3, quote @ ..] = message else { return None };
    Some((u32::from_be_bytes([*m0, *m1, *m2, *m3]), quote))
}

/// The outer header that a message quotes. The payload is truncated.
struct Outer<'a> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Length of the whole packet.
    len: u32,
    id: u16,
    dont_fragment: bool,
    payload: &'a [u8],
}

impl Outer<'_> {
    fn parse(quote: &[u8], v6: bool) -> Option<Outer<'_>> {
        let word = |at| bytes_at::<2>(quote, at).map(u16::from_be_bytes);
        if v6 {
            let (first, protocol) = (*quote.first()?, *quote.get(6)?);
            return (first >> 4 == 6).then_some(Outer {
                src: Ipv6Addr::from(bytes_at::<16>(quote, 8)?).into(),
                dst: Ipv6Addr::from(bytes_at::<16>(quote, 24)?).into(),
                protocol,
                len: u32::from(word(4)?) + ipv6::HEADER_LEN as u32,
                id: 0,
                dont_fragment: true,
                payload: quote.get(ipv6::HEADER_LEN..)?,
            });
        }
        // This node's outer headers have no options.
        (*quote.first()? == 0x45).then_some(Outer {
            src: Ipv4Addr::from(bytes_at::<4>(quote, 12)?).into(),
            dst: Ipv4Addr::from(bytes_at::<4>(quote, 16)?).into(),
            protocol: *quote.get(9)?,
            len: u32::from(word(2)?),
            id: word(4)?,
            dont_fragment: word(6)? & 0x4000 != 0,
            payload: quote.get(ipv4::MIN_HEADER_LEN..)?,
        })
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}
