//! The rtnetlink connection, and errors that name the failed request.
//!
//! The connection belongs to the network namespace of the thread that opened it. Only this module,
//! `underlay`, `apply` and `traffic` know netlink's message types; everything else works on plain values.

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

/// Looks up the device of this name; `None` if there is none.
pub async fn find_link(netlink: &Handle, device: &str) -> Result<Option<LinkMessage>, NetlinkError> {
    match netlink.link().get().match_name(device.to_owned()).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(error) => {
            let error = NetlinkError::from_rtnetlink(format!("look at {device}"), error);
            if error.errno() == Some(nix::libc::ENODEV) { Ok(None) } else { Err(error) }
        }
    }
}

/// Removes a device that was looked up by this name.
pub async fn remove_link(netlink: &Handle, device: &str, link: &LinkMessage) -> Result<(), NetlinkError> {
    let request = netlink.link().del(link.header.index).execute().await;
    request.map_err(|error| NetlinkError::from_rtnetlink(format!("remove the device {device}"), error))
}

/// Returns the attributes that are specific to the kind of a virtual device.
pub fn link_infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten()
}

/// Tells whether a device is of this kind.
pub fn is_kind(link: &LinkMessage, kind: InfoKind) -> bool {
    link_infos(link).any(|info| *info == LinkInfo::Kind(kind.clone()))
}

/// Returns this host's address in `message`. On a point-to-point link, IFA_ADDRESS is the remote address and
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
