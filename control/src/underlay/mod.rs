//! The host's network that carries the tunnels: interfaces, addresses, MTUs and default routes.
//!
//! [`observe`] takes one snapshot over netlink; [`select`] chooses from the snapshot alone, so the choice can
//! be tested as a table of cases.

pub mod reach;
pub mod select;
pub mod sysctls;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::netlink::{self, Netlink, NetlinkError, own_address};

/// One snapshot of the host's network, in the kernel's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every interface of the namespace.
    pub interfaces: Vec<Interface>,
    /// Default routes of the main table, best first within a family.
    pub default_routes: Vec<DefaultRoute>,
    /// The route to the target of [`observe`], or why there is none.
    pub reached: Option<Result<Reached, String>>,
}

/// The kernel's route to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Index of the outgoing interface.
    pub interface: u32,
    /// The source address that the kernel would use.
    pub source: Option<IpAddr>,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface index.
    pub index: u32,
    /// The name, such as `eth0`.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The addresses of both families, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// One address of an interface, with the properties that rank it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Has link scope: usable on one segment only.
    pub link_scope: bool,
    /// Has no lifetime, unlike an address from DHCP or a router advertisement.
    pub permanent: bool,
    /// An IPv6 privacy address (RFC 8981); in IPv4 a secondary address.
    pub temporary: bool,
    /// Past its preferred lifetime, or rejected by duplicate address detection.
    pub deprecated: bool,
    /// An IPv4 address without a subnet, as programs that move addresses between hosts add it.
    pub alone: bool,
}

/// A default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Whether the destination is `::/0`.
    pub ipv6: bool,
    /// Index of the outgoing interface.
    pub interface: u32,
}

/// The chosen interface and its addresses in use; `None` for a family that is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Name of the interface.
    pub interface: String,
    /// The interface index.
    pub index: u32,
    /// The MTU in bytes when the interface was chosen; never 0.
    pub mtu: u32,
    /// The IPv4 addresses.
    pub ipv4: Option<Endpoint<Ipv4Addr>>,
    /// The IPv6 addresses.
    pub ipv6: Option<Endpoint<Ipv6Addr>>,
}

/// One family's addresses on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<A> {
    /// The source address of our datagrams: the public address if this host has it, since peers that learn
    /// addresses expect no other; behind a NAT the interface's own.
    pub source: A,
    /// The address that other nodes send to.
    pub public: A,
    /// The chosen interface's own address, whatever is published.
    pub local: A,
}

/// Reads the interfaces, addresses and default routes of the handle's namespace, and the route to `target`.
pub async fn observe(netlink: &Netlink, target: Option<IpAddr>) -> Result<Observed, NetlinkError> {
    let what = || "list the host's interfaces, addresses and routes".to_owned();
    let mut links: Vec<LinkMessage> = Vec::new();
    netlink.list(what, |handle| handle.link().get().execute(), |link| links.push(link)).await?;
    let addresses = netlink::addresses(netlink, what).await?;
    let mut default_routes = Vec::new();
    for query in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let ipv6 = query.header.address_family == AddressFamily::Inet6;
        // Filtered while streaming: of ten thousand routes one is kept.
        let mut routes: Vec<RouteMessage> = Vec::new();
        let keep = |route| routes.extend(Some(route).filter(is_default));
        match netlink.list(what, |handle| handle.route().get(query).execute(), keep).await {
            // A kernel without IPv6 has no IPv6 routes to list.
            Err(error) if !ipv6 || !error.is_answer() => return Err(error),
            _ => {}
        }
        routes.sort_by_key(metric);
        default_routes
            .extend(routes.iter().filter_map(outgoing).map(|interface| DefaultRoute { ipv6, interface }));
    }

    let mut interfaces: Vec<Interface> = links.iter().map(interface).collect();
    for message in &addresses {
        let owner = interfaces.iter_mut().find(|interface| interface.index == message.header.index);
        if let (Some(owner), Some(address)) = (owner, address(message)) {
            owner.addresses.push(address);
        }
    }
    let reached = match target {
        Some(target) => Some(reach(netlink, target).await?),
        None => None,
    };
    Ok(Observed { interfaces, default_routes, reached })
}

/// Asks the kernel for its route to an address.
async fn route_to(netlink: &Netlink, target: IpAddr) -> Result<Option<RouteMessage>, NetlinkError> {
    let query = match target {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    let (what, mut found) = (|| format!("find a route to {target}"), None);
    let ask = |handle: &Handle| handle.route().get(query).execute();
    Box::pin(netlink.list(what, ask, |route| found = found.take().or(Some(route)))).await?;
    Ok(found)
}

/// Fails if the kernel does not answer; the inner error says why it has no usable route.
async fn reach(netlink: &Netlink, target: IpAddr) -> Result<Result<Reached, String>, NetlinkError> {
    match route_to(netlink, target).await {
        Ok(Some(route)) => Ok(reached(&route, target)),
        Ok(None) => Ok(Err(format!("the kernel returned no route to {target}"))),
        Err(error) if error.is_answer() => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

fn reached(route: &RouteMessage, target: IpAddr) -> Result<Reached, String> {
    let interface = outgoing(route).ok_or_else(|| format!("the route to {target} has no interface"))?;
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    Ok(Reached { interface, source })
}

fn interface(message: &LinkMessage) -> Interface {
    let mut interface =
        Interface { index: message.header.index, name: String::new(), mtu: 0, addresses: Vec::new() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            _ => {}
        }
    }
    interface
}

fn address(message: &AddressMessage) -> Option<Address> {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or_else(|| {
        let narrow: AddressHeaderFlags = message.header.flags;
        AddressFlags::from_bits_retain(u32::from(narrow.bits()))
    });
    let ip = own_address(message)?;
    Some(Address {
        ip,
        alone: ip.is_ipv4() && message.header.prefix_len == 32,
        link_scope: message.header.scope == AddressScope::Link,
        permanent: flags.contains(AddressFlags::Permanent),
        temporary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.intersects(AddressFlags::Deprecated | AddressFlags::Dadfailed),
    })
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
        && route.header.table == RouteHeader::RT_TABLE_MAIN
        && route.header.kind == RouteType::Unicast
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

fn outgoing(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

pub(crate) fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
