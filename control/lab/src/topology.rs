//! Hosts connected by a switch, each with a pod: the topology of the demo, the bench and the tests.
//!
//! ```text
//!   pod 1            host 1                 switch                 host 2            pod 2
//!  ┌──────┐        ┌────────────┐        ┌──────────┐        ┌────────────┐        ┌──────┐
//!  │ eth0 ├────────┤ pod0  eth0 ├────────┤1  br0   2├────────┤ eth0  pod0 ├────────┤ eth0 │
//!  └──────┘        └────────────┘        └──────────┘        └────────────┘        └──────┘
//!  subnet+2        subnet+1   198.18.0.1                   198.18.0.2   subnet+1     subnet+2
//! ```
//!
//! With [`Wiring::Direct`] a veth pair replaces the switch. The tunnel device between `pod0` and `eth0` is
//! not created here: it belongs to the program under test on each host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::{Error, Namespace, Route, veth};

/// The host's device on the underlay.
const UPLINK: &str = "eth0";

/// The host's device to its pod.
const POD_SIDE: &str = "pod0";

/// Maximum number of hosts, which share an IPv4 /24.
const MAX_HOSTS: usize = 250;

/// The connection between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// A bridge in its own namespace.
    Switch,
    /// One veth pair; two hosts only.
    Direct,
}

/// The topology to build.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Prefix of the namespaces' names `PREFIX-h1`, `PREFIX-p1`, ... and `PREFIX-sw`; should contain the
    /// process ID.
    pub prefix: String,
    /// Number of hosts, 1 to 250.
    pub hosts: usize,
    /// The connection between the hosts.
    pub wiring: Wiring,
    /// The MTU of the underlay, in bytes.
    pub underlay_mtu: u32,
}

impl Topology {
    /// Describes `hosts` hosts on a switch with MTU 1500, named after `prefix` and this process's ID.
    pub fn new(prefix: &str, hosts: usize) -> Self {
        let prefix = format!("{prefix}{}", std::process::id());
        Topology { prefix, hosts, wiring: Wiring::Switch, underlay_mtu: 1500 }
    }
}

/// A built topology. Dropping it removes all of its namespaces, and with them every device.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    switch: Option<Namespace>,
}

/// One host and its pod.
#[derive(Debug)]
pub struct Host {
    number: usize,
    namespace: Namespace,
    pod: Namespace,
    pod_addresses: Vec<IpAddr>,
}

/// The network of a pod, as a CNI plugin would take it from `subnet.env`.
#[derive(Clone, Copy, Debug)]
pub struct PodNetwork {
    /// The host's IPv4 pod subnet: base + 1 is the host's side, base + 2 the pod.
    pub ipv4: Option<Ipv4Network>,
    /// The host's IPv6 pod subnet: base + 1 is the host's side, base + 2 the pod.
    pub ipv6: Option<Ipv6Network>,
    /// MTU of the pod's device, in bytes (`FLANNEL_MTU`).
    pub mtu: u32,
}

impl Lab {
    /// Builds the hosts and their underlay, with forwarding on and reverse path filtering off. Pods have no
    /// device until [`Host::connect_pod`].
    pub fn build(topology: &Topology) -> Result<Self, Error> {
        let tried = || format!("build a lab of {} hosts", topology.hosts);
        if topology.hosts == 0 || topology.hosts > MAX_HOSTS {
            return Err(Error::new(tried(), format!("the number of hosts must be 1 to {MAX_HOSTS}")));
        }
        if topology.wiring == Wiring::Direct && topology.hosts != 2 {
            return Err(Error::new(tried(), "direct wiring connects exactly two hosts"));
        }
        let mut lab = Lab { hosts: Vec::with_capacity(topology.hosts), switch: None };
        for number in 1..=topology.hosts {
            lab.hosts.push(Host::create(&topology.prefix, number)?);
        }
        match topology.wiring {
            Wiring::Switch => lab.join_by_switch(topology)?,
            Wiring::Direct => {
                let ends = (&lab.hosts[0].namespace, &lab.hosts[1].namespace);
                veth((ends.0, UPLINK), (ends.1, UPLINK), topology.underlay_mtu)?;
            }
        }
        for host in &lab.hosts {
            host.namespace.add_address(UPLINK, IpNetwork::V4(host.underlay_network()))?;
            host.namespace.add_address(UPLINK, IpNetwork::V6(host.underlay_network6()))?;
        }
        Ok(lab)
    }

    /// Returns the hosts, numbered from 1.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Returns the hosts, for [`Host::connect_pod`].
    pub fn hosts_mut(&mut self) -> &mut [Host] {
        &mut self.hosts
    }

    /// Returns the switch's namespace, if there is one.
    pub fn switch(&self) -> Option<&Namespace> {
        self.switch.as_ref()
    }

    /// Returns every namespace of the lab.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.hosts.iter().flat_map(|host| [&host.namespace, &host.pod]).chain(&self.switch)
    }

    /// Keeps all namespaces when this value is dropped.
    pub fn keep(&mut self) {
        for host in &mut self.hosts {
            host.namespace.keep();
            host.pod.keep();
        }
        if let Some(switch) = &mut self.switch {
            switch.keep();
        }
    }

    fn join_by_switch(&mut self, topology: &Topology) -> Result<(), Error> {
        let switch = Namespace::create(&format!("{}-sw", topology.prefix))?;
        // A switch must not filter. The variables exist only with br_netfilter.
        for name in ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"] {
            let _ = switch.set_sysctl(name, "0");
        }
        switch.add_bridge("br0")?;
        switch.set_mtu("br0", topology.underlay_mtu)?;
        for host in &self.hosts {
            let port = format!("port{}", host.number);
            veth((&host.namespace, UPLINK), (&switch, &port), topology.underlay_mtu)?;
            switch.set_bridge(&port, "br0")?;
        }
        self.switch = Some(switch);
        Ok(())
    }
}

impl Host {
    /// Returns the host's number in the lab, from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns the host's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the pod's namespace.
    pub fn pod(&self) -> &Namespace {
        &self.pod
    }

    /// Returns the name of the device on the underlay.
    pub fn uplink(&self) -> &'static str {
        UPLINK
    }

    /// Returns the name of the device to the pod.
    pub fn pod_side(&self) -> &'static str {
        POD_SIDE
    }

    /// Returns the host's IPv4 address on the underlay, from the range for network tests (RFC 2544).
    pub fn underlay(&self) -> Ipv4Addr {
        self.underlay_network().ip()
    }

    /// Returns the host's IPv6 address on the underlay.
    pub fn underlay6(&self) -> Ipv6Addr {
        self.underlay_network6().ip()
    }

    /// Returns the pod's addresses, IPv4 first; empty before [`Host::connect_pod`].
    pub fn pod_addresses(&self) -> &[IpAddr] {
        &self.pod_addresses
    }

    /// Gives the pod its device, addresses and default routes, and the host its routes to the pod.
    pub fn connect_pod(&mut self, network: &PodNetwork) -> Result<(), Error> {
        veth((&self.namespace, POD_SIDE), (&self.pod, UPLINK), network.mtu)?;
        if let Some(subnet) = network.ipv4 {
            let base = u32::from(subnet.network());
            let [gateway, pod] = [1, 2].map(|offset| IpAddr::from(Ipv4Addr::from(base.wrapping_add(offset))));
            self.connect_family(gateway, pod, subnet.prefix(), Ipv4Addr::UNSPECIFIED.into())?;
        }
        if let Some(subnet) = network.ipv6 {
            let base = u128::from(subnet.network());
            let [gateway, pod] = [1, 2].map(|offset| IpAddr::from(Ipv6Addr::from(base.wrapping_add(offset))));
            self.connect_family(gateway, pod, subnet.prefix(), Ipv6Addr::UNSPECIFIED.into())?;
        }
        Ok(())
    }

    fn connect_family(&mut self, gateway: IpAddr, pod: IpAddr, prefix: u8, any: IpAddr) -> Result<(), Error> {
        let network = |address, prefix| {
            IpNetwork::new(address, prefix)
                .map_err(|error| Error::new(format!("use {address}/{prefix}"), error))
        };
        self.namespace.add_address(POD_SIDE, gateway.into())?;
        let to_pod = Route { destination: pod.into(), via: None, device: Some(POD_SIDE), onlink: false };
        self.namespace.add_route(&to_pod)?;
        self.pod.add_address(UPLINK, network(pod, prefix)?)?;
        self.pod.add_route(&Route {
            destination: network(any, 0)?,
            via: Some(gateway),
            device: Some(UPLINK),
            onlink: false,
        })?;
        self.pod_addresses.push(pod);
        Ok(())
    }

    fn create(prefix: &str, number: usize) -> Result<Self, Error> {
        let namespace = Namespace::create(&format!("{prefix}-h{number}"))?;
        let pod = Namespace::create(&format!("{prefix}-p{number}"))?;
        for (name, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
        ] {
            namespace.set_sysctl(name, value)?;
        }
        // These fail on a kernel without IPv6. A machine may pass `disable_ipv6` on to new namespaces.
        for (name, value) in [("disable_ipv6", "0"), ("accept_dad", "0")] {
            for scope in ["all", "default"] {
                let name = format!("net.ipv6.conf.{scope}.{name}");
                let _ = (namespace.set_sysctl(&name, value), pod.set_sysctl(&name, value));
            }
        }
        for name in ["net.ipv6.conf.all.forwarding", "net.ipv6.conf.default.forwarding"] {
            let _ = namespace.set_sysctl(name, "1");
        }
        Ok(Host { number, namespace, pod, pod_addresses: Vec::new() })
    }

    fn underlay_network(&self) -> Ipv4Network {
        let address = Ipv4Addr::new(198, 18, 0, self.number as u8);
        Ipv4Network::new(address, 24).unwrap_or_else(|_| Ipv4Network::from(address))
    }

    fn underlay_network6(&self) -> Ipv6Network {
        let address = Ipv6Addr::new(0xfd00, 0x10de, 0, 0, 0, 0, 0, self.number as u16);
        Ipv6Network::new(address, 64).unwrap_or_else(|_| Ipv6Network::from(address))
    }
}
