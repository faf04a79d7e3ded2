//! Kernel routes into a tunnel device, or directly to a peer through the underlay interface: observes,
//! compares and changes them. [`share`](super::share) defines which of them are ours.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::{StreamExt, stream};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::cover;
use super::share::{Change, Scope, Share, message};
use crate::netlink::{Netlink, NetlinkError};
use crate::plan::Route;
use crate::underlay::address_of;

/// Number of requests in flight. One at a time, ten thousand routes take seconds; all at once, the answers
/// overrun the socket's buffer.
const IN_FLIGHT: usize = 64;
/// The metric that takes precedence over all others; 0 stands for the default in IPv6.
const BEST: u32 = 1;

/// The outcome of [`apply`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// Number of changes made.
    pub changed: usize,
    /// The kernel's errors. One peer's bad route does not hold up the others.
    pub failures: Vec<NetlinkError>,
}

/// Lists our routes, each with the index of the share that it belongs to.
pub async fn observe(
    netlink: &Netlink,
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
        let what = || "list the routes".to_owned();
        let take = |message| {
            let Some((index, route)) = candidate(&message) else { return };
            let owner = shares.iter().position(|share| share.index == index && share.owns(&route));
            ours.extend(owner.map(|share| (share, route)));
        };
        netlink.list(what, |handle| handle.route().get(query).execute(), take).await?;
    }
    Ok(ours)
}

/// Returns the changes that make the kernel match the plan: additions first, so that no subnet is ever left
/// without a route. A route that moves to another device is replaced, not removed.
pub fn diff(observed: &BTreeSet<(usize, Route)>, shares: &[Share<'_>]) -> Vec<Change> {
    let wanted: BTreeSet<(usize, Route)> = shares
        .iter()
        .enumerate()
        .flat_map(|(number, share)| share.routes.iter().map(move |route| (number, *route)))
        .collect();
    let replaced: BTreeSet<IpNetwork> = wanted.iter().map(|(_, route)| route.to).collect();
    let missing = wanted.difference(observed).map(|(share, route)| Change::Put(*share, *route));
    let stale = observed.difference(&wanted).filter(|(_, route)| !replaced.contains(&route.to));
    missing.chain(stale.map(|(share, route)| Change::Remove(*share, *route))).collect()
}

/// Observes the routes of all shares and changes what differs.
pub async fn apply(netlink: &Netlink, shares: &[Share<'_>]) -> Result<Outcome, NetlinkError> {
    let observed = observe(netlink, shares).await?;
    let (put, remove): (Vec<_>, Vec<_>) =
        diff(&observed, shares).into_iter().partition(|change| matches!(change, Change::Put(..)));
    let mut outcome = Outcome::default();
    let covered = cover::add(netlink, shares, &put).await;
    let rejected = make_all(netlink, shares, put, &mut outcome).await;
    let rejected = retry_on_link(netlink, shares, rejected, &mut outcome).await;
    for changes in [remove, cover::removals(&covered)] {
        let rejected = make_all(netlink, shares, changes, &mut outcome).await;
        outcome.failures.extend(rejected.into_iter().map(|(_, error)| error));
    }
    outcome.failures.extend(rejected.into_iter().map(|(_, error)| error));
    Ok(outcome)
}

/// Makes rejected changes again that IPv6 rejects because a route leads to their gateway through another
/// device: another program's over the pod network, or ours that is to be replaced. onlink does not help
/// (net/ipv6/route.c, `ip6_route_check_nh_onlink`). Meanwhile a route for the gateway alone leads into the
/// device; the route through the gateway keeps working without it. One left behind by a crash looks like any
/// stale route of ours. Returns the changes that are still rejected.
async fn retry_on_link(
    netlink: &Netlink,
    shares: &[Share<'_>],
    rejected: Vec<(Change, NetlinkError)>,
    outcome: &mut Outcome,
) -> Vec<(Change, NetlinkError)> {
    let (retried, mut rejected): (Vec<_>, Vec<_>) =
        rejected.into_iter().partition(|(_, error)| error.errno() == Some(nix::libc::EINVAL));
    let gateways: Vec<RouteMessage> =
        retried.iter().filter_map(|(change, _)| gateway_on_link(shares, change)).collect();
    each(netlink, &gateways, async |handle, message| handle.route().add(message).execute().await).await;
    let changes = retried.into_iter().map(|(change, _)| change).collect();
    rejected.extend(make_all(netlink, shares, changes, outcome).await);
    each(netlink, &gateways, async |handle, message| handle.route().del(message).execute().await).await;
    rejected
}

/// Returns the route into the tunnel for the gateway of an IPv6 route, better than any other to the gateway.
fn gateway_on_link(shares: &[Share<'_>], change: &Change) -> Option<RouteMessage> {
    let Change::Put(share, Route { via: Some(gateway @ IpAddr::V6(_)), .. }) = *change else { return None };
    let Share { index, scope: Scope::Tunnel(_), .. } = shares.get(share)? else { return None };
    let mut message = message(*index, Route::into_device(gateway.into()), false);
    message.attributes.push(RouteAttribute::Priority(BEST));
    Some(message)
}

/// Sends a request for each route concurrently. Whether it was of use shows when the changes are retried.
async fn each(
    netlink: &Netlink,
    routes: &[RouteMessage],
    request: impl AsyncFn(Handle, RouteMessage) -> Result<(), rtnetlink::Error>,
) {
    let what = || "change the route to a gateway".to_owned();
    let requests = routes
        .iter()
        .map(async |message| netlink.ask(what, async |handle| request(handle, message.clone()).await).await);
    stream::iter(requests).buffer_unordered(IN_FLIGHT).for_each(async |_| {}).await;
}

/// Makes the changes concurrently. Returns those that the kernel rejected. If it does not answer, the rest is
/// left to the next round, since each request would have to wait.
async fn make_all(
    netlink: &Netlink,
    shares: &[Share<'_>],
    changes: Vec<Change>,
    outcome: &mut Outcome,
) -> Vec<(Change, NetlinkError)> {
    let requests =
        changes.into_iter().map(async |change| (change, make_change(netlink, shares, change).await));
    let mut answers = stream::iter(requests).buffer_unordered(IN_FLIGHT);
    let mut rejected = Vec::new();
    while let Some((change, answer)) = answers.next().await {
        match answer {
            Ok(()) => outcome.changed += 1,
            Err(error) => {
                let answered = error.is_answer();
                rejected.push((change, error));
                if !answered {
                    break;
                }
            }
        }
    }
    rejected
}

async fn make_change(netlink: &Netlink, shares: &[Share<'_>], change: Change) -> Result<(), NetlinkError> {
    let (Change::Put(share, route) | Change::Remove(share, route)) = change;
    let Some(Share { device, index, scope, .. }) = shares.get(share) else { return Ok(()) };
    let onlink = matches!(scope, Scope::Tunnel(_));
    let message = message(*index, route, onlink);
    let verb = if matches!(change, Change::Put(..)) { "add" } else { "remove" };
    let what = || format!("{verb} the route {} dev {device}", describe(route));
    let make = async |handle: Handle| match change {
        Change::Put(..) => handle.route().add(message).replace().execute().await,
        Change::Remove(..) => handle.route().del(message).execute().await,
    };
    netlink.ask(what, make).await
}

/// Returns the interface index and the route of a message, if the route may be ours.
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

fn describe(route: Route) -> String {
    match route.via {
        Some(via) => format!("{} via {via}", route.to),
        None => route.to.to_string(),
    }
}
