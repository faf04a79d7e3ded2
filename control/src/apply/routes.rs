//! Kernel routes that lead into a tunnel device.
//!
//! Ours are those in the main table with protocol boot that leave by the device and either lie in the
//! cluster network or have the form of a peer's route, through the base address of its destination. Only
//! those are ever removed; a peer's route is put with replace, as flannel does.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::{StreamExt, TryStreamExt, stream};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::netlink::NetlinkError;
use crate::plan::Route;

/// Requests put to the kernel before the first answer is read. One at a time, ten thousand routes take
/// seconds; all at once, the answers overrun the socket's buffer.
const IN_FLIGHT: usize = 64;

/// One step towards the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add the route, or replace the one to the same destination.
    Put(Route),
    /// Remove the route.
    Remove(Route),
}

/// What [`apply`] did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Changes made.
    pub changed: usize,
    /// Changes the kernel refused. One peer's bad route does not keep the others waiting.
    pub failures: Vec<NetlinkError>,
}

/// Our routes out of the device, for the family of `cluster`.
pub async fn observe(
    netlink: &Handle,
    index: u32,
    cluster: IpNetwork,
) -> Result<BTreeSet<Route>, NetlinkError> {
    let query = match cluster {
        IpNetwork::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpNetwork::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    let mut ours = BTreeSet::new();
    let mut routes = Box::pin(netlink.route().get(query).execute());
    while let Some(message) =
        routes.try_next().await.map_err(|error| NetlinkError::from_rtnetlink("list the routes", error))?
    {
        ours.extend(ours_from(&message, index, cluster));
    }
    Ok(ours)
}

/// What separates the kernel from the plan: additions first, so that no subnet is without a route between.
pub fn diff(observed: &BTreeSet<Route>, desired: &[Route]) -> Vec<Change> {
    let wanted: BTreeSet<Route> = desired.iter().copied().collect();
    let replaced: BTreeSet<IpNetwork> = wanted.iter().map(|route| route.to).collect();
    let put = wanted.difference(observed).copied().map(Change::Put);
    let stale = observed.difference(&wanted).filter(|route| !replaced.contains(&route.to));
    put.chain(stale.copied().map(Change::Remove)).collect()
}

/// Observes the routes and changes what differs.
pub async fn apply(
    netlink: &Handle,
    device: &str,
    index: u32,
    cluster: IpNetwork,
    desired: &[Route],
) -> Result<Outcome, NetlinkError> {
    let observed = observe(netlink, index, cluster).await?;
    let mut outcome = Outcome::default();
    let (put, remove): (Vec<_>, Vec<_>) =
        diff(&observed, desired).into_iter().partition(|change| matches!(change, Change::Put(_)));
    for changes in [put, remove] {
        let requests = changes.into_iter().map(|change| make(netlink, device, index, change));
        let mut answers = stream::iter(requests).buffer_unordered(IN_FLIGHT);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(()) => outcome.changed += 1,
                Err(error) => outcome.failures.push(error),
            }
        }
    }
    Ok(outcome)
}

async fn make(netlink: &Handle, device: &str, index: u32, change: Change) -> Result<(), NetlinkError> {
    let (verb, route, result) = match change {
        Change::Put(route) => {
            let request = netlink.route().add(message(index, route));
            ("add", route, request.replace().execute().await)
        }
        Change::Remove(route) => {
            ("remove", route, netlink.route().del(message(index, route)).execute().await)
        }
    };
    result.map_err(|error| {
        NetlinkError::from_rtnetlink(format!("{verb} the route {} dev {device}", describe(route)), error)
    })
}

fn ours_from(message: &RouteMessage, index: u32, cluster: IpNetwork) -> Option<Route> {
    let header = &message.header;
    let is_candidate = header.table == RouteHeader::RT_TABLE_MAIN
        && header.protocol == RouteProtocol::Boot
        && header.kind == RouteType::Unicast;
    if !is_candidate {
        return None;
    }
    let (mut to, mut via, mut out) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    let to = IpNetwork::new(to?, header.destination_prefix_length).ok()?;
    let in_cluster = cluster.contains(to.ip()) && to.prefix() >= cluster.prefix();
    (out == Some(index) && (in_cluster || via == Some(to.network()))).then_some(Route { to, via })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn message(index: u32, route: Route) -> RouteMessage {
    let mut message = match route.to {
        IpNetwork::V4(to) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.network(), to.prefix()).build()
        }
        IpNetwork::V6(to) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to.network(), to.prefix()).build()
        }
    };
    message.header.protocol = RouteProtocol::Boot;
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(gateway) = route.via {
        message.header.flags |= RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message
}

fn describe(route: Route) -> String {
    match route.via {
        Some(via) => format!("{} via {via} onlink", route.to),
        None => route.to.to_string(),
    }
}
