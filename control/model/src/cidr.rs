//! Strict CIDR text, and networks without host bits.
//!
//! `ipnetwork` also accepts a bare address or a dotted mask; flannel does not, and a configuration that only
//! we accept would break on the next flannel node.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

/// Parses `10.244.3.7/16` and drops the host bits (`10.244.0.0/16`); `None` for any other form.
pub fn parse_v4(text: &str) -> Option<Ipv4Network> {
    let (address, length) = split(text)?;
    masked_v4(address.parse().ok()?, length)
}

/// Parses `fd00:12::7/48` and drops the host bits; `None` for any other form, including IPv4-mapped networks
/// (`::ffff:10.0.0.0/104`), which cannot be routed.
pub fn parse_v6(text: &str) -> Option<Ipv6Network> {
    let (address, length) = split(text)?;
    masked_v6(address.parse().ok()?, length).filter(|network| network.network().to_ipv4_mapped().is_none())
}

/// Returns the network of prefix length `length` that contains `address`; `None` if `length` is over 32.
pub fn masked_v4(address: Ipv4Addr, length: u8) -> Option<Ipv4Network> {
    let host_bits = 32u32.checked_sub(length.into())?;
    let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
    Ipv4Network::new(Ipv4Addr::from_bits(address.to_bits() & mask), length).ok()
}

/// Returns the network of prefix length `length` that contains `address`; `None` if `length` is over 128.
pub fn masked_v6(address: Ipv6Addr, length: u8) -> Option<Ipv6Network> {
    let host_bits = 128u32.checked_sub(length.into())?;
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    Ipv6Network::new(Ipv6Addr::from_bits(address.to_bits() & mask), length).ok()
}

fn split(text: &str) -> Option<(&str, u8)> {
    let (address, length) = text.split_once('/')?;
    // `u8::from_str` accepts a plus sign, CIDR notation does not.
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((address, length.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_dropped() {
        assert_eq!(parse_v4("10.244.3.7/16").unwrap().to_string(), "10.244.0.0/16");
        assert_eq!(parse_v4("1.2.3.4/0").unwrap().to_string(), "0.0.0.0/0");
        assert_eq!(parse_v4("1.2.3.4/32").unwrap().to_string(), "1.2.3.4/32");
        assert_eq!(parse_v6("fd00:12:13::7/48").unwrap().to_string(), "fd00:12:13::/48");
        assert_eq!(parse_v6("fd00::1/0").unwrap().to_string(), "::/0");
    }

    #[test]
    fn only_the_slash_form_parses() {
        for text in ["", "/", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/+8"] {
            assert_eq!(parse_v4(text), None, "{text}");
        }
        for text in ["10.0.0.0/8 ", " 10.0.0.0/8", "010.0.0.0/8", "10.0.0/8", "fd00::/48", "10.0.0.0/8/8"] {
            assert_eq!(parse_v4(text), None, "{text}");
        }
        for text in ["10.0.0.0/8", "fd00::", "fd00::/129", "fd00::/-1", "[fd00::]/48"] {
            assert_eq!(parse_v6(text), None, "{text}");
        }
    }
}
