//! What stands where our devices are to stand.
//!
//! A host that ran stock flannel has a kernel tunnel of the very name. flannel itself replaces a device of
//! its name that does not fit, and so do we; its link address goes on, so that peers need not learn a new
//! one. Devices that a run of ours with another configuration has left go too. A device of another kind is
//! nobody's to touch.

use model::backend::Backend;
use model::net_config::NetConfig;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use wire::addr::Mac;

use crate::netlink::{NetlinkError, find_link, is_kind, link_infos, remove_link};
use crate::plan::{Identity, Outline};

/// Link addresses of kernel tunnels in whose place we come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Of the IPv4 overlay.
    pub mac: Option<Mac>,
    /// Of the IPv6 overlay.
    pub mac_v6: Option<Mac>,
}

impl Found {
    /// Replaces the MAC addresses of `identity` by those that were found.
    pub fn over(&self, identity: &Identity) -> Identity {
        Identity { mac: self.mac.unwrap_or(identity.mac), mac_v6: self.mac_v6.unwrap_or(identity.mac_v6) }
    }
}

/// Looks for the link addresses of flannel's kernel devices.
pub async fn look(netlink: &Handle, config: &NetConfig) -> Result<Found, NetlinkError> {
    let Backend::Vxlan(vxlan) = &config.backend else { return Ok(Found::default()) };
    let mut found = Found::default();
    for (prefix, mac) in [("flannel.", &mut found.mac), ("flannel-v6.", &mut found.mac_v6)] {
        let device = format!("{prefix}{}", vxlan.vni);
        let link = find_link(netlink, &device).await?.filter(|link| is_vxlan(link, vxlan.vni.get()));
        *mac = link.as_ref().and_then(address);
    }
    Ok(found)
}

/// Removes flannel's kernel devices that have the names of ours, and devices of our own that `left` names,
/// that nobody has open and that have no place in the outline.
pub async fn make(netlink: &Handle, outline: &Outline, left: &[String]) -> Result<(), NetlinkError> {
    let wanted: Vec<&str> = outline.tunnels.iter().map(|tunnel| tunnel.device.as_str()).collect();
    for tunnel in &outline.tunnels {
        let of_flannel = |link: &LinkMessage| match tunnel.format {
            path::Format::Vxlan(vxlan) => is_vxlan(link, vxlan.vni.get()),
            path::Format::Ipip(_) => is_kind(link, InfoKind::IpTun),
            path::Format::Wireguard => is_kind(link, InfoKind::Wireguard),
            path::Format::Udp => false,
        };
        if let Some(link) = find_link(netlink, &tunnel.device).await?.filter(of_flannel) {
            tracing::info!(device = %tunnel.device, "the kernel's tunnel makes room for ours");
            remove_link(netlink, &tunnel.device, &link).await?;
        }
    }
    for device in left.iter().filter(|device| !wanted.contains(&device.as_str())) {
        let idle = |link: &LinkMessage| {
            is_kind(link, InfoKind::Tun) && !link.header.flags.contains(LinkFlags::LowerUp)
        };
        if let Some(link) = find_link(netlink, device).await?.filter(idle) {
            tracing::info!(%device, "removing the device of an earlier configuration");
            remove_link(netlink, device, &link).await?;
        }
    }
    Ok(())
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
