//! The kernel's route to each peer: on the underlay's link, or not.
//!
//! flannel's test for `DirectRouting` is that the route to a peer has no gateway. The kernel is asked for
//! each peer, so that every rule and routing table of the host counts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use futures::{StreamExt, TryStreamExt, stream};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::{Underlay, outgoing, route_to};
use crate::netlink::{Netlink, NetlinkError};

/// Number of requests in flight.
const IN_FLIGHT: usize = 64;

/// The kernel's routes to peers.
pub type Reach = BTreeMap<IpAddr, Way>;

/// The kernel's route to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The peer is a neighbour on the underlay's link.
    OnLink,
    /// The route leads through a router.
    Gateway(IpAddr),
    /// The route leaves through another interface.
    Elsewhere,
    /// There is no route, or it is not a unicast route.
    None(String),
}

/// Prints a clause about the peer.
impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::OnLink => write!(out, "it is on our link"),
            Way::Gateway(gateway) => write!(out, "the route to it leads through the gateway {gateway}"),
            Way::Elsewhere => write!(out, "the route to it leaves through another interface"),
            Way::None(why) => write!(out, "there is no usable route to it: {why}"),
        }
    }
}

/// Asks the kernel for the route to each of `peers`. Fails if it does not answer: a peer is never taken for
/// unreachable because nothing is known of it.
pub async fn observe(
    netlink: &Netlink,
    underlay: &Underlay,
    peers: impl Iterator<Item = IpAddr>,
) -> Result<Reach, NetlinkError> {
    let requests = peers.map(async |peer| Ok((peer, way(netlink, underlay.index, peer).await?)));
    stream::iter(requests).buffer_unordered(IN_FLIGHT).try_collect().await
}

async fn way(netlink: &Netlink, interface: u32, peer: IpAddr) -> Result<Way, NetlinkError> {
    match route_to(netlink, peer).await {
        Ok(Some(route)) => Ok(classify(&route, interface)),
        Ok(None) => Ok(Way::None("the kernel returned none".to_owned())),
        Err(NetlinkError::Refused { source, .. }) => Ok(Way::None(source.to_string())),
        Err(error) => Err(error),
    }
}

fn classify(route: &RouteMessage, interface: u32) -> Way {
    if route.header.kind != RouteType::Unicast {
        return Way::None(format!("the route's type is {}", type_name(route)));
    }
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => super::address_of(address),
        // IPv4 through an IPv6 router: takes the place of the gateway.
        RouteAttribute::Via(_) => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    });
    match gateway {
        Some(gateway) => Way::Gateway(gateway),
        None if outgoing(route) == Some(interface) => Way::OnLink,
        None => Way::Elsewhere,
    }
}

/// Returns iproute2's name of the route's type, or its number (rtnetlink(7), `rtm_type`).
fn type_name(route: &RouteMessage) -> String {
    let name = match route.header.kind {
        RouteType::Local => "local",
        RouteType::Broadcast => "broadcast",
        RouteType::Anycast => "anycast",
        RouteType::Multicast => "multicast",
        RouteType::BlackHole => "blackhole",
        RouteType::Unreachable => "unreachable",
        RouteType::Prohibit => "prohibit",
        RouteType::Throw => "throw",
        other => return u8::from(other).to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn the_kernels_ways_are_told_apart() {
        let work = || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                assert!(std::env::var_os("CI").is_none(), "this test needs root rights: {error}");
                eprintln!("skipped: this test needs root rights: {error}");
                return;
            }
            let shell = |line: &str| {
                let status = std::process::Command::new("sh").args(["-ec", line]).status().expect("sh");
                assert!(status.success(), "{line}");
            };
            shell(
                "ip link set lo up; ip link add up0 type veth peer name far0; ip link set up0 up; ip link \
                 set far0 up
                 ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad
                 ip addr add 198.51.100.1/24 dev far0
                 ip route add 203.0.113.0/24 via 192.0.2.254; ip route add blackhole 203.0.113.99
                 ip -6 route add 2001:db8:1::/64 via 2001:db8::fe",
            );
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let reach = runtime.block_on(async {
                let netlink = Netlink::connect().expect("netlink");
                let index = crate::apply::links::index(&netlink, "up0").await.expect("answer").expect("up0");
                let underlay = Underlay { interface: "up0".into(), index, mtu: 1500, ipv4: None, ipv6: None };
                let peers =
                    ["192.0.2.7", "203.0.113.7", "203.0.113.99", "198.51.100.7", "192.0.2.1", "10.9.9.9"];
                let peers = peers.into_iter().chain(["2001:db8::7", "2001:db8:1::7"]);
                observe(&netlink, &underlay, peers.map(|peer| peer.parse().expect("address")))
                    .await
                    .expect("answers")
            });
            let way = |ip: &str| reach[&ip.parse::<IpAddr>().expect("address")].clone();
            assert_eq!(way("192.0.2.7"), Way::OnLink);
            assert_eq!(way("2001:db8::7"), Way::OnLink);
            assert_eq!(way("203.0.113.7"), Way::Gateway([192, 0, 2, 254].into()));
            assert_eq!(way("2001:db8:1::7"), Way::Gateway("2001:db8::fe".parse().expect("address")));
            assert_eq!(way("198.51.100.7"), Way::Elsewhere);
            for none in ["203.0.113.99", "192.0.2.1", "10.9.9.9"] {
                assert!(matches!(way(none), Way::None(_)), "{none}: {}", way(none));
            }
        };
        std::thread::scope(|scope| scope.spawn(work).join().expect("the test"));
    }
}
