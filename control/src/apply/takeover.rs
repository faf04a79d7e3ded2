//! Removes existing devices that are in the way of ours.
//!
//! A host that ran flannel has a kernel tunnel with the name of ours. flannel itself replaces a device of its
//! name whose settings do not fit, and so do we; its MAC address is kept, so that peers need not learn a new
//! one. Devices left by a run with another configuration are removed as well. A device of any other kind is
//! left alone.

use model::backend::Backend;
use model::net_config::NetConfig;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use wire::addr::Mac;

use super::links::alias;
use crate::netlink::{Netlink, NetlinkError, find_link, is_kind, link_infos, remove_link};
use crate::plan::{Identity, Outline};

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

/// Removes flannel's kernel devices that have the names of ours. Also removes our devices that no process has
/// open and that are not part of the outline: those listed in `left`, and those with the alias `label`.
pub async fn make(
    netlink: &Netlink,
    outline: &Outline,
    left: &[String],
    label: &str,
) -> Result<(), NetlinkError> {
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
    let mut ours = Vec::new();
    let is_ours = |link: &LinkMessage| {
        let listed = name(link).is_some_and(|name| left.iter().any(|device| device == name));
        let idle = is_kind(link, InfoKind::Tun) && !link.header.flags.contains(LinkFlags::LowerUp);
        idle && (listed || alias(link) == Some(label))
    };
    let what = || "list the host's devices".to_owned();
    let keep = |link: LinkMessage| ours.extend(Some(link).filter(is_ours));
    netlink.list(what, |handle| handle.link().get().execute(), keep).await?;
    for link in &ours {
        let Some(device) = name(link).filter(|device| !wanted.contains(device)) else { continue };
        tracing::info!(%device, "removing the device of an earlier configuration");
        remove_link(netlink, device, link).await?;
    }
    Ok(())
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
