//! The virtio header, `struct virtio_net_hdr` (`include/uapi/linux/virtio_net.h`), that precedes each packet
//! on a TUN queue with `IFF_VNET_HDR`: ten bytes, in native byte order.

use crate::Malformed;

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` holds the folded pseudo-header
/// sum. The receiver must complete it over the bytes from `csum_start` to the end.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum is already verified.
pub const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How to segment a super-packet.
///
/// `VIRTIO_NET_HDR_GSO_UDP`, which is IP fragmentation, is absent: none of the TUN offloads that loden
/// requests produces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// A single packet.
    #[default]
    None,
    /// TCP over IPv4, in segments of `gso_size` payload bytes.
    Tcp4,
    /// TCP over IPv6, in segments of `gso_size` payload bytes.
    Tcp6,
    /// UDP over IPv4 or IPv6, in datagrams of `gso_size` payload bytes; the last may be shorter.
    UdpL4,
}

/// The header before a packet. The default is a single packet with a complete checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// [`NEEDS_CSUM`] and [`DATA_VALID`]; other bits are preserved.
    pub flags: u8,
    /// How to segment the packet.
    pub gso: Gso,
    /// TCP only: only the first segment keeps CWR (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Bytes of all headers. Only a hint: the kernel's value is wrong on forwarded packets, so parse the
    /// headers.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// First byte that the checksum covers, from the start of the packet.
    pub csum_start: u16,
    /// Position of the checksum field, from `csum_start`.
    pub csum_offset: u16,
}

impl Header {
    /// Parses the ten bytes. Fails with [`Malformed::Truncated`] if there are fewer, and with
    /// [`Malformed::Unsupported`] for a GSO type that [`Gso`] does not have.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Header, Malformed> {
        let &[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] =
            bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::UdpL4,
            _ => return Err(Malformed::Unsupported),
        };
        Ok(Header {
            flags,
            gso,
            ecn: gso_type & GSO_ECN != 0,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// Writes the ten bytes. Fails with [`Malformed::Truncated`] if the buffer is shorter.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<(), Malformed> {
        let out = out.first_chunk_mut::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let mut gso_type = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::UdpL4 => GSO_UDP_L4,
        };
        if self.ecn {
            gso_type |= GSO_ECN;
        }
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        *out = [self.flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1];
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn the_default_header_is_ten_zeros() {
        let mut bytes = [0xee; HEADER_LEN];
        Header::default().emit(&mut bytes).unwrap();
        assert_eq!(bytes, [0; HEADER_LEN]);
        assert_eq!(Header::parse(&bytes), Ok(Header::default()));
        assert_eq!(Header::parse(&bytes[1..]), Err(Malformed::Truncated));
        assert_eq!(Header::default().emit(&mut bytes[1..]), Err(Malformed::Truncated));
    }

    #[test]
    fn other_gso_types_are_rejected() {
        // IP fragmentation (3), unknown types, UDP tunnels over either family (0x20, 0x40).
        for gso_type in [2, 3, 6, 0x21, 0x41, 0x83] {
            let bytes = [0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Header::parse(&bytes), Err(Malformed::Unsupported), "{gso_type:#x}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            gso in prop::sample::select(&[Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::UdpL4][..]),
            (flags, ecn) in any::<(u8, bool)>(),
            (hdr_len, gso_size, csum_start, csum_offset) in any::<(u16, u16, u16, u16)>(),
        ) {
            let header = Header { flags, gso, ecn, hdr_len, gso_size, csum_start, csum_offset };
            let mut bytes = [0xee; HEADER_LEN];
            header.emit(&mut bytes).unwrap();
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Header::parse(&bytes);
        }
    }
}
