//! Kernel routes that lead into a tunnel device, or straight to a peer by the underlay's interface.
//!
//! Ours are those in the main table with protocol boot that leave by a device of the plan and have the form
//! that the plan gives routes there. Into a tunnel: they lie in the cluster network, or lead through the base
//! address of their destination. By the underlay's interface, which is not ours: they lie in the cluster
//! network, are as long as a node's subnet and have a gateway, or this process put them there. Only those are
//! ever removed; a route is put with replace, as flannel does.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures::{StreamExt, TryStreamExt, stream};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::cover;
use crate::netlink::NetlinkError;
use crate::plan::{Place, Route};
use crate::underlay::address_of;

/// Requests put to the kernel before the first answer is read. One at a time, ten thousand routes take
/// seconds; all at once, the answers overrun the socket's buffer.
const IN_FLIGHT: usize = 64;

/// The routes wanted by one device.
#[derive(Debug)]
pub struct Share<'a> {
    /// Its name, for messages.
    pub device: &'a str,
    /// The kernel's number for it.
    pub index: u32,
    /// Which of its routes are ours.
    pub scope: Scope<'a>,
    /// The routes.
    pub routes: &'a [Route],
}

/// Which routes by a device are ours.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The device is a tunnel of ours over the cluster networks of these places; gateways are on its link.
    Tunnel(&'a [Place]),
    /// The device is the host's.
    Underlay {
        /// Where our routes can lie.
        places: &'a [Place],
        /// Those we put there earlier.
        put: &'a BTreeSet<Route>,
    },
}

/// One step towards the plan; the number is that of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add the route, or replace the one to the same destination.
    Put(usize, Route),
    /// Remove the route.
    Remove(usize, Route),
}

/// What [`apply`] did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Changes made.
    pub changed: usize,
    /// Changes the kernel refused. One peer's bad route does not keep the others waiting.
    pub failures: Vec<NetlinkError>,
}

impl Share<'_> {
    fn owns(&self, route: &Route) -> bool {
        let within =
            |cluster: IpNetwork| cluster.contains(route.to.ip()) && route.to.prefix() >= cluster.prefix();
        match self.scope {
            Scope::Tunnel(places) => {
                places.iter().any(|place| within(place.cluster)) || route.via == Some(route.to.network())
            }
            Scope::Underlay { places, put } => {
                let formed = |place: &Place| {
                    within(place.cluster) && route.to.prefix() == place.subnet.prefix() && route.via.is_some()
                };
                places.iter().any(formed) || put.contains(route)
            }
        }
    }

    fn has_family(&self, ipv6: bool) -> bool {
        match self.scope {
            Scope::Tunnel(places) => lies(places, ipv6),
            Scope::Underlay { places, put } => {
                lies(places, ipv6) || put.iter().any(|route| route.to.is_ipv6() == ipv6)
            }
        }
    }
}

fn lies(places: &[Place], ipv6: bool) -> bool {
    places.iter().any(|place| place.cluster.is_ipv6() == ipv6)
}

/// Our routes, each with the number of the share it belongs to.
pub async fn observe(
    netlink: &Handle,
    shares: &[Share<'_>],
) -> Result<BTreeSet<(usize, Route)>, NetlinkError> {
    let mut ours = BTreeSet::new();
    for ipv6 in [false, true] {
        if !shares.iter().any(|share| share.has_family(ipv6)) {
            continue;
        }
        let query = match ipv6 {
            false => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            true => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut routes = Box::pin(netlink.route().get(query).execute());
        while let Some(message) =
            routes.try_next().await.map_err(|error| NetlinkError::from_rtnetlink("list the routes", error))?
        {
            let Some((index, route)) = candidate(&message) else { continue };
            let owner = shares.iter().position(|share| share.index == index && share.owns(&route));
            ours.extend(owner.map(|share| (share, route)));
        }
    }
    Ok(ours)
}

/// What separates the kernel from the plan: additions first, so that no subnet is without a route between.
/// A route that moves to another device is replaced, not removed.
pub fn diff(observed: &BTreeSet<(usize, Route)>, shares: &[Share<'_>]) -> Vec<Change> {
    let wanted: BTreeSet<(usize, Route)> = shares
        .iter()
        .enumerate()
        .flat_map(|(number, share)| share.routes.iter().map(move |route| (number, *route)))
        .collect();
    let replaced: BTreeSet<IpNetwork> = wanted.iter().map(|(_, route)| route.to).collect();
    let put = wanted.difference(observed).map(|(share, route)| Change::Put(*share, *route));
    let stale = observed.difference(&wanted).filter(|(_, route)| !replaced.contains(&route.to));
    put.chain(stale.map(|(share, route)| Change::Remove(*share, *route))).collect()
}

/// Observes the routes of all shares and changes what differs.
pub async fn apply(netlink: &Handle, shares: &[Share<'_>]) -> Result<Outcome, NetlinkError> {
    let observed = observe(netlink, shares).await?;
    let (put, remove): (Vec<_>, Vec<_>) =
        diff(&observed, shares).into_iter().partition(|change| matches!(change, Change::Put(..)));
    let mut outcome = Outcome::default();
    let covered = cover::put(netlink, shares, &put).await;
    let refused = make_all(netlink, shares, put, &mut outcome).await;
    // IPv6 takes no gateway on the link of one device while a route leads to it by another (net/ipv6/route.c,
    // ip6_route_check_nh_onlink), so there the old route goes first.
    let (blocked, refused): (Vec<_>, Vec<_>) =
        refused.into_iter().partition(|(change, _)| blockers(&observed, change).next().is_some());
    let blockers = blocked.iter().flat_map(|(change, _)| blockers(&observed, change)).collect();
    let again = blocked.iter().map(|(change, _)| *change).collect();
    for changes in [blockers, again, remove, cover::removals(&covered)] {
        let refused = make_all(netlink, shares, changes, &mut outcome).await;
        outcome.failures.extend(refused.into_iter().map(|(_, error)| error));
    }
    outcome.failures.extend(refused.into_iter().map(|(_, error)| error));
    Ok(outcome)
}

/// The removals of what is to be replaced by an IPv6 route by another device.
fn blockers(observed: &BTreeSet<(usize, Route)>, change: &Change) -> impl Iterator<Item = Change> {
    let (Change::Put(share, wanted) | Change::Remove(share, wanted)) = *change;
    let in_the_way = observed
        .iter()
        .filter(move |(other, route)| wanted.to.is_ipv6() && *other != share && route.to == wanted.to);
    in_the_way.map(|(share, route)| Change::Remove(*share, *route))
}

/// Makes the changes, many at a time; those the kernel refused come back.
async fn make_all(
    netlink: &Handle,
    shares: &[Share<'_>],
    changes: Vec<Change>,
    outcome: &mut Outcome,
) -> Vec<(Change, NetlinkError)> {
    let requests = changes.into_iter().map(async |change| (change, make(netlink, shares, change).await));
    let mut answers = stream::iter(requests).buffer_unordered(IN_FLIGHT);
    let mut refused = Vec::new();
    while let Some((change, answer)) = answers.next().await {
        match answer {
            Ok(()) => outcome.changed += 1,
            Err(error) => refused.push((change, error)),
        }
    }
    refused
}

async fn make(netlink: &Handle, shares: &[Share<'_>], change: Change) -> Result<(), NetlinkError> {
    let (Change::Put(share, route) | Change::Remove(share, route)) = change;
    let Some(Share { device, index, scope, .. }) = shares.get(share) else { return Ok(()) };
    let onlink = matches!(scope, Scope::Tunnel(_));
    let message = message(*index, route, onlink);
    let (verb, result) = match change {
        Change::Put(..) => ("add", netlink.route().add(message).replace().execute().await),
        Change::Remove(..) => ("remove", netlink.route().del(message).execute().await),
    };
    result.map_err(|error| {
        NetlinkError::from_rtnetlink(format!("{verb} the route {} dev {device}", describe(route)), error)
    })
}

/// The device and the route of a message, if it may be ours.
fn candidate(message: &RouteMessage) -> Option<(u32, Route)> {
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
            RouteAttribute::Destination(address) => to = address_of(address),
            RouteAttribute::Gateway(address) => via = address_of(address),
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    let to = IpNetwork::new(to?, header.destination_prefix_length).ok()?;
    let link_scope = to.is_ipv4() && header.scope == RouteScope::Link;
    Some((out?, Route { to, via, link_scope }))
}

/// A route by a device of this number; `onlink` takes its gateway to be on the link.
pub(super) fn message(index: u32, route: Route, onlink: bool) -> RouteMessage {
    let mut message = match route.to {
        IpNetwork::V4(to) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.network(), to.prefix()).build()
        }
        IpNetwork::V6(to) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to.network(), to.prefix()).build()
        }
    };
    message.header.protocol = RouteProtocol::Boot;
    if route.link_scope {
        message.header.scope = RouteScope::Link;
    }
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(gateway) = route.via {
        if onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message
}

fn describe(route: Route) -> String {
    match route.via {
        Some(via) => format!("{} via {via}", route.to),
        None => route.to.to_string(),
    }
}
