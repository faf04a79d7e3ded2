//! Removes everything that [`super`] may have added to a host, in any mode and any run.

use ipnetwork::IpNetwork;
use model::subnet_env::Recorded;

use super::error::TrafficError;
use super::program::Programs;
use super::{blackhole, iptables, nftables};
use crate::netlink::Netlink;

/// The outcome of [`cleanup`].
#[derive(Debug, Default)]
pub struct Cleaned {
    /// What was removed, one line each.
    pub removed: Vec<String>,
    /// Errors, each about rules or routes that may still exist.
    pub failures: Vec<TrafficError>,
}

/// Removes the rules of both modes, and the blackhole routes of the subnets in `previous`, the last
/// `subnet.env`. Continues after a failure.
pub async fn cleanup(programs: &Programs, netlink: &Netlink, previous: Option<&Recorded>) -> Cleaned {
    let mut cleaned = Cleaned::default();
    cleaned.take(iptables::clean(programs).await);
    cleaned.take(nftables::clean(programs).await);
    for subnet in previous.map(subnets).unwrap_or_default() {
        match blackhole::remove(netlink, subnet).await {
            Ok(true) => cleaned.removed.push(format!("blackhole {subnet}")),
            Ok(false) => {}
            Err(error) => cleaned.failures.push(error.into()),
        }
    }
    cleaned
}

/// Removes the rules of the mode that is not in use. A failure is only logged, because the rules of both
/// modes together have the same effect as those of one.
pub(super) async fn clean_other(programs: &Programs, nftables_in_use: bool) {
    let (removed, failures) = match nftables_in_use {
        true => iptables::clean(programs).await,
        false => nftables::clean(programs).await,
    };
    if !removed.is_empty() {
        tracing::info!(removed = removed.join(", "), "removed the rules of the mode that is not in use");
    }
    for failure in failures {
        tracing::warn!("cannot remove the rules of the mode that is not in use: {failure}");
    }
}

impl Cleaned {
    fn take(&mut self, (removed, failures): (Vec<String>, Vec<TrafficError>)) {
        self.removed.extend(removed);
        self.failures.extend(failures);
    }
}

fn subnets(recorded: &Recorded) -> Vec<IpNetwork> {
    let ipv4 = recorded.subnets.iter().map(|subnet| IpNetwork::V4(*subnet));
    ipv4.chain(recorded.ipv6_subnets.iter().map(|subnet| IpNetwork::V6(*subnet))).collect()
}
