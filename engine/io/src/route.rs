//! The MTU and the devices that the kernel has for a destination, without its learned exceptions.

use std::io;
use std::net::IpAddr;

use crate::netlink::{Attributes, Netlink, attribute};

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
const NETLINK_ROUTE: i32 = 0;
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
/// Returns the configured route (Linux 4.13) instead of a cached one, whose MTU may come from a forged
/// message.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTAX_MTU: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;

const ROUTE: usize = 12;
const LINK: usize = 16;

/// Returns the smallest MTU of the devices that the route to `destination` uses, or the route's own MTU if it
/// is smaller. Returns `None` if there is no route.
pub fn mtu(destination: IpAddr) -> io::Result<Option<u32>> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let Some((mut least, devices)) = route(&mut netlink, destination)? else { return Ok(None) };
    for device in devices {
        let mtu = link(&mut netlink, device, IFLA_MTU)?.and_then(|value| word(&value));
        least = least.into_iter().chain(mtu).min();
    }
    Ok(least)
}

/// Returns the names of the devices that the route to `destination` uses.
pub fn devices(destination: IpAddr) -> io::Result<Vec<String>> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let Some((_, devices)) = route(&mut netlink, destination)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for device in devices {
        let name = link(&mut netlink, device, IFLA_IFNAME)?;
        names.extend(name.map(|name| String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()));
    }
    Ok(names)
}

/// Returns the MTU that a route sets, and the numbers of its devices.
fn route(netlink: &mut Netlink, destination: IpAddr) -> io::Result<Option<(Option<u32>, Vec<u32>)>> {
    let (family, bytes) = match destination {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut request = vec![0; ROUTE];
    request[0] = family as u8;
    request[1] = (8 * bytes.len()) as u8;
    request[8..12].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    request.extend(attribute(RTA_DST, &bytes));
    let Some(route) = netlink.ask(RTM_GETROUTE, &request)? else { return Ok(None) };
    let (mut least, mut devices) = (None::<u32>, Vec::new());
    for (kind, value) in Attributes(route.get(ROUTE..).unwrap_or_default()) {
        match kind {
            RTA_OIF => devices.extend(word(value)),
            RTA_METRICS => {
                let own = Attributes(value).find(|(kind, _)| *kind == RTAX_MTU);
                least = own.and_then(|(_, value)| word(value)).filter(|mtu| *mtu > 0);
            }
            RTA_MULTIPATH => {
                let mut hops = value;
                // struct rtnexthop: a length, flags, a weight, and the device.
                while let Some(len) = hops.first_chunk::<2>().map(|len| u16::from_ne_bytes(*len)) {
                    devices.extend(hops.get(4..8).and_then(word));
                    let len = usize::from(len).max(8).next_multiple_of(4);
                    hops = hops.get(len..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    Ok(Some((least, devices)))
}

/// Returns an attribute of a device.
fn link(netlink: &mut Netlink, device: u32, wanted: u16) -> io::Result<Option<Vec<u8>>> {
    let mut request = vec![0; LINK];
    request[4..8].copy_from_slice(&device.to_ne_bytes());
    let Some(link) = netlink.ask(RTM_GETLINK, &request)? else { return Ok(None) };
    let found = Attributes(link.get(LINK..).unwrap_or_default()).find(|(kind, _)| *kind == wanted);
    Ok(found.map(|(_, value)| value.to_vec()))
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    #[test]
    fn the_devices_mtu_is_returned_and_no_route_has_none() {
        scratch::run(|| {
            if !scratch::tool("ip link set lo mtu 1400") {
                return;
            }
            assert_eq!(mtu("127.0.0.1".parse().unwrap()).unwrap(), Some(1400));
            assert_eq!(devices("127.0.0.1".parse().unwrap()).unwrap(), ["lo"]);
            assert_eq!(devices("192.0.2.1".parse().unwrap()).unwrap(), Vec::<String>::new());
            assert_eq!(mtu("192.0.2.1".parse().unwrap()).unwrap(), None);
            assert_eq!(mtu("2001:db8::1".parse().unwrap()).unwrap(), None);
        });
    }
}
