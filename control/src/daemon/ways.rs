//! The ways to the peers, kept up to date for `DirectRouting`.

use std::net::IpAddr;

use rtnetlink::Handle;

use crate::plan::Context;
use crate::underlay::reach;
use store::lease::ledger::LeaseSet;

/// Asks the kernel anew, where the plan depends on it; `true` if a way has changed.
pub(super) async fn refresh(netlink: &Handle, context: &mut Context, peers: &LeaseSet) -> bool {
    if !context.routes_directly() {
        return false;
    }
    let (ipv4, ipv6) = (context.config.ipv4.is_some(), context.config.ipv6.is_some());
    let addresses = peers.iter().flat_map(|lease| {
        let v4 = Some(lease.attrs.public_ip).filter(|ip| ipv4 && !ip.is_unspecified()).map(IpAddr::V4);
        let v6 = lease.attrs.public_ipv6.filter(|_| ipv6).map(IpAddr::V6);
        v4.into_iter().chain(v6)
    });
    let found = reach::observe(netlink, &context.underlay, addresses).await;
    let changed = found != context.reach;
    context.reach = found;
    changed
}
