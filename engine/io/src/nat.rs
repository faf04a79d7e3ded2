//! Whether this host translates the addresses of a flow, and whether an interface computes checksums.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::netlink::{Attributes, Netlink, attribute, nested};
use crate::sys;

// linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
const NETLINK_NETFILTER: i32 = 12;
const CT_GET: u16 = 0x101;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// The flags of an attribute's type (NLA_TYPE_MASK).
const TYPE: u16 = 0x3fff;
/// `struct nfgenmsg`: the family, a version, and a resource.
const GENERIC: usize = 4;
const UDP: u8 = 17;

/// Whether an interface computes the checksums of UDP packets of a family, or leaves them to the kernel.
/// Fails on kernels before 2.6.39.
pub fn sums(interface: &str, ipv6: bool) -> io::Result<bool> {
    // linux/netdev_features.h: NETIF_F_HW_CSUM, NETIF_F_IP_CSUM and NETIF_F_IPV6_CSUM.
    let bits = 1 << 3 | if ipv6 { 1 << 4 } else { 1 << 1 };
    sys::active_features(interface).map(|active| active & bits != 0)
}

/// Asks the kernel's connection tracking for flows.
#[derive(Debug)]
pub struct Tracking(Netlink);

impl Tracking {
    /// Opens a socket for the questions. Needs CAP_NET_ADMIN.
    pub fn open() -> io::Result<Tracking> {
        Netlink::open(NETLINK_NETFILTER).map(Tracking)
    }

    /// Checks that questions are answered, by one about a flow that nobody has.
    pub fn check(&mut self) -> io::Result<()> {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let answer = self.0.try_ask(CT_GET, &question(nowhere, nowhere))?;
        match answer.map_err(|error| error.raw_os_error()) {
            Ok(_) | Err(Some(libc::ENOENT)) => Ok(()),
            Err(number) => Err(io::Error::from_raw_os_error(number.unwrap_or_default())),
        }
    }

    /// Whether the source of this UDP flow from this host is translated. A flow that is not tracked is not.
    pub fn is_source_translated(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<bool> {
        let Some(answer) = self.0.ask(CT_GET, &question(from, to))? else { return Ok(false) };
        let (kind, expected) = match from.ip() {
            IpAddr::V4(address) => (CTA_IP_V4_DST, address.octets().to_vec()),
            IpAddr::V6(address) => (CTA_IP_V6_DST, address.octets().to_vec()),
        };
        // Replies go to the address that the packets had on the wire.
        let reply = find(answer.get(GENERIC..).unwrap_or_default(), CTA_TUPLE_REPLY);
        let address = find(find(reply, CTA_TUPLE_IP), kind);
        let port = find(find(reply, CTA_TUPLE_PROTO), CTA_PROTO_DST_PORT);
        Ok(!address.is_empty() && (address != expected || port != from.port().to_be_bytes()))
    }
}

/// Returns the address that packets to a destination are sent from.
pub fn source_for(to: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing.
    socket.connect(to)?;
    socket.local_addr().map(|address| address.ip())
}

/// Builds the question for a flow.
fn question(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let family = if from.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = vec![family as u8, 0, 0, 0];
    request.extend(tuple(from, to));
    request
}

/// Builds the attribute that identifies a flow.
fn tuple(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            [attribute(CTA_IP_V4_SRC, &from.octets()), attribute(CTA_IP_V4_DST, &to.octets())]
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [attribute(CTA_IP_V6_SRC, &from.octets()), attribute(CTA_IP_V6_DST, &to.octets())]
        }
        _ => Default::default(),
    };
    let ports = [
        attribute(CTA_PROTO_NUM, &[UDP]),
        attribute(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &to.port().to_be_bytes()),
    ];
    let parts = [nested(CTA_TUPLE_IP, &addresses.concat()), nested(CTA_TUPLE_PROTO, &ports.concat())];
    nested(CTA_TUPLE_ORIG, &parts.concat())
}

/// Returns the value of an attribute, or nothing.
fn find(attributes: &[u8], wanted: u16) -> &[u8] {
    Attributes(attributes).find(|(kind, _)| kind & TYPE == wanted).map_or(&[], |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    #[test]
    fn a_translated_source_is_found_in_both_families() {
        scratch::run(|| {
            let setup = "for a in 192.0.2.1/32 192.0.2.9/32 fd00::1/128 fd00::9/128; do
                  ip addr add $a dev lo || exit 1
                done
                snat='-t nat -A POSTROUTING -p udp --dport 8472 -j SNAT --to-source'
                iptables $snat 192.0.2.9 && ip6tables $snat fd00::9";
            if !scratch::shell(setup) {
                return;
            }
            for own in ["192.0.2.1", "fd00::1"] {
                let own: IpAddr = own.parse().unwrap();
                let socket = UdpSocket::bind((own, 0)).unwrap();
                let from = socket.local_addr().unwrap();
                let mut tracking = Tracking::open().unwrap();
                let mut asked = |port| tracking.is_source_translated(from, (own, port).into()).unwrap();
                assert!(!asked(8472), "nothing was sent");
                for port in [8472, 9999] {
                    let _ = socket.send_to(b"x", (own, port));
                }
                assert_eq!([8472, 9999, 7].map(&mut asked), [true, false, false], "{own}");
                assert_eq!(source_for((own, 8472).into()).unwrap(), own);
            }
        });
    }

    #[test]
    fn an_interface_that_computes_no_checksums_is_recognized() {
        scratch::run(|| {
            let setup = "ip link add sums0 type veth peer name sums1";
            if !scratch::shell(setup) {
                return;
            }
            assert!(sums("sums0", false).unwrap() && sums("sums0", true).unwrap());
            // Other checksums, as SCTP's, remain.
            if scratch::shell("ethtool -K sums0 tx-checksum-ip-generic off") {
                assert!(!sums("sums0", false).unwrap() && !sums("sums0", true).unwrap());
            }
            assert!(sums("none", false).is_err());
        });
    }
}
