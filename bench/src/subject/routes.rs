//! No tunnel: each host routes the other's pods to the other's address, as host-gw does. The difference to
//! this subject is the cost of a tunnel.

use anyhow::Result;
use lab::{Lab, PodNetwork, Route};

use super::{UNDERLAY_MTU, fixed_networks};

/// Adds the routes; pods get the full MTU of the underlay.
pub(super) fn start(lab: &Lab) -> Result<Vec<PodNetwork>> {
    let networks = fixed_networks(lab, UNDERLAY_MTU)?;
    for host in lab.hosts() {
        let others = lab.hosts().iter().zip(&networks).filter(|(other, _)| other.number() != host.number());
        for (other, network) in others {
            let Some(subnet) = network.ipv4 else { continue };
            host.namespace().add_route(&Route {
                destination: subnet.into(),
                via: Some(other.underlay().into()),
                device: None,
                onlink: false,
            })?;
        }
    }
    Ok(networks)
}
