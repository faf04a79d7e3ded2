//! One rtnetlink connection, and errors that say what was being asked of the kernel.
//!
//! The connection belongs to the network namespace of the thread that opened it. Everything above
//! works on plain values; only this module, `underlay` and `apply` know netlink's message types.

mod changes;
mod error;

use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

pub use self::changes::Changes;
pub use self::error::NetlinkError;

/// Opens a connection in the calling thread's network namespace and drives it on the running tokio runtime.
pub fn connect() -> Result<Handle, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Connect)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The device of this name, or `None` if there is none.
pub async fn find_link(netlink: &Handle, device: &str) -> Result<Option<LinkMessage>, NetlinkError> {
    match netlink.link().get().match_name(device.to_owned()).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(error) => {
            let error = NetlinkError::from_rtnetlink(format!("look at {device}"), error);
            if error.errno() == Some(nix::libc::ENODEV) { Ok(None) } else { Err(error) }
        }
    }
}

/// Removes a device that was found by this name.
pub async fn remove_link(netlink: &Handle, device: &str, link: &LinkMessage) -> Result<(), NetlinkError> {
    let request = netlink.link().del(link.header.index).execute().await;
    request.map_err(|error| NetlinkError::from_rtnetlink(format!("remove the device {device}"), error))
}

/// What the kernel says of a virtual device beyond what all have.
pub fn link_infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten()
}

/// Whether a device is of this kind.
pub fn is_kind(link: &LinkMessage, kind: InfoKind) -> bool {
    link_infos(link).any(|info| *info == LinkInfo::Kind(kind.clone()))
}

/// The address that this host has by `message`. On a point-to-point link IFA_ADDRESS is the far end and
/// IFA_LOCAL our own (if_addr.h).
pub fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    local.or(any)
}
