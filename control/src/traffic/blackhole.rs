//! A route that drops packets to unassigned addresses of this node's subnet, so that they do not leave by the
//! default route. For set-ups where each pod has its own route.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use nix::libc::{EEXIST, ESRCH};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::netlink::NetlinkError;

/// Ensures that there is a route to `subnet`. Returns true if it had to be added.
///
/// Does not list the routes first: the kernel rejects a second route to the same network.
pub async fn ensure(netlink: &Handle, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let added = netlink.route().add(message(subnet)).execute().await;
    let added = added.map_err(|error| NetlinkError::from_rtnetlink(format!("add blackhole {subnet}"), error));
    match added {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns true if the route to `subnet` is a blackhole; it is not where a bridge has the whole subnet.
pub async fn is_there(netlink: &Handle, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let query = match subnet {
        IpNetwork::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpNetwork::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    let mut routes = Box::pin(netlink.route().get(query).execute());
    let failed = |error| NetlinkError::from_rtnetlink("list the routes", error);
    while let Some(route) = routes.try_next().await.map_err(failed)? {
        if is_ours(&route, subnet) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the blackhole route. Returns false if there was none.
pub async fn remove(netlink: &Handle, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let removed = netlink.route().del(message(subnet)).execute().await;
    match removed.map_err(|error| NetlinkError::from_rtnetlink(format!("remove blackhole {subnet}"), error)) {
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
