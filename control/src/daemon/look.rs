//! Looks at the host: the uplink, and the ways to the peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::net_config::NetConfig;
use store::lease::ledger::LeaseSet;

use super::error::DaemonError;
use crate::netlink::{Netlink, NetlinkError};
use crate::plan::Context;
use crate::settings::UplinkSettings;
use crate::underlay::reach::{self, Reach};
use crate::underlay::select::{self, Chosen};
use crate::underlay::{self, Underlay};

/// Chooses the uplink of a node that starts.
pub(super) async fn choose_uplink(
    netlink: &Netlink,
    settings: &UplinkSettings,
    config: &NetConfig,
    chosen: Chosen,
) -> Result<Underlay, DaemonError> {
    let observed = underlay::observe(netlink, settings.can_reach).await?;
    let underlay = select::select(&observed, &wish(settings, config, chosen))?;
    let ipv4 = underlay.ipv4.map(|ends| Ipv4Addr::to_string(&ends.public)).unwrap_or_default();
    let ipv6 = underlay.ipv6.map(|ends| Ipv6Addr::to_string(&ends.public)).unwrap_or_default();
    tracing::info!(interface = %underlay.interface, mtu = underlay.mtu, ipv4, ipv6, "underlay");
    Ok(underlay)
}

/// Looks at the uplink of a node that runs. The error says why it is unusable.
pub(super) async fn uplink(
    netlink: &Netlink,
    settings: &UplinkSettings,
    config: &NetConfig,
    current: &Underlay,
) -> Result<Underlay, String> {
    let observed = underlay::observe(netlink, settings.can_reach).await.map_err(|error| error.to_string())?;
    let (ipv4, ipv6) = (current.ipv4.map(|ends| ends.local), current.ipv6.map(|ends| ends.local));
    select::select(&observed, &wish(settings, config, Chosen { ipv4, ipv6 }))
        .map_err(|error| format!("the uplink is unusable, keeping the last one: {error}"))
}

/// Looks at the ways to the peers, where the plan depends on them.
pub(super) async fn ways(
    netlink: &Netlink,
    context: &Context,
    peers: &LeaseSet,
) -> Result<Reach, NetlinkError> {
    if !context.routes_directly() {
        return Ok(Reach::new());
    }
    let (ipv4, ipv6) = (context.config.ipv4.is_some(), context.config.ipv6.is_some());
    let addresses = peers.iter().flat_map(|lease| {
        let v4 = Some(lease.attrs.public_ip).filter(|ip| ipv4 && !ip.is_unspecified()).map(IpAddr::V4);
        let v6 = lease.attrs.public_ipv6.filter(|_| ipv6).map(IpAddr::V6);
        v4.into_iter().chain(v6)
    });
    reach::observe(netlink, &context.underlay, addresses).await
}

/// Collects what the operator and the network configuration ask of the uplink.
fn wish(settings: &UplinkSettings, config: &NetConfig, chosen: Chosen) -> select::Wish {
    let UplinkSettings { ifaces, patterns, can_reach, public_ip, public_ipv6 } = settings.clone();
    select::Wish {
        ifaces,
        patterns,
        can_reach,
        public_ip,
        public_ipv6,
        ipv4: config.ipv4.is_some(),
        ipv6: config.ipv6.is_some(),
        chosen,
    }
}
