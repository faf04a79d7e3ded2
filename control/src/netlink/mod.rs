//! The rtnetlink connection, and errors that name the failed request.
//!
//! The connection belongs to the network namespace of the thread that opened it. Only this module,
//! `underlay`, `apply` and `traffic` know netlink's message types; everything else works on plain values.

mod changes;
mod connection;
mod error;

use std::net::IpAddr;

use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

pub use self::changes::Changes;
pub use self::connection::Netlink;
pub use self::error::NetlinkError;

/// Looks up the device of this name; `None` if there is none.
pub async fn find_link(netlink: &Netlink, device: &str) -> Result<Option<LinkMessage>, NetlinkError> {
    let mut found = None;
    let what = || format!("look at {device}");
    let look = |handle: &Handle| handle.link().get().match_name(device.to_owned()).execute();
    match netlink.list(what, look, |link| found = found.take().or(Some(link))).await {
        Ok(()) => Ok(found),
        Err(error) if error.errno() == Some(nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a device that was looked up by this name.
pub async fn remove_link(netlink: &Netlink, device: &str, link: &LinkMessage) -> Result<(), NetlinkError> {
    let index = link.header.index;
    let what = || format!("remove the device {device}");
    netlink.ask(what, async |handle| handle.link().del(index).execute().await).await
}

/// Lists the addresses of all devices.
pub async fn addresses(
    netlink: &Netlink,
    what: impl Fn() -> String,
) -> Result<Vec<AddressMessage>, NetlinkError> {
    let mut addresses = Vec::new();
    netlink.list(what, |handle| handle.address().get().execute(), |each| addresses.push(each)).await?;
    Ok(addresses)
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
