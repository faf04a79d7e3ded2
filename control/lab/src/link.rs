//! Devices, addresses, routes and neighbours inside a namespace, over rtnetlink.

use std::future::Future;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Error, Namespace};

/// Time limit for the kernel to start a device, long enough for a busy machine.
const START: Duration = Duration::from_secs(30);

/// A MAC address.
pub type Mac = [u8; 6];

/// A device as reported by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique within its namespace.
    pub index: u32,
    /// Device name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC address; zeros on a device without one.
    pub mac: Mac,
    /// Whether the device is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether the device is operational (`IFF_RUNNING`): the kernel drops what is sent before.
    pub running: bool,
}

/// A route for the main table, with a gateway, a device or both.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    /// The destination.
    pub destination: IpNetwork,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The device; if `None`, the kernel derives it from the gateway.
    pub device: Option<&'a str>,
    /// Whether the gateway is on the device's link although no address covers it.
    pub onlink: bool,
}

/// Creates a veth pair with one end in each namespace, both up and with an MTU of `mtu` bytes. Packets pass
/// when it returns.
pub fn veth(left: (&Namespace, &str), right: (&Namespace, &str), mtu: u32) -> Result<(), Error> {
    let tried = format!("create veth {} in {} to {} in {}", left.1, left.0.name(), right.1, right.0.name());
    let handle = std::fs::File::open(right.0.path()).map_err(|error| Error::system(&tried, error))?;
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(right.1.to_owned())
        .mtu(mtu)
        .setns_by_fd(handle.as_raw_fd())
        .build();
    // `LinkVeth::new` accepts only a name for the peer; the message holds its namespace as well.
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(left.1.to_owned())
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    left.0.request(tried, |handle| async move { handle.link().add(message).execute().await })?;
    // Not in the request itself, because an end cannot be up before the other exists (ENOTCONN).
    left.0.set_up(left.1)?;
    right.0.set_up(right.1)?;
    left.0.await_running(left.1)?;
    right.0.await_running(right.1)
}

impl Namespace {
    /// Lists all devices of the namespace, by index.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let messages: Vec<LinkMessage> = self
            .request(format!("list the devices of {}", self.name()), |handle| async move {
                handle.link().get().execute().try_collect().await
            })?;
        let mut links: Vec<Link> = messages.iter().map(link_of).collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Finds the device named `name`; an error if there is none.
    pub fn link(&self, name: &str) -> Result<Link, Error> {
        let wanted = name.to_owned();
        let found = self.request(format!("find device {name} in {}", self.name()), |handle| async move {
            handle.link().get().match_name(wanted).execute().try_next().await
        })?;
        found
            .as_ref()
            .map(link_of)
            .ok_or_else(|| Error::new(format!("find device {name} in {}", self.name()), "no reply"))
    }

    /// Creates a bridge and sets it up. The bridge floods multicast as a plain switch does; spanning tree is
    /// off, the kernel's default.
    pub fn add_bridge(&self, name: &str) -> Result<(), Error> {
        // Snooping without a querier may starve IPv6 neighbour discovery.
        let flood = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(0)]);
        let message = LinkBridge::new(name).set_info_data(flood).up().build();
        self.request(format!("create bridge {name} in {}", self.name()), |handle| async move {
            handle.link().add(message).execute().await
        })
    }

    /// Attaches `device` to `bridge` as a port.
    pub fn set_bridge(&self, device: &str, bridge: &str) -> Result<(), Error> {
        let bridge = self.link(bridge)?.index;
        self.change(device, "attach", |link| link.controller(bridge))
    }

    /// Sets the device up.
    pub fn set_up(&self, device: &str) -> Result<(), Error> {
        self.change(device, "set up", |link| link.up())
    }

    /// Sets the device down.
    pub fn set_down(&self, device: &str) -> Result<(), Error> {
        self.change(device, "set down", |link| link.down())
    }

    /// Sets the device's MTU in bytes.
    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<(), Error> {
        self.change(device, &format!("set MTU {mtu} on"), |link| link.mtu(mtu))
    }

    /// Sets the device's MAC address.
    pub fn set_mac(&self, device: &str, mac: Mac) -> Result<(), Error> {
        self.change(device, "set the MAC address of", |link| link.address(mac.to_vec()))
    }

    /// Deletes the device, and with it the other end of a veth pair.
    pub fn delete_link(&self, device: &str) -> Result<(), Error> {
        let index = self.link(device)?.index;
        self.request(format!("delete {device} in {}", self.name()), |handle| async move {
            handle.link().del(index).execute().await
        })
    }

    /// Adds an address with the prefix length of `address`. IPv6 addresses are usable at once (no duplicate
    /// address detection).
    pub fn add_address(&self, device: &str, address: IpNetwork) -> Result<(), Error> {
        let index = self.link(device)?.index;
        self.request(format!("add {address} to {device} in {}", self.name()), |handle| async move {
            let mut add = handle.address().add(index, address.ip(), address.prefix());
            if address.is_ipv6() {
                add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            add.execute().await
        })
    }

    /// Adds a route to the main table, replacing any route to the same destination.
    pub fn add_route(&self, route: &Route<'_>) -> Result<(), Error> {
        let tried = format!("add route to {} in {}", route.destination, self.name());
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .protocol(RouteProtocol::Boot)
            .destination_prefix(route.destination.network(), route.destination.prefix())
            .map_err(|error| Error::new(&tried, error))?;
        match route.via {
            Some(via) => builder = builder.gateway(via).map_err(|error| Error::new(&tried, error))?,
            None if route.destination.is_ipv4() => builder = builder.scope(RouteScope::Link),
            None => {}
        }
        if let Some(device) = route.device {
            builder = builder.output_interface(self.link(device)?.index);
        }
        if route.onlink {
            builder = builder.onlink();
        }
        let message = builder.build();
        self.request(tried, |handle| async move { handle.route().add(message).replace().execute().await })
    }

    /// Adds or replaces a permanent neighbour entry.
    pub fn add_neighbour(&self, device: &str, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let index = self.link(device)?.index;
        self.request(format!("add neighbour {address} on {device} in {}", self.name()), |handle| async move {
            handle.neighbours().add(index, address).link_local_address(&mac).replace().execute().await
        })
    }

    /// Adds a permanent entry to a device's own forwarding database: frames for `mac` go to `remote`.
    pub fn add_fdb(&self, device: &str, mac: Mac, remote: IpAddr) -> Result<(), Error> {
        let index = self.link(device)?.index;
        self.request(format!("add fdb entry to {remote} on {device} in {}", self.name()), |handle| {
            let add = handle.neighbours().add_bridge(index, &mac);
            add.flags(NeighbourFlags::Own).destination(remote).replace().execute()
        })
    }

    /// Runs one netlink request and adds the operation to its error.
    pub(crate) fn request<R, Work, Answer>(&self, tried: String, work: Work) -> Result<R, Error>
    where
        R: Send,
        Work: FnOnce(Handle) -> Answer + Send,
        Answer: Future<Output = Result<R, rtnetlink::Error>>,
    {
        self.netlink(work)?.map_err(|error| Error::netlink(tried, error))
    }

    /// Waits until the device is operational: the kernel notices a carrier only after the device is up.
    fn await_running(&self, device: &str) -> Result<(), Error> {
        let deadline = Instant::now() + START;
        while !self.link(device)?.running {
            if Instant::now() > deadline {
                return Err(Error::new(format!("start {device} in {}", self.name()), "no carrier"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn change(
        &self,
        device: &str,
        verb: &str,
        edit: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), Error> {
        let message = edit(LinkUnspec::new_with_name(device)).build();
        self.request(format!("{verb} {device} in {}", self.name()), |handle| async move {
            handle.link().set(message).execute().await
        })
    }
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: Mac::default(),
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            _ => {}
        }
    }
    link
}
