//! Types for MAC address, VNI and MTU.

use core::fmt;
use core::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Creates an address from its octets in wire order.
    #[inline]
    pub const fn new(octets: [u8; 6]) -> Mac {
        Mac(octets)
    }

    /// Returns the octets in wire order.
    #[inline]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether the group bit is set (IEEE 802-2014 8.2.2), as it also is for broadcast.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 0x01 != 0
    }

    /// Whether the address is locally administered (IEEE 802-2014 8.2.2), as every generated address must be.
    #[inline]
    pub const fn is_local(self) -> bool {
        self.0[0] & 0x02 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ParseError;

    /// Parses six pairs of hex digits of either case, separated by colons or by hyphens.
    fn from_str(text: &str) -> Result<Mac, ParseError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut groups = text.split(separator);
        for octet in &mut octets {
            let group = groups.next().ok_or(ParseError::Mac)?;
            // `from_str_radix` alone would accept "+f".
            if group.len() != 2 || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseError::Mac);
            }
            *octet = u8::from_str_radix(group, 16).map_err(|_| ParseError::Mac)?;
        }
        if groups.next().is_some() { Err(ParseError::Mac) } else { Ok(Mac(octets)) }
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: u32 = 0x00ff_ffff;

    /// Creates an identifier, or returns `None` if the value needs more than 24 bits.
    #[inline]
    pub const fn new(value: u32) -> Option<Vni> {
        if value <= Vni::MAX { Some(Vni(value)) } else { None }
    }

    /// Creates an identifier from its three octets in wire order; every combination is valid.
    #[inline]
    pub const fn from_octets([a, b, c]: [u8; 3]) -> Vni {
        Vni(u32::from_be_bytes([0, a, b, c]))
    }

    /// Returns the value, which is below 2^24.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the three octets in wire order.
    #[inline]
    pub const fn octets(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vni {
    type Err = ParseError;

    /// Parses a decimal number below 2^24.
    fn from_str(text: &str) -> Result<Vni, ParseError> {
        text.parse().ok().and_then(Vni::new).ok_or(ParseError::Vni)
    }
}

/// The size of the largest IP packet that a link carries, in bytes, without the link header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// The size that every IPv4 module must forward without fragmentation (RFC 791 section 3.2).
    pub const MIN: u16 = 68;

    /// Creates an MTU, or returns `None` if the value is outside 68..=65535.
    #[inline]
    pub const fn new(value: u32) -> Option<Mtu> {
        if value >= Mtu::MIN as u32 && value <= u16::MAX as u32 { Some(Mtu(value as u16)) } else { None }
    }

    /// Returns the number of bytes, 68..=65535.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Mtu {
    type Err = ParseError;

    /// Parses a decimal number of bytes, 68..=65535.
    fn from_str(text: &str) -> Result<Mtu, ParseError> {
        text.parse().ok().and_then(Mtu::new).ok_or(ParseError::Mtu)
    }
}

/// The error of parsing text. Its message does not include the text, which the caller can quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError {
    /// The text is not a [`Mac`].
    Mac,
    /// The text is not a [`Vni`].
    Vni,
    /// The text is not an [`Mtu`].
    Mtu,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParseError::Mac => "not a MAC address: expected six pairs of hex digits, as in 0a:1b:2c:3d:4e:5f",
            ParseError::Vni => "not a VNI: expected a decimal number from 0 to 16777215",
            ParseError::Mtu => "not an MTU: expected a decimal number from 68 to 65535",
        })
    }
}

impl core::error::Error for ParseError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::string::ToString;

    use super::*;

    #[test]
    fn limits() {
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Some(0x00ff_ffff));
        assert_eq!(Vni::new(Vni::MAX + 1), None);
        assert_eq!(Mtu::new(67), None);
        assert_eq!(Mtu::new(68).map(Mtu::get), Some(68));
        assert_eq!(Mtu::new(65_535).map(Mtu::get), Some(65_535));
        assert_eq!(Mtu::new(65_536), None);
    }

    #[test]
    fn mac_bits() {
        assert!(Mac::new([0xff; 6]).is_multicast());
        assert!(Mac::new([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        let generated = Mac::new([0x0e, 0x2a, 0, 0, 0, 1]);
        assert!(generated.is_local() && !generated.is_multicast());
        assert!(!Mac::new([0x00, 0x1b, 0x21, 0, 0, 1]).is_local());
    }

    #[test]
    fn invalid_texts_are_rejected() {
        for text in
            ["", "0a:1b:2c:3d:4e", "0a:1b:2c:3d:4e:5f:60", "0a:1b:2c:3d:4e:+f", "0a:1b-2c:3d:4e:5f", "é"]
        {
            assert_eq!(text.parse::<Mac>(), Err(ParseError::Mac), "{text}");
        }
        for text in ["", "-1", "16777216", "4294967296"] {
            assert_eq!(text.parse::<Vni>(), Err(ParseError::Vni), "{text}");
        }
        for text in ["", "67", "65536", "1500 "] {
            assert_eq!(text.parse::<Mtu>(), Err(ParseError::Mtu), "{text}");
        }
    }

    #[test]
    fn both_common_mac_formats_are_parsed() {
        let mac = Mac::new([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]);
        assert_eq!("c6:d2:32:6f:8f:44".parse(), Ok(mac));
        assert_eq!("C6-D2-32-6F-8F-44".parse(), Ok(mac));
    }

    proptest! {
        #[test]
        fn text_round_trip(octets: [u8; 6], vni in 0..=Vni::MAX, mtu in 68_u32..=65_535) {
            let (mac, vni, mtu) = (Mac::new(octets), Vni::new(vni).unwrap(), Mtu::new(mtu).unwrap());
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            prop_assert_eq!(vni.to_string().parse(), Ok(vni));
            prop_assert_eq!(mtu.to_string().parse(), Ok(mtu));
            prop_assert_eq!(Vni::from_octets(vni.octets()), vni);
        }

        #[test]
        fn random_text_never_panics(text: std::string::String) {
            let _ = (text.parse::<Mac>(), text.parse::<Vni>(), text.parse::<Mtu>());
        }
    }
}
