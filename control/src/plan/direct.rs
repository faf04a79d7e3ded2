//! `DirectRouting`: a peer on the underlay's link gets a plain route instead of one into the tunnel.
//!
//! The peer's entry in the forwarding table stays, so that packets in flight when the route moves still
//! arrive.

use std::net::IpAddr;

use super::context::Context;
use super::intent::{Direct, Ignored, Peer, Place, Route};
use crate::underlay::reach::Way;

/// Splits each tunnel's peers into routes through the tunnel, with the gateway given by `through`, and direct
/// routes.
pub(super) fn split(
    context: &Context,
    enabled: bool,
    places: &[Place],
    peers: &[Vec<Peer>],
    through: impl Fn(&Peer) -> IpAddr,
) -> (Vec<Vec<Route>>, Option<Direct>) {
    let tunnelled = |peer: &Peer| Route::via(peer.subnet, through(peer));
    if !enabled {
        return (peers.iter().map(|peers| peers.iter().map(tunnelled).collect()).collect(), None);
    }
    let (mut routes, mut detours) = (Vec::new(), Vec::new());
    let mut into_tunnels = Vec::new();
    for peers in peers {
        let mut into_tunnel = Vec::new();
        for peer in peers {
            let public = peer.remote.ip();
            match context.reach.get(&public) {
                Some(Way::OnLink) => routes.push(Route::via(peer.subnet, public)),
                way => {
                    let why =
                        way.map_or_else(|| "its route has not been looked up".to_owned(), Way::to_string);
                    let reason = format!("{public}: {why}");
                    detours.push(Ignored { subnet: peer.subnet.to_string(), reason });
                    into_tunnel.push(tunnelled(peer));
                }
            }
        }
        into_tunnels.push(into_tunnel);
    }
    routes.sort_unstable();
    let interface = context.underlay.interface.clone();
    (into_tunnels, Some(Direct { interface, places: places.to_vec(), routes, detours }))
}
