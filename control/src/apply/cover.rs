//! One route for all while many are being put.
//!
//! Ten thousand routes take the kernel more than a second; the workers' tables are there in milliseconds. So where
//! many routes into a tunnel are missing, one for the whole cluster network comes first and goes when they are
//! there. Its metric is the worst there is: any route of anybody's to the same network is better, and every route to
//! a part of it. A packet for a subnet that nobody has is then refused by the tunnel instead of taking the default
//! route. A cover that a crash has left looks like any stale route of ours and is removed by the next comparison.

use ipnetwork::IpNetwork;
use rtnetlink::Handle;
use rtnetlink::packet_route::route::RouteAttribute;

use super::routes::{Change, Scope, Share, message};
use crate::plan::Route;

/// Fewer missing routes than this are there in no time.
const MANY: usize = 100;
/// Metric of the cover, in both families the last to be taken.
const LAST: u32 = u32::MAX;

/// Puts a cover for each tunnel for which many routes are to be put, where the kernel takes one; gives the shares
/// that have one, with the network covered.
pub(super) async fn put(
    netlink: &Handle,
    shares: &[Share<'_>],
    changes: &[Change],
) -> Vec<(usize, IpNetwork)> {
    let mut covered = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        let Scope::Tunnel(places) = share.scope else { continue };
        for cluster in places.iter().map(|place| place.cluster) {
            let missing = changes.iter().filter(
                |change| matches!(change, Change::Put(at, route) if *at == number && route.to.is_ipv4() == cluster.is_ipv4()),
            );
            let wanted_anyway = share.routes.iter().any(|route| route.to == cluster);
            if missing.count() < MANY || wanted_anyway {
                continue;
            }
            let mut cover = message(share.index, Route::into_device(cluster), false);
            cover.attributes.push(RouteAttribute::Priority(LAST));
            match netlink.route().add(cover).execute().await {
                Ok(()) => covered.push((number, cluster)),
                // The single routes do without; they only take longer.
                Err(error) => tracing::debug!(device = share.device, %error, "no route for all at once"),
            }
        }
    }
    covered
}

/// The removals of the covers.
pub(super) fn removals(covered: &[(usize, IpNetwork)]) -> Vec<Change> {
    let of = |(number, cluster): &(usize, IpNetwork)| Change::Remove(*number, Route::into_device(*cluster));
    covered.iter().map(of).collect()
}
