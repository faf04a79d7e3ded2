//! flannel's `wireguard` backend: IPv4 pods in IPv4 on `flannel-wg`, IPv6 pods in IPv6 on `flannel-wg-v6`, each peer
//! with the subnets of its lease as allowed addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;
use model::backend::{Wireguard, WireguardMode};
use model::lease::{Lease, LeaseAttrs, RawJson};
use model::wireguard::{WireguardData, parse_key};
use path::encap::Format;
use path::wireguard::{PublicKey, SecretKey};

use super::peers::sift;
use super::{
    Context, Link, Outline, Paths, Peer, Place, PlanError, Route, Secrets, Tunnel, TunnelOutline, base,
    inner_mtu, missing, places,
};
use crate::lease::ledger::LeaseSet;

const DEVICE: &str = "flannel-wg";
const DEVICE_V6: &str = "flannel-wg-v6";
/// What flannel counts for both families: an outer IPv6 and a UDP header, a record's header and tag.
const OVERHEAD: u32 = 40 + 8 + 16 + 16;
/// What leases of this backend say.
const TYPE: &str = "wireguard";

pub(super) fn outline(context: &Context, wireguard: &Wireguard) -> Result<Outline, PlanError> {
    let refused = |problem| Err(PlanError::Backend { backend: TYPE, problem });
    let (ipv4, ipv6) = (context.config.ipv4.is_some(), context.config.ipv6.is_some());
    match wireguard.mode {
        WireguardMode::Separate => {}
        WireguardMode::Auto if ipv4 != ipv6 => {}
        WireguardMode::Ipv4 if !ipv6 => {}
        WireguardMode::Ipv6 if !ipv4 => {}
        _ => {
            return refused(
                "one tunnel for both families, or for one in the other, is not supported yet; use Mode separate, or enable one family",
            );
        }
    }
    let Some(private) = &context.private_key else {
        return refused("there is no private key");
    };
    let data = |port| WireguardData { public_key: private.public().0, port: Some(port) }.to_json();
    let outer = wireguard.mtu.unwrap_or(context.underlay.mtu);
    let single = wireguard.mode != WireguardMode::Separate;
    let mut outline = Outline {
        tunnels: Vec::new(),
        attrs: LeaseAttrs {
            public_ip: Ipv4Addr::UNSPECIFIED,
            public_ipv6: None,
            backend_type: TYPE.to_owned(),
            backend_data: None,
            backend_v6_data: None,
        },
        pod_mtu: inner_mtu(context, outer, OVERHEAD, false)?,
        notes: Vec::new(),
    };
    if ipv4 {
        let ends = context.underlay.ipv4.ok_or(missing("IPv4", "the underlay"))?;
        outline.attrs.public_ip = ends.public;
        outline.attrs.backend_data = Some(data(wireguard.listen_port));
        outline.tunnels.push(TunnelOutline {
            device: DEVICE.to_owned(),
            mtu: inner_mtu(context, outer, OVERHEAD, false)?,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), wireguard.listen_port),
            send_from: None,
            format: Format::Wireguard,
        });
    }
    if ipv6 {
        let ends = context.underlay.ipv6.ok_or(missing("IPv6", "the underlay"))?;
        outline.attrs.public_ipv6 = Some(ends.public);
        outline.attrs.backend_v6_data = Some(data(wireguard.listen_port_v6));
        outline.tunnels.push(TunnelOutline {
            device: if single { DEVICE } else { DEVICE_V6 }.to_owned(),
            mtu: inner_mtu(context, outer, OVERHEAD, true)?,
            // Stock peers take the port that is published, which in the single modes is not the one flannel opens.
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), wireguard.listen_port_v6),
            send_from: None,
            format: Format::Wireguard,
        });
    }
    Ok(outline)
}

pub(super) fn paths(
    context: &Context,
    outline: &Outline,
    wireguard: &Wireguard,
    own: &Lease,
    leases: &LeaseSet,
) -> Result<Paths, PlanError> {
    let places = places(context, own)?;
    let own_key = context.private_key.as_ref().map(SecretKey::public);
    let sifted = sift(own, leases, places.len(), |lease| {
        if lease.attrs.backend_type != TYPE {
            return Err(format!("its backend type is {:?}, ours is {TYPE:?}", lease.attrs.backend_type));
        }
        let mut found = Vec::new();
        for (tunnel, place) in places.iter().enumerate() {
            let peer =
                if place.cluster.is_ipv4() { peer_v4(lease, wireguard) } else { peer_v6(lease, wireguard) };
            found.extend(peer?.map(|peer| (tunnel, peer)));
        }
        match found.iter().any(|(_, peer)| peer.key == own_key) {
            true => Err("it has our own public key".to_owned()),
            false => Ok(found),
        }
    });
    // The configuration's check has let only keys through.
    let psk = wireguard.psk.as_ref().and_then(|psk| parse_key(psk.reveal())).unwrap_or_default();
    let secrets = Secrets { psk: SecretKey(psk), keepalive: wireguard.keepalive };
    let tunnels = outline.tunnels.iter().zip(places.into_iter().zip(sifted.peers));
    let tunnels = tunnels.map(|(outline, (Place { cluster, subnet }, peers))| Tunnel {
        link: Link { device: outline.device.clone(), address: base(subnet), cluster, mtu: outline.mtu },
        routes: vec![Route { to: cluster, via: None }],
        format: outline.format,
        secrets: Some(secrets.clone()),
        peers,
    });
    Ok(Paths { tunnels: tunnels.collect(), ignored: sifted.ignored, ..Paths::default() })
}

/// A node without this family is no peer on its tunnel, and no reason for a warning.
fn peer_v4(lease: &Lease, wireguard: &Wireguard) -> Result<Option<Peer>, String> {
    let Some(subnet) = lease.subnet() else { return Ok(None) };
    if lease.attrs.public_ip.is_unspecified() {
        return Err("it publishes no IPv4 address for its IPv4 subnet".into());
    }
    let public = IpAddr::V4(lease.attrs.public_ip);
    peer(IpNetwork::V4(subnet), public, lease.attrs.backend_data.as_ref(), wireguard.listen_port).map(Some)
}

fn peer_v6(lease: &Lease, wireguard: &Wireguard) -> Result<Option<Peer>, String> {
    let (Some(subnet), Some(public)) = (lease.ipv6_subnet(), lease.attrs.public_ipv6) else {
        return Ok(None);
    };
    let data = lease.attrs.backend_v6_data.as_ref();
    peer(IpNetwork::V6(subnet), IpAddr::V6(public), data, wireguard.listen_port_v6).map(Some)
}

/// Old nodes publish no port: they listen where we do.
fn peer(subnet: IpNetwork, public: IpAddr, data: Option<&RawJson>, port: u16) -> Result<Peer, String> {
    let data = data.ok_or("it publishes no wireguard data")?;
    let data = WireguardData::parse(data.as_str())?;
    let remote = SocketAddr::new(public, data.port.unwrap_or(port));
    Ok(Peer { subnet, remote, mac: None, key: Some(PublicKey(data.public_key)) })
}
