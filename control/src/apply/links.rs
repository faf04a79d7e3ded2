//! Tunnel devices: MTU, queue length, addresses and state.
//!
//! The engine opens and closes the TUN; this module configures it according to the plan. It touches only the
//! named device, and on that device only what the plan covers: an IPv4 address outside the cluster network
//! that another program added stays. The IPv6 device has no other addresses than ours and link-local ones.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

use crate::netlink::{self, Netlink, NetlinkError, find_link, own_address};
use crate::plan::Link;

/// A setting of a device under `/proc/sys/net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    family: &'static str,
    name: &'static str,
}

/// Gates IPv6 on a device. A new device inherits `net.ipv6.conf.default.disable_ipv6`.
const DISABLE_IPV6: Setting = Setting { family: "ipv6", name: "disable_ipv6" };

/// Settings by which packets in the tunnel could change the host's own routes. No router is on our link.
const HOST_PROTOCOLS: [Setting; 3] = [
    Setting { family: "ipv6", name: "accept_ra" },
    Setting { family: "ipv6", name: "accept_redirects" },
    Setting { family: "ipv4", name: "accept_redirects" },
];

impl Setting {
    /// Returns the setting's key for a device, with slashes: a device name may contain dots (sysctl(8)).
    fn key(self, device: &str) -> String {
        format!("net/{}/conf/{device}/{}", self.family, self.name)
    }

    /// Returns whether the setting is on; false if the kernel has no such setting or hides it.
    fn is_on(self, device: &str) -> bool {
        let value = fs::read_to_string(Path::new("/proc/sys").join(self.key(device)));
        value.is_ok_and(|value| value.trim() != "0")
    }

    fn turn_off(self, device: &str) -> io::Result<()> {
        fs::write(Path::new("/proc/sys").join(self.key(device)), "0")
    }
}

/// A device as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The interface index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Transmit queue length in packets.
    pub queue_length: u32,
    /// Whether the device is up.
    pub up: bool,
    /// Whether the kernel generates IPv6 link-local addresses for the device.
    pub link_local: bool,
    /// Settings that are on although one of our devices may need them off.
    pub settings: Vec<Setting>,
    /// The addresses of both families.
    pub addresses: Vec<IpNetwork>,
    /// The device's alias, which `ip link` shows.
    pub alias: Option<String>,
}

/// One step towards the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stop the kernel from generating link-local addresses.
    NoLinkLocal,
    /// Turn a setting off.
    Off(Setting),
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
    /// Set the alias.
    Label(String),
}

/// Reads the state of the device with this name; `None` if there is no such device.
pub async fn observe(netlink: &Netlink, device: &str) -> Result<Option<Observed>, NetlinkError> {
    let what = || format!("look at {device}");
    let Some(message) = find_link(netlink, device).await? else { return Ok(None) };
    let index = message.header.index;
    let mut addresses: Vec<AddressMessage> = Vec::new();
    let list = |handle: &Handle| handle.address().get().set_link_index_filter(index).execute();
    netlink.list(what, list, |address| addresses.push(address)).await?;
    Ok(Some(from_messages(device, &message, &addresses)))
}

/// Returns the changes that make the device match the plan and have this queue length, in the order in which
/// to apply them.
pub fn diff(observed: &Observed, desired: &Link, queue_length: u32) -> Vec<Change> {
    let mut changes = Vec::new();
    // Comes first: setting the device up would generate an address.
    if observed.link_local {
        changes.push(Change::NoLinkLocal);
    }
    let off = observed.settings.iter().filter(|setting| **setting != DISABLE_IPV6 || desired.has_ipv6());
    changes.extend(off.copied().map(Change::Off));
    let mtu = u32::from(desired.mtu.get());
    if observed.mtu != mtu {
        changes.push(Change::Mtu(mtu));
    }
    if observed.queue_length != queue_length {
        changes.push(Change::QueueLength(queue_length));
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

/// Observes the device and changes what differs. Returns the device's index and the number of changes. The
/// alias becomes `label`, by which a later daemon recognises the device as its own.
///
/// Fails if the device is missing, since only the engine can create it.
pub async fn apply(
    netlink: &Netlink,
    desired: &Link,
    queue_length: u32,
    label: &str,
) -> Result<(u32, usize), NetlinkError> {
    let device = &desired.device;
    let Some(observed) = observe(netlink, device).await? else {
        return Err(gone(format!("configure {device}")));
    };
    let mut made = 0;
    for change in &diff(&observed, desired, queue_length) {
        made += usize::from(make_change(netlink, device, observed.index, change).await?);
    }
    if observed.alias.as_deref() != Some(label) {
        made += usize::from(
            make_change(netlink, device, observed.index, &Change::Label(label.to_owned())).await?,
        );
    }
    Ok((observed.index, made))
}

/// Lists the addresses of all of the host's devices.
pub async fn host_addresses(netlink: &Netlink) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let addresses = netlink::addresses(netlink, || "list the host's addresses".to_owned()).await?;
    Ok(addresses.iter().filter_map(own_address).collect())
}

/// Returns the index of the device with this name, if there is one.
pub async fn index(netlink: &Netlink, device: &str) -> Result<Option<u32>, NetlinkError> {
    Ok(find_link(netlink, device).await?.map(|message| message.header.index))
}

/// Returns the error that the kernel gives for the operation `what` on a missing device.
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
        // IPv6 comes last: a device that is up starts to use it at once.
        settings: HOST_PROTOCOLS.into_iter().chain([DISABLE_IPV6]).filter(|s| s.is_on(device)).collect(),
        addresses: addresses.iter().filter_map(network).collect(),
        alias: alias(link).map(str::to_owned),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => observed.mtu = *mtu,
            LinkAttribute::TxQueueLen(length) => observed.queue_length = *length,
            LinkAttribute::AfSpecUnspec(families) => observed.link_local = has_link_local(families),
            _ => {}
        }
    }
    observed
}

/// Returns the alias of a device.
pub fn alias(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

fn has_link_local(families: &[AfSpecUnspec]) -> bool {
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

/// Returns true for an address that must not stay. As in flannel, that is any other address in the cluster
/// network, and on a device for IPv6 any other IPv6 address that is not link-local: the kernel could choose
/// it as the source of packets to pods, where no answer would reach it.
fn is_leftover(address: IpNetwork, desired: &Link) -> bool {
    let inside = || desired.places.iter().any(|place| place.cluster.contains(address.ip()));
    let unwanted = match address.ip() {
        IpAddr::V6(ip) if desired.has_ipv6() => !ip.is_unicast_link_local(),
        _ => inside(),
    };
    unwanted && desired.addresses().all(|ours| ours != address)
}

/// Returns whether the change was made; one that the device can do without may fail.
async fn make_change(
    netlink: &Netlink,
    device: &str,
    index: u32,
    change: &Change,
) -> Result<bool, NetlinkError> {
    let link = || LinkUnspec::new_with_index(index);
    let set = async |what: String, message: LinkMessage| {
        netlink.ask(|| what.clone(), async |handle| handle.link().set(message).execute().await).await
    };
    match change {
        Change::NoLinkLocal => {
            let what = format!("turn link-local addresses off on {device}");
            return match set(what, without_link_local(link()).build()).await {
                // Not an error: the device also works with a link-local address.
                Err(error) if error.is_answer() => {
                    tracing::debug!(device, %error, "the device keeps its link-local address");
                    Ok(false)
                }
                answer => answer.map(|()| true),
            };
        }
        Change::Off(setting) => {
            let key = setting.key(device);
            let answer = setting.turn_off(device);
            return match answer {
                Ok(()) => Ok(true),
                Err(source) if *setting == DISABLE_IPV6 => Err(NetlinkError::Ipv6Off { key, source }),
                Err(error) => {
                    // Where /proc/sys is read-only. The workers drop router advertisements anyway.
                    tracing::debug!(key, %error, "cannot set to 0");
                    Ok(false)
                }
            };
        }
        Change::Label(label) => {
            let message = link().append_extra_attribute(LinkAttribute::IfAlias(label.clone())).build();
            return match set(format!("set the alias of {device}"), message).await {
                // Not an error: the state file names the device as well.
                Err(error) if error.is_answer() => {
                    tracing::debug!(device, %error, "the device has no alias of ours");
                    Ok(false)
                }
                answer => answer.map(|()| true),
            };
        }
        Change::Mtu(mtu) => set(format!("set MTU {mtu} on {device}"), link().mtu(*mtu).build()).await?,
        Change::QueueLength(length) => {
            let message = link().append_extra_attribute(LinkAttribute::TxQueueLen(*length)).build();
            set(format!("set queue length {length} on {device}"), message).await?;
        }
        Change::Add(address) => {
            let add = async |handle: Handle| {
                let mut request = handle.address().add(index, address.ip(), address.prefix());
                // flannel sets no broadcast address either; on this device it would have no meaning.
                let attributes = &mut request.message_mut().attributes;
                attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
                request.replace().execute().await
            };
            netlink.ask(|| format!("add {address} to {device}"), add).await?;
        }
        Change::Remove(address) => {
            let message = removal(index, *address);
            let what = || format!("remove {address} from {device}");
            netlink.ask(what, async |handle| handle.address().del(message).execute().await).await?;
        }
        Change::Up => set(format!("bring {device} up"), link().up().build()).await?,
    }
    Ok(true)
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
