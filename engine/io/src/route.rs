//! The MTU that the kernel has for a destination, without its learned exceptions.

use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
const NETLINK_ROUTE: i32 = 0;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
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
const IFLA_MTU: u16 = 4;

const HEADER: usize = 16;
const ROUTE: usize = 12;
const LINK: usize = 16;
const ROOM: usize = 1 << 16;

/// Returns the smallest MTU of the devices that the route to `destination` uses, or the route's own MTU if it
/// is smaller. Returns `None` if there is no route.
pub fn mtu(destination: IpAddr) -> io::Result<Option<u32>> {
    let mut socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (family, bytes) = match destination {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut request = vec![0; ROUTE];
    request[0] = family as u8;
    request[1] = (8 * bytes.len()) as u8;
    request[8..12].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    request.extend((4 + bytes.len() as u16).to_ne_bytes());
    request.extend(RTA_DST.to_ne_bytes());
    request.extend(bytes);
    let Some(route) = ask(&mut socket, RTM_GETROUTE, &request)? else { return Ok(None) };
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
    for device in devices {
        let mut request = vec![0; LINK];
        request[4..8].copy_from_slice(&device.to_ne_bytes());
        let Some(link) = ask(&mut socket, RTM_GETLINK, &request)? else { continue };
        let mtu = Attributes(link.get(LINK..).unwrap_or_default()).find(|(kind, _)| *kind == IFLA_MTU);
        let mtu = mtu.and_then(|(_, value)| word(value));
        least = least.into_iter().chain(mtu).min();
    }
    Ok(least)
}

/// Sends a request and returns the body of the answer, or `None` if the kernel has none.
fn ask(socket: &mut Socket, kind: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend((HEADER as u32 + body.len() as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    socket.send(&request)?;
    let mut answer = vec![0; ROOM];
    let len = socket.read(&mut answer)?;
    answer.truncate(len);
    let kind =
        answer.get(4..6).and_then(|kind| kind.first_chunk::<2>()).map(|kind| u16::from_ne_bytes(*kind));
    Ok(kind.filter(|kind| *kind != NLMSG_ERROR).map(|_| answer.split_off(HEADER.min(len))))
}

/// Iterates over `struct rtattr`: a length, a type, and the value, in units of four bytes.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
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
            assert_eq!(mtu("192.0.2.1".parse().unwrap()).unwrap(), None);
            assert_eq!(mtu("2001:db8::1".parse().unwrap()).unwrap(), None);
        });
    }

    #[test]
    fn truncated_attributes_end_the_list() {
        let bytes = [8u16.to_ne_bytes(), 4u16.to_ne_bytes(), [1, 0], [0, 0]].concat();
        assert_eq!(Attributes(&bytes).collect::<Vec<_>>(), [(4, &[1, 0, 0, 0][..])]);
        for cut in 0..bytes.len() {
            assert_eq!(Attributes(&bytes[..cut]).count(), 0, "{cut}");
        }
    }
}
