//! Plans: a pure function from leases to intent, so that the same input always gives the same plan.
//!
//! A [`Plan`] describes the desired state of the host: tunnel devices with address and MTU, routes, the peers
//! that each tunnel forwards to, and the content of `subnet.env`. It is always computed from the complete
//! set of leases; `apply` then changes only what differs. One file per backend, named like those of `path`'s
//! `encap/*`: there the bytes, here the intent.

mod alloc;
mod context;
mod direct;
mod error;
mod extension;
mod host_gw;
mod intent;
mod ipip;
mod outline;
mod peers;
mod udp;
mod vxlan;
mod wireguard;

use model::backend::Backend;
use model::lease::Lease;
use model::net_config::NetConfig;
use model::subnet_env::SubnetEnv;
use store::lease::ledger::LeaseSet;

use self::intent::Paths;

pub use self::context::{Context, Identity};
pub use self::error::PlanError;
pub use self::intent::{
    CommandPeer, Commands, Direct, Ignored, Link, Peer, Place, Plan, Route, Secrets, Tunnel,
};
pub use self::outline::{Outline, TunnelOutline};

/// Longest name of a device, IFNAMSIZ without the terminator (linux/if.h).
const LONGEST_NAME: usize = 15;

/// Computes the tunnels and the lease attributes for this configuration on this host.
pub fn outline(context: &Context) -> Result<Outline, PlanError> {
    let outline = outline_of(context)?;
    match outline.tunnels.iter().find(|tunnel| tunnel.device.len() > LONGEST_NAME) {
        Some(tunnel) => Err(PlanError::DeviceName { device: tunnel.device.clone() }),
        None => Ok(outline),
    }
}

fn outline_of(context: &Context) -> Result<Outline, PlanError> {
    let backend = context.config.backend.name();
    let refused = |problem| Err(PlanError::Backend { backend, problem });
    match &context.config.backend {
        Backend::Vxlan(vxlan) => vxlan::outline(context, vxlan),
        Backend::Udp { port } => udp::outline(context, *port),
        Backend::HostGw => host_gw::outline(context),
        Backend::Alloc => alloc::outline(context),
        Backend::Extension(_) => extension::outline(context),
        Backend::Ipip { .. } => ipip::outline(context),
        Backend::Wireguard(wireguard) => wireguard::outline(context, wireguard),
        Backend::Ipsec(_) => refused(
            "not supported: it needs strongSwan and the kernel's IPsec; use wireguard, or vxlan, ipip, udp \
             or host-gw, which do not encrypt",
        ),
        Backend::TencentVpc { .. } => refused(
            "not supported: loden does not use cloud APIs; use vxlan, host-gw within one subnet, or alloc \
             where another program installs the cloud's routes",
        ),
    }
}

/// Returns the variables of the command that runs once this node has its lease.
pub fn startup_variables(config: &NetConfig, own: &Lease) -> Vec<(&'static str, String)> {
    let network = config.ipv4.as_ref().map(|pool| pool.network.to_string()).unwrap_or_default();
    std::iter::once(("NETWORK", network)).chain(extension::variables(own)).collect()
}

/// Computes the complete plan from our own lease and those of all other nodes.
pub fn plan(context: &Context, own: &Lease, leases: &LeaseSet) -> Result<Plan, PlanError> {
    let outline = outline(context)?;
    let paths = match &context.config.backend {
        Backend::Udp { port } => udp::paths(context, &outline, *port, own, leases)?,
        Backend::Vxlan(vxlan) => vxlan::paths(context, &outline, vxlan, own, leases)?,
        Backend::HostGw => host_gw::paths(context, own, leases)?,
        Backend::Ipip { direct_routing } => ipip::paths(context, &outline, *direct_routing, own, leases)?,
        Backend::Extension(extension) => extension::paths(extension, own, leases),
        Backend::Wireguard(wireguard) => wireguard::paths(context, &outline, wireguard, own, leases)?,
        Backend::Alloc => Paths::default(),
        // Rejected by `outline`. Named, so that a new backend cannot become ready without paths.
        Backend::Ipsec(_) | Backend::TencentVpc { .. } => Paths::default(),
    };
    let Paths { tunnels, direct, commands, ignored } = paths;
    let subnet_env = SubnetEnv {
        ipv4: context.config.ipv4.as_ref().map(|pool| pool.network).zip(own.subnet()),
        ipv6: context.config.ipv6.as_ref().map(|pool| pool.network).zip(own.ipv6_subnet()),
        mtu: u32::from(outline.pod_mtu.get()),
        ip_masq: context.ip_masq,
    };
    Ok(Plan { tunnels, direct, commands, subnet_env, ignored })
}

#[cfg(test)]
mod tests;
