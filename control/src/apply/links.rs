//! Tunnel devices: MTU, queue length, addresses, up.
//!
//! The engine opens and closes the TUN; this module makes it look as planned. It touches nothing but the
//! named device, and on it only what the plan speaks of: an address outside the cluster network that
//! somebody else put there stays.

use std::net::IpAddr;
use std::path::PathBuf;
use std::{fs, io};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

use crate::netlink::{NetlinkError, find_link, own_address};
use crate::plan::Link;

/// Packets the kernel may hold for us in a TUN queue. The ring counts packets, not bytes, and drops when it
/// is full; the default of 500 is 8 ms of 64-byte packets at 60,000 a second, less than one scheduling delay.
pub const QUEUE_LENGTH: u32 = 10_000;

/// A device as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The kernel's number for it.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Transmit queue length in packets.
    pub queue_length: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether the kernel makes up IPv6 link-local addresses for it.
    pub link_local: bool,
    /// The `accept_ra` setting; `None` when the kernel has no IPv6 or hides it.
    pub accept_ra: Option<bool>,
    /// Its addresses, both families.
    pub addresses: Vec<IpNetwork>,
}

/// One step towards the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stop the kernel from making up link-local addresses.
    NoLinkLocal,
    /// Stop router advertisements from configuring the device.
    NoRouterAdvertisements,
    /// Set the MTU.
    Mtu(u32),
    /// Set the queue length.
    QueueLength(u32),
    /// Add an address.
    Add(IpNetwork),
    /// Remove an address.
    Remove(IpNetwork),
    /// Bring the device up.
    Up,
}

/// The device of this name, or `None` if there is none.
pub async fn observe(netlink: &Handle, device: &str) -> Result<Option<Observed>, NetlinkError> {
    let what = || format!("look at {device}");
    let Some(message) = find_link(netlink, device).await? else { return Ok(None) };
    let index = message.header.index;
    let addresses: Vec<AddressMessage> = netlink
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .map_err(|error| NetlinkError::from_rtnetlink(what(), error))?;
    Ok(Some(from_messages(device, &message, &addresses)))
}

/// What separates the device from the plan, in the order in which to change it.
pub fn diff(observed: &Observed, desired: &Link) -> Vec<Change> {
    let mut changes = Vec::new();
    // Before anything can bring an address up on its own.
    if observed.link_local {
        changes.push(Change::NoLinkLocal);
    }
    if desired.places.iter().any(|place| place.cluster.is_ipv6()) && observed.accept_ra == Some(true) {
        changes.push(Change::NoRouterAdvertisements);
    }
    let mtu = u32::from(desired.mtu.get());
    if observed.mtu != mtu {
        changes.push(Change::Mtu(mtu));
    }
    if observed.queue_length != QUEUE_LENGTH {
        changes.push(Change::QueueLength(QUEUE_LENGTH));
    }
    let leftovers = observed.addresses.iter().filter(|address| is_leftover(**address, desired));
    changes.extend(leftovers.copied().map(Change::Remove));
    let missing = desired.addresses().filter(|address| !observed.addresses.contains(address));
    changes.extend(missing.map(Change::Add));
    if !observed.up {
        changes.push(Change::Up);
    }
    changes
}

/// Observes the device, changes what differs and returns its index and the number of changes made.
///
/// Fails if the device is missing, since only the engine makes it.
pub async fn apply(netlink: &Handle, desired: &Link) -> Result<(u32, usize), NetlinkError> {
    let device = &desired.device;
    let Some(observed) = observe(netlink, device).await? else {
        return Err(gone(format!("configure {device}")));
    };
    let changes = diff(&observed, desired);
    for change in &changes {
        make(netlink, device, observed.index, change).await?;
    }
    Ok((observed.index, changes.len()))
}

/// The kernel's number for the device of this name, if there is one.
pub async fn index(netlink: &Handle, device: &str) -> Result<Option<u32>, NetlinkError> {
    Ok(find_link(netlink, device).await?.map(|message| message.header.index))
}

/// What the kernel would say to `what` about a device that is not there.
pub fn gone(what: String) -> NetlinkError {
    NetlinkError::Refused { what, source: io::Error::from_raw_os_error(nix::libc::ENODEV) }
}

fn from_messages(device: &str, link: &LinkMessage, addresses: &[AddressMessage]) -> Observed {
    let mut observed = Observed {
        index: link.header.index,
        mtu: 0,
        queue_length: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        link_local: false,
        accept_ra: fs::read_to_string(accept_ra(device)).ok().map(|value| value.trim() != "0"),
        addresses: addresses.iter().filter_map(network).collect(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => observed.mtu = *mtu,
            LinkAttribute::TxQueueLen(length) => observed.queue_length = *length,
            LinkAttribute::AfSpecUnspec(families) => observed.link_local = makes_link_local(families),
            _ => {}
        }
    }
    observed
}

fn makes_link_local(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet6(settings) => settings.iter().any(
            |setting| matches!(setting, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None),
        ),
        _ => false,
    })
}

fn network(message: &AddressMessage) -> Option<IpNetwork> {
    IpNetwork::new(own_address(message)?, message.header.prefix_len).ok()
}

/// flannel removes from the IPv4 device what lies in the cluster network, and from the IPv6 device all but
/// link-local addresses. We keep to the cluster network in both, so that a stranger's address survives.
fn is_leftover(address: IpNetwork, desired: &Link) -> bool {
    let inside = desired.places.iter().any(|place| place.cluster.contains(address.ip()));
    inside && desired.addresses().all(|ours| ours != address)
}

async fn make(netlink: &Handle, device: &str, index: u32, change: &Change) -> Result<(), NetlinkError> {
    let link = || LinkUnspec::new_with_index(index);
    let (what, result) = match change {
        Change::NoLinkLocal => {
            // The device works with a link-local address too, so a kernel that refuses is not an error.
            if let Err(error) = netlink.link().set(without_link_local(link()).build()).execute().await {
                tracing::debug!(device, %error, "the kernel keeps making link-local addresses");
            }
            return Ok(());
        }
        Change::NoRouterAdvertisements => {
            if let Err(error) = fs::write(accept_ra(device), "0") {
                tracing::warn!(device, %error, "cannot set accept_ra=0; router advertisements stay on");
            }
            return Ok(());
        }
        Change::Mtu(mtu) => (
            format!("set MTU {mtu} on {device}"),
            netlink.link().set(link().mtu(*mtu).build()).execute().await,
        ),
        Change::QueueLength(length) => {
            let message = link().append_extra_attribute(LinkAttribute::TxQueueLen(*length)).build();
            (format!("set queue length {length} on {device}"), netlink.link().set(message).execute().await)
        }
        Change::Add(address) => {
            let mut request = netlink.address().add(index, address.ip(), address.prefix());
            // flannel sets none, and `ip address` would show a broadcast address that means nothing here.
            let attributes = &mut request.message_mut().attributes;
            attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
            (format!("add {address} to {device}"), request.replace().execute().await)
        }
        Change::Remove(address) => {
            let message = removal(index, *address);
            (format!("remove {address} from {device}"), netlink.address().del(message).execute().await)
        }
        Change::Up => (format!("bring {device} up"), netlink.link().set(link().up().build()).execute().await),
    };
    result.map_err(|error| NetlinkError::from_rtnetlink(what, error))
}

fn without_link_local(link: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> {
    let setting = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![setting])]))
}

fn removal(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.attributes = vec![AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())];
    message
}

fn accept_ra(device: &str) -> PathBuf {
    ["/proc/sys/net/ipv6/conf", device, "accept_ra"].iter().collect()
}
