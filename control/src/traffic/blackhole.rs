//! A route that drops packets to unassigned addresses of this node's subnet, so that they do not leave by the
//! default route. For set-ups where each pod has its own route.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use nix::libc::{EEXIST, ESRCH};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

use crate::netlink::{Netlink, NetlinkError};

/// Ensures that there is a route to `subnet`. Returns true if it had to be added.
///
/// Does not list the routes first: the kernel rejects a second route to the same network.
pub async fn ensure(netlink: &Netlink, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let what = || format!("add blackhole {subnet}");
    match netlink.ask(what, async |handle| handle.route().add(message(subnet)).execute().await).await {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns true if the route to `subnet` is a blackhole; it is not where a bridge has the whole subnet.
pub async fn is_there(netlink: &Netlink, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let query = match subnet {
        IpNetwork::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpNetwork::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    let (what, mut found) = (|| "list the routes".to_owned(), false);
    let take = |route| found |= is_ours(&route, subnet);
    netlink.list(what, |handle| handle.route().get(query).execute(), take).await?;
    Ok(found)
}

/// Removes the blackhole route. Returns false if there was none.
pub async fn remove(netlink: &Netlink, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let what = || format!("remove blackhole {subnet}");
    match netlink.ask(what, async |handle| handle.route().del(message(subnet)).execute().await).await {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

fn message(subnet: IpNetwork) -> RouteMessage {
    let mut message = match subnet {
        IpNetwork::V4(to) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.network(), to.prefix()).build()
        }
        IpNetwork::V6(to) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to.network(), to.prefix()).build()
        }
    };
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::BlackHole;
    message
}

fn is_ours(route: &RouteMessage, subnet: IpNetwork) -> bool {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    });
    route.header.table == RouteHeader::RT_TABLE_MAIN
        && route.header.kind == RouteType::BlackHole
        && route.header.destination_prefix_length == subnet.prefix()
        && to == Some(subnet.network())
}
