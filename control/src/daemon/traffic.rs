//! Traffic rules as the command line asks for them.

use std::time::Duration;

use model::lease::Lease;
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use rtnetlink::Handle;

use crate::options::{RunOptions, TrafficOptions};
use crate::traffic::program::Programs;
use crate::traffic::{self, Keeper, Networks, Settings, Traffic, TrafficError};

/// What flannel asks of the kernel, unless the command line says to go on without.
pub(super) fn check(options: &RunOptions, config: &NetConfig) -> Result<(), TrafficError> {
    match options.traffic.require_br_netfilter {
        true => traffic::check_br_netfilter(config),
        // The start tells about it with the other gaps.
        false => Ok(()),
    }
}

/// Whether the command line asks for anything that stays on the host.
pub(super) fn wanted(options: &RunOptions) -> bool {
    let TrafficOptions { ip_masq, iptables_forward_rules, ip_blackhole_route, .. } = options.traffic;
    ip_masq || iptables_forward_rules || ip_blackhole_route
}

/// Puts the rules, and keeps them until the value is dropped.
pub(super) async fn start(
    options: &RunOptions,
    config: &NetConfig,
    own: &Lease,
    previous: Option<&Recorded>,
    netlink: Handle,
) -> Result<Keeper, TrafficError> {
    let networks = Networks::of(config, own);
    let settings = settings(&options.traffic);
    let programs = Programs::from_env();
    let traffic = Traffic::start(programs, settings, config.nftables, networks, previous, netlink).await?;
    Ok(traffic.keep())
}

fn settings(options: &TrafficOptions) -> Settings {
    Settings {
        masquerade: options.ip_masq,
        forward: options.iptables_forward_rules,
        random_fully: !options.ip_masq_fully_random_disable,
        blackhole: options.ip_blackhole_route,
        resync: Duration::from_secs(options.iptables_resync.into()),
    }
}
