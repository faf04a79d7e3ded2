//! flannel's `alloc` backend: a lease and `subnet.env`, but no way to carry packets.

use std::net::Ipv4Addr;

use model::lease::LeaseAttrs;

use super::context::{Context, inner_mtu};
use super::error::PlanError;
use super::outline::Outline;

pub(super) fn outline(context: &Context) -> Result<Outline, PlanError> {
    let public_ip = context.underlay.ipv4.map(|ends| ends.public);
    // flannel leaves it out, even in dual-stack; a node without IPv4 needs it to recognise its lease.
    let public_ipv6 = context.underlay.ipv6.map(|ends| ends.public).filter(|_| public_ip.is_none());
    let attrs = LeaseAttrs {
        public_ip: public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6,
        backend_type: context.config.backend.published_type().to_owned(),
        backend_data: None,
        backend_v6_data: None,
    };
    let pod_mtu = inner_mtu(context, context.underlay.mtu, 0, context.config.ipv6.is_some())?;
    Ok(Outline { tunnels: Vec::new(), attrs, pod_mtu, notes: Vec::new() })
}
