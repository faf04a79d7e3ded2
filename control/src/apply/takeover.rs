//! Removes existing devices and routes that are in the way of ours.
//!
//! A host that ran flannel has a kernel tunnel with the name of ours. flannel itself replaces a device of its
//! name whose settings do not fit, and so do we; its MAC address is kept, so that peers need not learn a new
//! one. What a run with another configuration left, flannel's or ours, is removed as well: its routes to
//! single nodes would win over ours, and lead past a tunnel that encrypts. A device of any other kind is left
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::backend::Backend;
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use wire::addr::Mac;

use super::links::{self, alias};
use super::routes;
use super::share::{Scope, Share};
use crate::netlink::{self, Netlink, NetlinkError, find_link, is_kind, link_infos, own_address, remove_link};
use crate::plan::{Identity, Outline, Place, Plan};

/// The MAC addresses of the kernel tunnels that ours replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The address on the IPv4 overlay.
    pub mac: Option<Mac>,
    /// The address on the IPv6 overlay.
    pub mac_v6: Option<Mac>,
}

impl Found {
    /// Returns `identity` with the found MAC addresses in place of its own.
    pub fn over(&self, identity: &Identity) -> Identity {
        Identity { mac: self.mac.unwrap_or(identity.mac), mac_v6: self.mac_v6.unwrap_or(identity.mac_v6) }
    }
}

/// Reads the MAC addresses of flannel's kernel devices.
pub async fn look(netlink: &Netlink, config: &NetConfig) -> Result<Found, NetlinkError> {
    let Backend::Vxlan(vxlan) = &config.backend else { return Ok(Found::default()) };
    let mut found = Found::default();
    for (prefix, mac) in [("flannel.", &mut found.mac), ("flannel-v6.", &mut found.mac_v6)] {
        let device = format!("{prefix}{}", vxlan.vni);
        let link = find_link(netlink, &device).await?.filter(|link| is_vxlan(link, vxlan.vni.get()));
        *mac = link.as_ref().and_then(address);
    }
    Ok(found)
}

/// What an earlier run on this host may have left.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// Devices that this daemon's state file lists.
    pub devices: &'a [String],
    /// The alias of this daemon's devices.
    pub label: &'a str,
    /// The subnets that this host had, by its subnet file. flannel's kernel tunnels with an address in one of
    /// them belong to an earlier run on this host, and no others do.
    pub subnets: &'a [IpNetwork],
}

/// Returns the subnets of the previous subnet file. None for `extension`, whose commands make the operator's
/// own devices.
pub fn subnets(config: &NetConfig, recorded: Option<&Recorded>) -> Vec<IpNetwork> {
    if matches!(config.backend, Backend::Extension(_)) {
        return Vec::new();
    }
    let ipv4 = recorded.and_then(Recorded::subnet).map(IpNetwork::V4);
    let ipv6 = recorded.and_then(Recorded::ipv6_subnet).map(IpNetwork::V6);
    ipv4.into_iter().chain(ipv6).collect()
}

/// Removes flannel's kernel devices that have the names of ours, and those of another configuration. Also
/// removes our devices that no process has open and that are not part of the outline.
pub async fn make(netlink: &Netlink, outline: &Outline, left: Left<'_>) -> Result<(), NetlinkError> {
    let wanted: Vec<&str> = outline.tunnels.iter().map(|tunnel| tunnel.device.as_str()).collect();
    for tunnel in &outline.tunnels {
        let of_flannel = |link: &LinkMessage| match tunnel.format {
            path::Format::Vxlan(vxlan) => is_vxlan(link, vxlan.vni.get()),
            path::Format::Ipip(_) => is_kind(link, InfoKind::IpTun),
            path::Format::Wireguard => is_kind(link, InfoKind::Wireguard),
            path::Format::Udp => false,
        };
        if let Some(link) = find_link(netlink, &tunnel.device).await?.filter(of_flannel) {
            tracing::info!(device = %tunnel.device, "replacing the kernel's tunnel device");
            remove_link(netlink, &tunnel.device, &link).await?;
        }
    }
    let is_ours = |link: &LinkMessage| {
        let listed = name(link).is_some_and(|name| left.devices.iter().any(|device| device == name));
        let idle = is_kind(link, InfoKind::Tun) && !link.header.flags.contains(LinkFlags::LowerUp);
        idle && (listed || alias(link) == Some(left.label))
    };
    let mut candidates = Vec::new();
    let what = || "list the host's devices".to_owned();
    let keep = |link: LinkMessage| {
        candidates.extend(Some(link).filter(|link| is_ours(link) || is_kernel_tunnel_of_flannel(link)));
    };
    netlink.list(what, |handle| handle.link().get().execute(), keep).await?;
    candidates.retain(|link| name(link).is_some_and(|name| !wanted.contains(&name)));
    if candidates.is_empty() {
        return Ok(());
    }
    let addresses = addresses(netlink).await?;
    for link in &candidates {
        let held = addresses.get(&link.header.index).map(Vec::as_slice).unwrap_or_default();
        if !is_ours(link) && !is_within(held, left.subnets) {
            continue;
        }
        let device = name(link).unwrap_or_default();
        tracing::info!(%device, "removing the device of an earlier configuration");
        remove_link(netlink, device, link).await?;
    }
    Ok(())
}

/// Removes the routes to nodes that a run without a tunnel left on the underlay. To be called once ours are
/// there. Does nothing where the plan has such routes itself.
pub async fn remove_routes(netlink: &Netlink, interface: &str, plan: &Plan) -> Result<(), NetlinkError> {
    if plan.tunnels.is_empty() || plan.direct.is_some() {
        return Ok(());
    }
    let Some(index) = links::index(netlink, interface).await? else { return Ok(()) };
    let places: Vec<Place> = plan.tunnels.iter().flat_map(|tunnel| tunnel.link.places.clone()).collect();
    let scope = Scope::Underlay { places: &places, installed: &BTreeSet::new() };
    let outcome = routes::apply(netlink, &[Share { device: interface, index, scope, routes: &[] }]).await?;
    if outcome.changed > 0 {
        tracing::info!(%interface, routes = outcome.changed, "removed routes of an earlier configuration");
    }
    outcome.failures.into_iter().next().map_or(Ok(()), Err)
}

/// The addresses of each device, by its index.
async fn addresses(netlink: &Netlink) -> Result<BTreeMap<u32, Vec<IpAddr>>, NetlinkError> {
    let mut by_device: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for message in netlink::addresses(netlink, || "list the host's addresses".to_owned()).await? {
        by_device.entry(message.header.index).or_default().extend(own_address(&message));
    }
    Ok(by_device)
}

fn is_within(addresses: &[IpAddr], subnets: &[IpNetwork]) -> bool {
    addresses.iter().any(|address| subnets.iter().any(|subnet| subnet.contains(*address)))
}

/// Tells by name and kind whether flannel has made the device. With vxlan the name has the VNI.
fn is_kernel_tunnel_of_flannel(link: &LinkMessage) -> bool {
    let Some(name) = name(link) else { return false };
    match name {
        "flannel.ipip" => is_kind(link, InfoKind::IpTun),
        "flannel-wg" | "flannel-wg-v6" => is_kind(link, InfoKind::Wireguard),
        _ => {
            let vni = name.strip_prefix("flannel.").or_else(|| name.strip_prefix("flannel-v6."));
            vni.and_then(|vni| vni.parse().ok()).is_some_and(|vni| is_vxlan(link, vni))
        }
    }
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_vxlan(link: &LinkMessage, vni: u32) -> bool {
    link_infos(link).any(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(settings)) => settings.contains(&InfoVxlan::Id(vni)),
        _ => false,
    })
}

fn address(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => Some(Mac::new(bytes.as_slice().try_into().ok()?)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, infos: Vec<LinkInfo>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(infos)];
        link
    }

    #[test]
    fn flannels_kernel_tunnels_are_known_by_name_and_kind() {
        let vxlan = |vni| LinkInfo::Data(InfoData::Vxlan(vec![InfoVxlan::Id(vni)]));
        for (name, infos, flannels) in [
            ("flannel.1", vec![LinkInfo::Kind(InfoKind::Vxlan), vxlan(1)], true),
            ("flannel-v6.4096", vec![LinkInfo::Kind(InfoKind::Vxlan), vxlan(4096)], true),
            ("flannel.1", vec![LinkInfo::Kind(InfoKind::Vxlan), vxlan(2)], false),
            ("flannel.x", vec![LinkInfo::Kind(InfoKind::Vxlan), vxlan(1)], false),
            ("vxlan.1", vec![LinkInfo::Kind(InfoKind::Vxlan), vxlan(1)], false),
            ("flannel.1", vec![LinkInfo::Kind(InfoKind::Bridge)], false),
            ("flannel.ipip", vec![LinkInfo::Kind(InfoKind::IpTun)], true),
            ("tunl0", vec![LinkInfo::Kind(InfoKind::IpTun)], false),
            ("flannel-wg", vec![LinkInfo::Kind(InfoKind::Wireguard)], true),
            ("flannel-wg-v6", vec![LinkInfo::Kind(InfoKind::Wireguard)], true),
            ("wg0", vec![LinkInfo::Kind(InfoKind::Wireguard)], false),
        ] {
            assert_eq!(is_kernel_tunnel_of_flannel(&link(name, infos.clone())), flannels, "{name} {infos:?}");
        }
    }

    #[test]
    fn an_earlier_run_on_this_host_shows_by_the_subnet_that_it_had() {
        let config = |backend: &str| {
            let text = format!(r#"{{"Network":"10.0.0.0/8","Backend":{backend}}}"#);
            model::net_config::parse(&text).expect("a configuration").0
        };
        let recorded = model::subnet_env::parse(
            "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.3.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\n",
        );
        let had = subnets(&config(r#"{"Type":"udp"}"#), Some(&recorded));
        for (address, within) in [
            ("10.9.3.0", true),
            ("fd00:244:0:7::", true),
            // Of another flannel, whose network is a part of ours.
            ("10.9.4.0", false),
            ("10.5.3.0", false),
            ("fd00:244:0:8::", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_within(&[address.parse().expect("an address")], &had), within, "{address}");
        }
        assert!(!is_within(&[], &had));
        assert_eq!(subnets(&config(r#"{"Type":"udp"}"#), None), [], "nothing ran before");
        let commands = subnets(&config(r#"{"Type":"extension"}"#), Some(&recorded));
        assert_eq!(commands, [], "the operator's own devices may have any name");
    }
}
