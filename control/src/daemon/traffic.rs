//! Traffic rules as the settings ask for them.

use model::lease::Lease;
use model::net_config::NetConfig;
use model::subnet_env::Recorded;

use crate::netlink::Netlink;
use crate::settings::TrafficSettings;
use crate::traffic::program::Programs;
use crate::traffic::{self, Keeper, Networks, Traffic, TrafficError};

/// Checks what flannel requires of the kernel, unless the settings waive it.
pub(super) fn check(settings: &TrafficSettings, config: &NetConfig) -> Result<(), TrafficError> {
    match settings.require_br_netfilter {
        true => traffic::check_br_netfilter(config),
        // The start warns of it with the other gaps.
        false => Ok(()),
    }
}

/// Tells whether the settings ask for anything that stays on the host.
pub(super) fn wanted(settings: &TrafficSettings) -> bool {
    settings.masquerade || settings.forward || settings.blackhole
}

/// Installs the rules, and keeps them in place until the value is dropped.
pub(super) async fn start(
    settings: &TrafficSettings,
    config: &NetConfig,
    own: &Lease,
    previous: Option<&Recorded>,
    netlink: Netlink,
) -> Result<Keeper, TrafficError> {
    let networks = Networks::of(config, own);
    let programs = Programs::from_env();
    let traffic = Traffic::start(programs, *settings, config.nftables, networks, previous, netlink).await?;
    Ok(traffic.keep())
}
