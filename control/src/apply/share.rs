//! Each device's share of the kernel's routes, and the changes to it.
//!
//! A route is ours if it is in the main table, has protocol boot, leaves through a device of the plan and has
//! the form of the plan's routes on that device. Into a tunnel: the destination lies in the cluster network,
//! or the gateway is the destination's base address. Through the underlay interface, which belongs to the
//! host: the destination lies in the cluster network, has the prefix length of a node subnet and has a
//! gateway; or this process added the route. No other route is ever removed. Routes are added with replace,
//! as flannel does.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope};

use crate::plan::{Place, Route};

/// The routes wanted on one device.
#[derive(Debug)]
pub struct Share<'a> {
    /// The device's name, for messages.
    pub device: &'a str,
    /// The device's interface index.
    pub index: u32,
    /// Which of the device's routes are ours.
    pub scope: Scope<'a>,
    /// The wanted routes.
    pub routes: &'a [Route],
}

/// Decides which routes on a device are ours.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The device is one of our tunnels, for the cluster networks of these places; gateways are on its link.
    Tunnel(&'a [Place]),
    /// The device belongs to the host.
    Underlay {
        /// Where our routes can lie.
        places: &'a [Place],
        /// The routes that this process added earlier.
        installed: &'a BTreeSet<Route>,
    },
}

/// One step towards the plan, with the index of the share that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add the route, replacing any other route to the same destination.
    Put(usize, Route),
    /// Remove the route.
    Remove(usize, Route),
}

impl Share<'_> {
    /// Returns true if a route on the device is ours.
    pub(super) fn owns(&self, route: &Route) -> bool {
        let within =
            |cluster: IpNetwork| cluster.contains(route.to.ip()) && route.to.prefix() >= cluster.prefix();
        match self.scope {
            Scope::Tunnel(places) => {
                places.iter().any(|place| within(place.cluster)) || route.via == Some(route.to.network())
            }
            Scope::Underlay { places, installed } => {
                let has_our_form = |place: &Place| {
                    within(place.cluster) && route.to.prefix() == place.subnet.prefix() && route.via.is_some()
                };
                places.iter().any(has_our_form) || installed.contains(route)
            }
        }
    }

    /// Returns true if any route of this family can be ours.
    pub(super) fn has_family(&self, ipv6: bool) -> bool {
        match self.scope {
            Scope::Tunnel(places) => any_of_family(places, ipv6),
            Scope::Underlay { places, installed } => {
                any_of_family(places, ipv6) || installed.iter().any(|route| route.to.is_ipv6() == ipv6)
            }
        }
    }
}

fn any_of_family(places: &[Place], ipv6: bool) -> bool {
    places.iter().any(|place| place.cluster.is_ipv6() == ipv6)
}

/// Builds a route through the device with this index; `onlink` declares its gateway to be on the link.
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
