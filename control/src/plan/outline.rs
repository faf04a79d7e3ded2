//! The part of a plan that is known before there is a lease.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::lease::LeaseAttrs;
use path::encap::Format;
use wire::addr::Mtu;

use super::context::Context;

/// The note for a dual-stack node whose backend carries one family.
pub(super) const IPV4_ONLY: &str =
    "the backend carries IPv4 only: pods get IPv6 addresses, but cannot reach those of other nodes";

/// The part of a plan that is known before there is a lease: which tunnels to open and what to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The tunnels to open, in the order of [`Plan::tunnels`](super::Plan::tunnels).
    pub tunnels: Vec<TunnelOutline>,
    /// This node's lease attributes.
    pub attrs: LeaseAttrs,
    /// `FLANNEL_MTU`: the MTU of pods.
    pub pod_mtu: Mtu,
    /// Requests of the configuration that cannot be met, one sentence each.
    pub notes: Vec<&'static str>,
}

impl Outline {
    /// Builds the outline of one tunnel that carries IPv4 and publishes only its type and the public address.
    /// In a dual-stack cluster a note says that IPv6 is left out.
    pub(super) fn ipv4_only(context: &Context, tunnel: TunnelOutline, public: Ipv4Addr) -> Outline {
        let attrs = LeaseAttrs {
            public_ip: public,
            public_ipv6: None,
            backend_type: context.config.backend.published_type().to_owned(),
            backend_data: None,
            backend_v6_data: None,
        };
        let notes = context.config.ipv6.is_some().then_some(IPV4_ONLY).into_iter().collect();
        Outline { pod_mtu: tunnel.mtu, tunnels: vec![tunnel], attrs, notes }
    }
}

/// One tunnel before its addresses are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelOutline {
    /// Name of the TUN device.
    pub device: String,
    /// MTU of the device.
    pub mtu: Mtu,
    /// The address that receives peers' datagrams.
    pub listen: SocketAddr,
    /// More receiving addresses; the first address of each family also sends.
    pub listen_besides: Vec<SocketAddr>,
    /// The source address of our datagrams; `None`: the listening socket's.
    pub send_from: Option<IpAddr>,
    /// The encapsulation.
    pub format: Format,
}
