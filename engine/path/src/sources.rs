//! The sources that packets from the underlay may have. Other nodes carry the traffic of anybody whom they
//! route for, so every source is legal but those that no other node can forward.

use std::net::IpAddr;

use crate::verdict::DropReason;

/// Words of the filter: with a hundred addresses, nine packets of ten need no search.
const WORDS: usize = 16;

/// The families of a tunnel, and the addresses of its host.
#[derive(Clone, Debug)]
pub struct Sources {
    v4: bool,
    v6: bool,
    /// A bit for the hash of each of the host's addresses.
    filter: [u64; WORDS],
    /// The host's addresses, sorted; IPv4 in the low 32 bits.
    own: Vec<(bool, u128)>,
}

impl Default for Sources {
    /// Admits both families, and knows no address of the host.
    fn default() -> Self {
        Sources::new(true, true, [])
    }
}

impl Sources {
    /// Admits these families, and rejects the addresses of the host.
    pub fn new(v4: bool, v6: bool, host: impl IntoIterator<Item = IpAddr>) -> Sources {
        let number = |address| match address {
            IpAddr::V4(ip) => (false, u128::from(u32::from(ip))),
            IpAddr::V6(ip) => (true, u128::from(ip)),
        };
        let mut own: Vec<(bool, u128)> = host.into_iter().map(number).collect();
        own.sort_unstable();
        own.dedup();
        own.shrink_to_fit();
        let mut filter = [0; WORDS];
        for (_, source) in &own {
            let (word, bit) = place(*source);
            filter[word] |= bit;
        }
        Sources { v4, v6, filter, own }
    }

    /// Checks the source of a packet; IPv4 in the low 32 bits.
    #[inline]
    pub fn check(&self, v6: bool, source: u128) -> Result<(), DropReason> {
        if !(if v6 { self.v6 } else { self.v4 }) {
            return Err(DropReason::WrongFamily);
        }
        if if v6 { is_bad_v6(source) } else { is_bad_v4(source as u32) } {
            return Err(DropReason::BadSource);
        }
        let (word, bit) = place(source);
        if self.filter[word] & bit != 0 && self.owns(v6, source) {
            return Err(DropReason::OwnSource);
        }
        Ok(())
    }

    /// Returns the size of the list of addresses in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.own[..])
    }

    #[cold]
    fn owns(&self, v6: bool, source: u128) -> bool {
        self.own.binary_search(&(v6, source)).is_ok()
    }
}

/// Returns the word of the filter and the bit in it.
#[inline]
fn place(source: u128) -> (usize, u64) {
    // The golden ratio, as in the flow hash.
    let hash = ((source >> 64) as u64 ^ source as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    (hash as usize / 64 % WORDS, 1 << (hash % 64))
}

/// "This network", loopback, multicast, limited broadcast (RFC 6890 section 2.2.2, RFC 5771), link-local
/// (RFC 3927). Apart from link-local ones the kernel rejects them as well (net/ipv4/route.c,
/// `ip_route_input_slow`).
#[inline]
fn is_bad_v4(source: u32) -> bool {
    let first = source >> 24;
    first == 0 || first == 127 || first & 0xf0 == 0xe0 || source >> 16 == 0xa9fe || source == u32::MAX
}

/// Unspecified, loopback, link-local, multicast (RFC 4291 section 2.4).
#[inline]
fn is_bad_v6(source: u128) -> bool {
    source <= 1 || source >> 118 == 0x3fa || source >> 120 == 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sources: &Sources, source: &str) -> Result<(), DropReason> {
        match source.parse().expect("an address") {
            IpAddr::V4(ip) => sources.check(false, u32::from(ip).into()),
            IpAddr::V6(ip) => sources.check(true, ip.into()),
        }
    }

    #[test]
    fn only_sources_that_nobody_can_forward_are_rejected() {
        let all = Sources::default();
        for bad in [
            "0.0.0.0",
            "0.255.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.0.0",
            "169.254.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::",
            "febf:ffff::1",
            "ff00::",
            "ff02::1",
        ] {
            assert_eq!(check(&all, bad), Err(DropReason::BadSource), "{bad}");
        }
        for good in [
            "1.0.0.0",
            "10.244.1.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.0",
            "192.168.1.1",
            "223.255.255.255",
            "240.0.0.1",
            "255.255.255.254",
            "::2",
            "2001:db8::1",
            "fd00::",
            "fe7f::1",
            "fec0::1",
            "feff::1",
        ] {
            assert_eq!(check(&all, good), Ok(()), "{good}");
        }
    }

    #[test]
    fn each_family_needs_a_network() {
        for (v4, v6) in [(true, false), (false, true)] {
            let one = Sources::new(v4, v6, []);
            assert_eq!(check(&one, "10.1.1.1").is_ok(), v4);
            assert_eq!(check(&one, "fd00::1").is_ok(), v6);
        }
        assert_eq!(check(&Sources::new(true, false, []), "fe80::1"), Err(DropReason::WrongFamily));
    }

    #[test]
    fn all_addresses_of_the_host_are_rejected_and_no_others() {
        for count in [0_u32, 1, 7, 100, 5000] {
            let v4 = |number: u32| IpAddr::from((0x0a00_0000 + number * 2).to_be_bytes());
            let v6 =
                |number: u32| IpAddr::from(((0xfd00_u128 << 112) | (u128::from(number) * 2)).to_be_bytes());
            let host = (0..count).flat_map(|number| [v4(number), v6(number), v4(number)]);
            let sources = Sources::new(true, true, host);
            for number in 0..count * 2 {
                let expected = if number % 2 == 0 { Err(DropReason::OwnSource) } else { Ok(()) };
                assert_eq!(sources.check(false, u128::from(0x0a00_0000 + number)), expected);
                assert_eq!(sources.check(true, (0xfd00_u128 << 112) | u128::from(number)), expected);
            }
        }
        // The same number in the other family is another address.
        let sources = Sources::new(true, true, ["10.0.0.1".parse().expect("an address")]);
        assert_eq!(check(&sources, "::a00:1"), Ok(()));
    }
}
