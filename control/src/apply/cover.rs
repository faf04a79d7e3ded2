//! A temporary route for the whole cluster network while many peer routes are being added.
//!
//! The kernel needs more than a second for ten thousand routes, but the workers' tables are published within
//! milliseconds. Where many routes into a tunnel are missing, one route for the whole cluster network is
//! added first and removed once they are in place. It has the worst possible metric, so any other route to
//! the same network, or to a part of it, takes precedence. Meanwhile a packet for an unassigned subnet is
//! rejected by the tunnel instead of following the default route. A cover left behind by a crash looks like
//! any stale route of ours, so the next comparison removes it.

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::RouteAttribute;

use super::share::{Change, Scope, Share, message};
use crate::netlink::Netlink;
use crate::plan::Route;

/// Number of missing routes from which a cover pays off; fewer are added in no time.
const MANY: usize = 100;
/// Metric of the cover: the lowest precedence in both families.
const LAST: u32 = u32::MAX;

/// Adds a cover to each tunnel that misses many routes, unless the kernel rejects it. Returns the shares that
/// have a cover, each with the covered network.
pub(super) async fn add(
    netlink: &Netlink,
    shares: &[Share<'_>],
    changes: &[Change],
) -> Vec<(usize, IpNetwork)> {
    let mut covered = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        let Scope::Tunnel(places) = share.scope else { continue };
        for cluster in places.iter().map(|place| place.cluster) {
            let v4 = cluster.is_ipv4();
            let fits = |at: usize, route: &Route| at == number && route.to.is_ipv4() == v4;
            let missing =
                changes.iter().filter(|change| matches!(change, Change::Put(at, route) if fits(*at, route)));
            let wanted_anyway = share.routes.iter().any(|route| route.to == cluster);
            if missing.count() < MANY || wanted_anyway {
                continue;
            }
            let mut cover = message(share.index, Route::into_device(cluster), false);
            cover.attributes.push(RouteAttribute::Priority(LAST));
            let what = || format!("add a route to {cluster} dev {}", share.device);
            match netlink.ask(what, async |handle| handle.route().add(cover).execute().await).await {
                Ok(()) => covered.push((number, cluster)),
                // The peer routes work without a cover; packets only have to wait longer.
                Err(error) => tracing::debug!(
                    device = share.device,
                    %error,
                    "cannot add a temporary route for the whole cluster network; adding the peer routes \
                     without it"
                ),
            }
        }
    }
    covered
}

/// Returns the changes that remove the covers.
pub(super) fn removals(covered: &[(usize, IpNetwork)]) -> Vec<Change> {
    let of = |(number, cluster): &(usize, IpNetwork)| Change::Remove(*number, Route::into_device(*cluster));
    covered.iter().map(of).collect()
}
