//! Judges the ICMP messages that announce a path MTU: "fragmentation needed" (RFC 1191) and "packet too big"
//! (RFC 4443 section 3.2).
//!
//! Anyone can send such a message, so it counts only if it quotes a packet that this node may just have sent:
//! from this node's address and ports to a peer, larger than the MTU that it announces, with the headers of
//! the tunnel, and around a packet for that peer's pods. What an outsider cannot know: the outer
//! identification of ipip ([`crate::encap::ipip`]), the index of a WireGuard session, and the source ports.

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
    /// The peer that the quoted packet was sent to.
    pub whose: Whose,
    /// The largest inner packet that fits the path.
    pub limit: u16,
}

/// Identifies a peer by what a packet to it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The peer at the end of this path.
    Path(PathEnd),
    /// The WireGuard peer whose session has this index at the peer. The caller knows the sessions.
    Session(SessionIndex),
}

/// Returns the destination of the packet that a message quotes, if everything is right that anyone can know:
/// the protocol, this node's address and ports, and a length above the announced MTU. Whether a peer has the
/// destination is left to the caller. See [`judge`] for the message.
pub fn quoted(message: &[u8], v6: bool, fib: &Fib, own: &Own) -> Option<IpAddr> {
    public(message, v6, fib, own).map(|(_, outer)| outer.dst)
}

/// Judges an ICMP message, which begins with its IPv4 header, or an ICMPv6 message. Returns `None` if it
/// is not to be believed.
pub fn judge(message: &[u8], v6: bool, fib: &Fib, own: &Own) -> Option<Announcement> {
    let (announced, outer) = public(message, v6, fib, own)?;
    let limit = fib.format().inner_limit(announced, v6);
    let end = PathEnd::Remote(outer.dst);
    let announcement = |whose| Some(Announcement { whose, limit });
    if let Format::Ipip(_) = fib.format() {
        let peer = fib.peer_at(end)?;
        let expected = ipip::identification(outer.dst);
        let ours = outer.dont_fragment && outer.id == expected;
        // RFC 792: a message quotes at least eight bytes behind the header.
        let inner = outer.payload.get(..8).and(Some(outer.payload))?;
        let len = inner.get(2..4).map(|len| u32::from(u16::from_be_bytes([len[0], len[1]])))?;
        let whole = inner.first().is_some_and(|first| first >> 4 == 4) && len + 20 == outer.len;
        let owned = inner.len() < ipv4::MIN_HEADER_LEN || owns(fib, inner, peer.remote.ip());
        return if ours && whole && owned { announcement(Whose::Path(end)) } else { None };
    }
    let [_, _, d0, d1, ..] = outer.payload else { return None };
    let datagram = outer.payload.get(udp::HEADER_LEN..)?;
    if let Format::Wireguard = fib.format() {
        // A record begins with its type, three zeros, and the receiver's index.
        let [wireguard::DATA, 0, 0, 0, index @ ..] = datagram.first_chunk::<8>()? else { return None };
        return announcement(Whose::Session(SessionIndex(u32::from_le_bytes(*index))));
    }
    let peer = fib.peer_at(end)?;
    let prefix = peer.template.len();
    let ours = peer.remote.port() == u16::from_be_bytes([*d0, *d1])
        && peer.template.matches(datagram.get(..prefix)?)
        && owns(fib, datagram.get(prefix..)?, peer.remote.ip());
    if ours { announcement(Whose::Path(end)) } else { None }
}

/// Returns the announced MTU and the outer header of a message in which what anyone can know is right.
fn public<'a>(message: &'a [u8], v6: bool, fib: &Fib, own: &Own) -> Option<(u32, Outer<'a>)> {
    let (announced, quote) = if v6 { read_v6(message)? } else { read_v4(message)? };
    let outer = Outer::parse(quote, v6)?;
    let ours = match fib.format() {
        Format::Ipip(_) => outer.protocol == ipip::PROTOCOL,
        _ => {
            let port = outer.payload.first_chunk::<2>().map(|port| u16::from_be_bytes(*port))?;
            outer.protocol == crate::inner::UDP && own.ports.contains(&port)
        }
    };
    let foreign = own.address.is_some_and(|own| own != outer.src);
    (ours && !foreign && outer.len > announced).then_some((announced, outer))
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wire::addr::{Mac, Vni};

    use super::*;
    use crate::encap::ipip::Ipip;
    use crate::encap::vxlan::Vxlan;
    use crate::fib::{FibBuilder, PeerSpec};
    use crate::inner::Inner;

    const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

    fn table(format: Format, remote: &str) -> Fib {
        let mut builder = FibBuilder::new(format);
        let mac = Some(Mac::new([2, 0, 0, 0, 0, 2]));
        let spec = PeerSpec { remote: remote.parse().unwrap(), mac, mtu: 1480 };
        builder.add("10.2.0.0/24".parse().unwrap(), spec).unwrap();
        let other = SocketAddr::new(spec.remote.ip(), 9);
        builder.add("10.3.0.0/24".parse().unwrap(), PeerSpec { remote: other, ..spec }).unwrap();
        builder.build().unwrap()
    }

    fn vxlan() -> Format {
        Format::Vxlan(Vxlan { vni: Vni::new(1).unwrap(), local_mac: Mac::new([2, 0, 0, 0, 0, 1]) })
    }

    /// An inner packet of 1480 bytes with DF, to a pod of the peer.
    fn inner() -> Vec<u8> {
        let mut packet = vec![0; 1480];
        packet[..20]
            .copy_from_slice(&[0x45, 0, 0x05, 0xc8, 0, 9, 0x40, 0, 64, 253, 0, 0, 10, 1, 0, 5, 10, 2, 0, 7]);
        ipv4::fill_checksum(&mut packet[..20]);
        packet
    }

    /// What this node sends around the packet.
    fn encapsulated(fib: &Fib) -> Vec<u8> {
        let packet = inner();
        let peer = &fib.lookup_v4([10, 2, 0, 7].into()).unwrap().1;
        let mut prefix = vec![0; peer.template.len()];
        peer.template.write(&mut prefix, &Inner::parse(&packet).unwrap());
        [prefix, packet].concat()
    }

    fn fragmentation_needed(mtu: u16, quote: &[u8]) -> Vec<u8> {
        let mut message = vec![3, 4, 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8];
        message.extend(quote);
        let sum = Sum::of(&message).finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1];
        packet.extend(message);
        let len = packet.len() as u16;
        ipv4::set_total_len(&mut packet, len);
        packet
    }

    fn packet_too_big(mtu: u32, ports: (u16, u16), datagram: &[u8]) -> Vec<u8> {
        let len = (8 + datagram.len()) as u16;
        let mut message = vec![2, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend([0x60, 0, 0, 0, (len >> 8) as u8, len as u8, 17, 64]);
        V6.iter().for_each(|address| message.extend(address.parse::<Ipv6Addr>().unwrap().octets()));
        for half in [ports.0, ports.1, len, 0] {
            message.extend(half.to_be_bytes());
        }
        message.extend(datagram);
        message.truncate(1240);
        message
    }

    #[test]
    fn ipip_is_believed_only_with_the_identification_that_was_sent() {
        let fib = table(Format::Ipip(Ipip { local: [192, 0, 2, 1].into() }), "192.0.2.2:0");
        let own = Own { address: Some([192, 0, 2, 1].into()), ports: Vec::new() };
        let mut sent = encapsulated(&fib);
        // As the kernel does.
        ipv4::set_total_len(&mut sent, 1500);
        let judge = |message: &[u8]| judge(message, false, &fib, &own);
        let whose = Whose::Path(PathEnd::Remote([192, 0, 2, 2].into()));
        let believed = |limit| Some(Announcement { whose, limit });
        for quoted in [28, 40, 548] {
            assert_eq!(judge(&fragmentation_needed(1400, &sent[..quoted])), believed(1380));
        }
        assert_eq!(judge(&fragmentation_needed(68, &sent[..28])), believed(576), "bounded below");
        assert_eq!(judge(&fragmentation_needed(1500, &sent[..28])), None, "not too big");
        assert_eq!(judge(&fragmentation_needed(0, &sent[..28])), None);
        assert_eq!(judge(&fragmentation_needed(1400, &sent[..27])), None);
        // Anything else than what was sent: version, length, identification, DF, protocol, addresses, and the
        // length and destination of the inner packet.
        for at in [0, 2, 3, 4, 5, 6, 9, 12, 15, 16, 19, 20, 22, 23, 36, 38] {
            let mut forged = sent[..40].to_vec();
            forged[at] ^= 0x41;
            assert_eq!(judge(&fragmentation_needed(1400, &forged)), None, "byte {at}");
        }
        let mut damaged = fragmentation_needed(1400, &sent[..28]);
        damaged[27] ^= 1;
        assert_eq!(judge(&damaged), None, "the checksum");
        let whole = fragmentation_needed(1400, &sent[..40]);
        for len in 0..whole.len() {
            assert_eq!(judge(&whole[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn vxlan_over_ipv6_is_believed_only_with_the_ports_and_headers_that_were_sent() {
        let fib = table(vxlan(), "[2001:db8::2]:8472");
        let own = Own { address: Some(V6[0].parse().unwrap()), ports: vec![40_000, 40_001] };
        let sent = encapsulated(&fib);
        let judge = |message: &[u8]| judge(message, true, &fib, &own);
        let whose = Whose::Path(PathEnd::Remote(V6[1].parse().unwrap()));
        let good = packet_too_big(1400, (40_001, 8472), &sent);
        assert_eq!(judge(&good), Some(Announcement { whose, limit: 1330 }));
        let low = packet_too_big(68, (40_000, 8472), &sent);
        assert_eq!(judge(&low), Some(Announcement { whose, limit: 1210 }), "bounded below");
        assert_eq!(judge(&packet_too_big(1400, (8472, 8472), &sent)), None);
        assert_eq!(judge(&packet_too_big(1400, (40_000, 8473), &sent)), None);
        assert_eq!(judge(&packet_too_big(9000, (40_000, 8472), &sent)), None, "not too big");
        // The version, protocol and addresses, the VXLAN network, both MAC addresses, the inner destination.
        for at in [8, 14, 16, 31, 32, 47, 56, 62, 64, 69, 75, 78, 95] {
            let mut forged = good.clone();
            forged[at] ^= 0x41;
            assert_eq!(judge(&forged), None, "byte {at}");
        }
        for len in 0..98 {
            assert_eq!(judge(&good[..len]), None, "{len} bytes");
        }
    }
    #[test]
    fn wireguard_names_the_session() {
        let fib = table(Format::Wireguard, "[2001:db8::2]:51820");
        let own = Own { address: None, ports: vec![51_820] };
        let judge = |message: &[u8]| judge(message, true, &fib, &own);
        let record = [&[4, 0, 0, 0, 0x78, 0x56, 0x34, 0x12][..], &[9; 1400]].concat();
        let whose = Whose::Session(SessionIndex(0x1234_5678));
        let good = packet_too_big(1400, (51_820, 7), &record);
        assert_eq!(judge(&good), Some(Announcement { whose, limit: 1312 }));
        let handshake = packet_too_big(1400, (51_820, 7), &[&[1, 0, 0, 0][..], &[9; 1400]].concat());
        assert_eq!(judge(&handshake), None);
        assert_eq!(judge(&packet_too_big(1400, (51_821, 7), &record)), None);
        for len in 0..8 + 40 + 8 + 8 {
            assert_eq!(judge(&good[..len]), None, "{len} bytes");
        }
    }
}
