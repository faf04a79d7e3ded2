//! flannel's `wireguard` backend.
//!
//! Mode `separate`: IPv4 pods in IPv4 on `flannel-wg`, IPv6 pods in IPv6 on `flannel-wg-v6`. The other modes:
//! one `flannel-wg` for both families; each peer has both subnets of its lease behind one key, and is reached
//! over IPv4 or IPv6 depending on the mode.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;
use model::backend::{Wireguard, WireguardMode};
use model::lease::{Lease, LeaseAttrs, RawJson};
use model::wireguard::{WireguardData, parse_key};
use path::encap::Format;
use path::wireguard::{PublicKey, SecretKey};

use super::context::{Context, inner_mtu, places};
use super::error::{PlanError, missing};
use super::intent::{Link, Paths, Peer, Place, Route, Secrets, Tunnel};
use super::outline::{Outline, TunnelOutline};
use super::peers::{check_type, sift};
use store::lease::ledger::LeaseSet;

const DEVICE: &str = "flannel-wg";
const DEVICE_V6: &str = "flannel-wg-v6";
/// flannel's overhead for both families: outer IPv6 and UDP headers, a data message's header and tag.
const OVERHEAD: u32 = 40 + 8 + 16 + 16;
/// The backend type in leases.
const TYPE: &str = "wireguard";

/// Returns true if each family has its own tunnel.
fn is_separate(wireguard: &Wireguard) -> bool {
    wireguard.mode == WireguardMode::Separate
}

pub(super) fn outline(context: &Context, wireguard: &Wireguard) -> Result<Outline, PlanError> {
    let refused = |problem| Err(PlanError::Backend { backend: TYPE, problem });
    let (ipv4, ipv6) = (context.config.ipv4.is_some(), context.config.ipv6.is_some());
    match wireguard.mode {
        WireguardMode::Ipv4 if !ipv4 => {
            return refused(
                "Mode ipv4 needs nodes with IPv4 addresses, but the network configuration has only IPv6; use \
                 auto or ipv6",
            );
        }
        WireguardMode::Ipv6 if !ipv6 => {
            return refused(
                "Mode ipv6 needs nodes with IPv6 addresses, but the network configuration has only IPv4; use \
                 auto or ipv4",
            );
        }
        _ => {}
    }
    let Some(private) = &context.private_key else {
        return refused("there is no private key");
    };
    let data = |port| WireguardData { public_key: private.public().0, port: Some(port) }.to_json();
    let outer = wireguard.mtu.unwrap_or(context.underlay.mtu);
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
    let tunnel = |device: &str, ipv6, listen: &[SocketAddr]| -> Result<TunnelOutline, PlanError> {
        Ok(TunnelOutline {
            device: device.to_owned(),
            mtu: inner_mtu(context, outer, OVERHEAD, ipv6)?,
            listen: listen.first().copied().ok_or(missing("a family", "the network configuration"))?,
            listen_besides: listen.iter().skip(1).copied().collect(),
            send_from: None,
            format: Format::Wireguard,
        })
    };
    let mut listen = Vec::new();
    if ipv4 {
        let ends = context.underlay.ipv4.ok_or(missing("IPv4", "the underlay"))?;
        outline.attrs.public_ip = ends.public;
        outline.attrs.backend_data = Some(data(wireguard.listen_port));
        listen.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), wireguard.listen_port));
    }
    if ipv6 {
        let ends = context.underlay.ipv6.ok_or(missing("IPv6", "the underlay"))?;
        outline.attrs.public_ipv6 = Some(ends.public);
        outline.attrs.backend_v6_data = Some(data(wireguard.listen_port_v6));
        let at = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        listen.push(at(wireguard.listen_port_v6));
        // flannel publishes the IPv6 port, but its single device listens on the IPv4 port, and expects the
        // same of peers that publish no port.
        if !is_separate(wireguard) && wireguard.listen_port != wireguard.listen_port_v6 {
            listen.push(at(wireguard.listen_port));
        }
    }
    if is_separate(wireguard) {
        for address in listen {
            let device = if address.is_ipv4() { DEVICE } else { DEVICE_V6 };
            outline.tunnels.push(tunnel(device, address.is_ipv6(), &[address])?);
        }
    } else {
        outline.tunnels.push(tunnel(DEVICE, ipv6, &listen)?);
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
    // The places of each tunnel.
    let places: Vec<Vec<Place>> = match is_separate(wireguard) {
        true => places.into_iter().map(|place| vec![place]).collect(),
        false => vec![places],
    };
    let own_key = context.private_key.as_ref().map(SecretKey::public);
    let sifted = sift(own, leases, places.len(), |lease| {
        check_type(lease, TYPE)?;
        let mut found = Vec::new();
        for (tunnel, places) in places.iter().enumerate() {
            for ipv4 in places.iter().map(|place| place.cluster.is_ipv4()) {
                let peer = match (is_separate(wireguard), ipv4) {
                    (true, true) => peer_v4(lease, wireguard)?,
                    (true, false) => peer_v6(lease, wireguard)?,
                    (false, _) => peer_in_one(context, lease, wireguard, ipv4)?,
                };
                found.extend(peer.map(|peer| (tunnel, peer)));
            }
        }
        match found.iter().any(|(_, peer)| peer.key == own_key) {
            true => Err("it has our own public key".to_owned()),
            false => Ok(found),
        }
    });
    // The check of the configuration has admitted only valid keys.
    let psk = wireguard.psk.as_ref().and_then(|psk| parse_key(psk.reveal())).unwrap_or_default();
    let secrets = Secrets { psk: SecretKey(psk), keepalive: wireguard.keepalive };
    let tunnels = outline.tunnels.iter().zip(places.into_iter().zip(sifted.peers));
    let tunnels = tunnels.map(|(outline, (places, peers))| Tunnel {
        routes: places.iter().map(|place| route(place.cluster)).collect(),
        link: Link { device: outline.device.clone(), places, mtu: outline.mtu },
        format: outline.format,
        secrets: Some(secrets.clone()),
        peers,
    });
    Ok(Paths { tunnels: tunnels.collect(), ignored: sifted.ignored, ..Paths::default() })
}

/// Makes the route into the tunnel. As in flannel it has link scope, which exists only in IPv4.
fn route(cluster: IpNetwork) -> Route {
    Route { link_scope: cluster.is_ipv4(), ..Route::into_device(cluster) }
}

/// Returns one subnet of a peer that has all its subnets behind one key and one endpoint.
fn peer_in_one(
    context: &Context,
    lease: &Lease,
    wireguard: &Wireguard,
    ipv4: bool,
) -> Result<Option<Peer>, String> {
    let subnet = match ipv4 {
        true => lease.subnet().map(IpNetwork::V4),
        false => lease.ipv6_subnet().map(IpNetwork::V6),
    };
    let Some(subnet) = subnet else { return Ok(None) };
    let (v4, v6) = (lease.attrs.backend_data.as_ref(), lease.attrs.backend_v6_data.as_ref());
    let public = endpoint(context, lease, wireguard.mode)?;
    // As in flannel, the IPv6 data's key comes first; in practice both are the same.
    let key = parse(v6.or(v4))?.public_key;
    // The IPv4 data's port, for both families: flannel's single device listens on no other, whatever its IPv6
    // data says.
    let published = v4.map(|data| parse(Some(data))).transpose()?.and_then(|data| data.port);
    let remote = SocketAddr::new(public, published.unwrap_or(wireguard.listen_port));
    Ok(Some(Peer { subnet, remote, mac: None, key: Some(PublicKey(key)) }))
}

/// Chooses the address of a peer that publishes both families.
fn endpoint(context: &Context, lease: &Lease, mode: WireguardMode) -> Result<IpAddr, String> {
    let v4 = Some(lease.attrs.public_ip).filter(|ip| !ip.is_unspecified());
    let v6 = lease.attrs.public_ipv6;
    let local = &context.underlay;
    let (local_v4, local_v6) = (local.ipv4.map(|ends| ends.public), local.ipv6.map(|ends| ends.public));
    let public_v6 = |ip: &Ipv6Addr| !ip.is_unique_local();
    let by_v4 = match (v4, v6) {
        (None, None) => return Err("it publishes no address".to_owned()),
        _ if mode == WireguardMode::Ipv4 => true,
        _ if mode == WireguardMode::Ipv6 => false,
        (Some(_), None) => true,
        (None, Some(_)) => false,
        (Some(_), Some(_)) if local_v4.is_none() || local_v6.is_none() => local_v4.is_some(),
        (Some(v4), Some(_)) if !v4.is_private() => true,
        (Some(_), Some(v6)) => !(public_v6(&v6) && local_v6.as_ref().is_some_and(public_v6)),
    };
    let (address, family) = match by_v4 {
        true => (v4.map(IpAddr::V4), "IPv4"),
        false => (v6.map(IpAddr::V6), "IPv6"),
    };
    address.ok_or_else(|| format!("it publishes no {family} address, which this node needs to reach peers"))
}

/// Returns the peer on the IPv4 tunnel. A node without an IPv4 subnet is not a peer, which is no reason for a
/// warning.
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

/// Builds a peer. Old nodes publish no port; they listen on the same one as we do.
fn peer(subnet: IpNetwork, public: IpAddr, data: Option<&RawJson>, port: u16) -> Result<Peer, String> {
    let data = parse(data)?;
    let remote = SocketAddr::new(public, data.port.unwrap_or(port));
    Ok(Peer { subnet, remote, mac: None, key: Some(PublicKey(data.public_key)) })
}

fn parse(data: Option<&RawJson>) -> Result<WireguardData, String> {
    let data = WireguardData::parse(data.ok_or("it publishes no wireguard data")?.as_str())?;
    match PublicKey(data.public_key).is_weak() {
        true => Err("its public key is a point of small order, so anybody could impersonate it".to_owned()),
        false => Ok(data),
    }
}

#[cfg(test)]
mod tests {
    use model::lease::SubnetKey;
    use model::wireguard::render_key;

    use super::super::tests::{context, expect_outline, expect_plan, raw};
    use super::super::{Context, outline, plan};
    use super::*;

    /// The output of `wg pubkey` for 32 bytes of 7, the context's private key.
    const OWN: &str = "E75P6uryBMf9M1j8nAByGIHRdCeBKCJ+xnTzf3/pe20=";

    #[test]
    fn separate_is_a_tunnel_for_each_family() {
        let context = dual("separate");
        expect_outline(
            &context,
            &published(
                "flannel-wg mtu 1420 listens 0.0.0.0:51820\nflannel-wg-v6 mtu 1420 listens [::]:51821",
            ),
        );
        expect_plan(
            &context,
            &own(),
            &[node(2), only_v4(3)],
            "
            flannel-wg mtu 1420 address 10.244.1.0/32
              route 10.244.0.0/16 scope link
              peer 10.244.2.0/24 at 192.0.2.2:51000 key 02
              peer 10.244.3.0/24 at 192.0.2.3:51000 key 03
            flannel-wg-v6 mtu 1420 address fd00:244:1::/128
              route fd00:244::/40
              peer fd00:244:2::/64 at [2001:db8::2]:51001 key 02
            FLANNEL_NETWORK=10.244.0.0/16
            FLANNEL_SUBNET=10.244.1.1/24
            FLANNEL_IPV6_NETWORK=fd00:244::/40
            FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
            FLANNEL_MTU=1420
            FLANNEL_IPMASQ=false
            ",
        );
    }

    #[test]
    fn the_other_modes_are_one_tunnel_that_listens_on_both_ports() {
        for (mode, second) in [
            ("ipv4", "192.0.2.2:51000"),
            // Whatever is published for IPv6: flannel listens on a single port.
            ("ipv6", "[2001:db8::2]:51000"),
            // Documentation addresses count as public in both families, and IPv4 comes first.
            ("auto", "192.0.2.2:51000"),
        ] {
            let context = dual(mode);
            expect_outline(
                &context,
                &published("flannel-wg mtu 1420 listens 0.0.0.0:51820 and [::]:51821 and [::]:51820"),
            );
            expect_plan(
                &context,
                &own(),
                &[node(2)],
                &format!(
                    "
            flannel-wg mtu 1420 address 10.244.1.0/32 and fd00:244:1::/128
              route 10.244.0.0/16 scope link
              route fd00:244::/40
              peer 10.244.2.0/24 at {second} key 02
              peer fd00:244:2::/64 at {second} key 02
            FLANNEL_NETWORK=10.244.0.0/16
            FLANNEL_SUBNET=10.244.1.1/24
            FLANNEL_IPV6_NETWORK=fd00:244::/40
            FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
            FLANNEL_MTU=1420
            FLANNEL_IPMASQ=false
            "
                ),
            );
        }
    }

    #[test]
    fn auto_takes_the_family_that_flannel_takes() {
        let (public_v6, unique_local) = (Some("2001:db8::2"), Some("fd00::2"));
        for (v4, v6, ours_v6, expected) in [
            ("198.51.100.2", None, "2001:db8::1", "198.51.100.2"),
            ("198.51.100.2", public_v6, "2001:db8::1", "198.51.100.2"),
            ("10.0.0.2", public_v6, "2001:db8::1", "2001:db8::2"),
            ("172.31.0.2", public_v6, "2001:db8::1", "2001:db8::2"),
            ("192.168.0.2", public_v6, "fd00::1", "192.168.0.2"),
            ("192.168.0.2", unique_local, "2001:db8::1", "192.168.0.2"),
            ("192.168.0.2", unique_local, "fd00::1", "192.168.0.2"),
            ("0.0.0.0", public_v6, "fd00::1", "2001:db8::2"),
        ] {
            let mut context = dual("auto");
            if let Some(ends) = &mut context.underlay.ipv6 {
                ends.public = ours_v6.parse().expect("address");
            }
            let mut lease = node(2);
            lease.attrs.public_ip = v4.parse().expect("address");
            lease.attrs.public_ipv6 = v6.map(|ip| ip.parse().expect("address"));
            let found = endpoint(&context, &lease, WireguardMode::Auto).expect("one of them");
            assert_eq!(found.to_string(), expected, "{v4} {v6:?} from {ours_v6}");
        }
    }

    #[test]
    fn with_one_family_auto_has_one_tunnel_and_its_route() {
        let mut context =
            context(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","Mode":"auto"}}"#, 1500);
        context.underlay.ipv6 = None;
        let own = Lease { key: "10.244.1.0-24".parse().expect("key"), ..own() };
        expect_plan(
            &context,
            &own,
            &[node(2), only_v4(3)],
            "
            flannel-wg mtu 1420 address 10.244.1.0/32
              route 10.244.0.0/16 scope link
              peer 10.244.2.0/24 at 192.0.2.2:51000 key 02
              peer 10.244.3.0/24 at 192.0.2.3:51000 key 03
            FLANNEL_NETWORK=10.244.0.0/16
            FLANNEL_SUBNET=10.244.1.1/24
            FLANNEL_MTU=1420
            FLANNEL_IPMASQ=false
            ",
        );
    }

    #[test]
    fn a_peer_that_the_mode_cannot_reach_is_named() {
        let mut blind = node(2);
        blind.attrs.public_ipv6 = None;
        let mut bare = node(3);
        (bare.attrs.backend_data, bare.attrs.backend_v6_data) = (None, None);
        let mut old = node(4);
        old.attrs.backend_data = raw(&format!(r#"{{"PublicKey":"{}"}}"#, key(4)));
        old.attrs.backend_v6_data = raw(&format!(r#"{{"PublicKey":"{}"}}"#, key(4)));
        let own_key =
            Lease { attrs: LeaseAttrs { backend_v6_data: data(OWN, 1), ..node(5).attrs }, ..node(5) };
        let leases = [blind, bare, old, own_key].into_iter().collect();
        let plan = plan(&dual("ipv6"), &own(), &leases).expect("a plan");
        let reasons: Vec<String> =
            plan.ignored.iter().map(|lease| format!("{}: {}", lease.subnet, lease.reason)).collect();
        assert_eq!(
            reasons,
            [
                "10.244.2.0-24&fd00:244:2::-64: it publishes no IPv6 address, which this node needs to reach \
                 peers",
                "10.244.3.0-24&fd00:244:3::-64: it publishes no wireguard data",
                "10.244.5.0-24&fd00:244:5::-64: it has our own public key",
            ]
        );
        let ports: Vec<u16> = plan.tunnels[0].peers.iter().map(|peer| peer.remote.port()).collect();
        assert_eq!(ports, [51820, 51820], "a peer without a port listens on ours");
    }

    #[test]
    fn a_mode_without_its_family_is_refused() {
        let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{"Type":"wireguard","Mode":"ipv4"}}"#;
        let error = outline(&context(config, 1500)).expect_err("no IPv4").to_string();
        assert!(error.contains("only IPv6; use auto or ipv6"), "{error}");
    }

    fn dual(mode: &str) -> Context {
        let backend = format!(r#"{{"Type":"wireguard","Mode":"{mode}"}}"#);
        context(
            &format!(
                r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{backend}}}"#
            ),
            1500,
        )
    }

    /// Returns the text of an outline, with the attributes that all modes publish.
    fn published(tunnels: &str) -> String {
        format!(
            r#"{tunnels}
publishes {{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"wireguard","BackendData":{{"PublicKey":"{OWN}","Port":51820}},"BackendV6Data":{{"PublicKey":"{OWN}","Port":51821}}}}
"#
        )
    }

    fn own() -> Lease {
        node(1)
    }

    /// Makes a node at 192.0.2.NODE and 2001:db8::NODE whose key repeats its number.
    fn node(node: u8) -> Lease {
        let key_text = format!("10.244.{node}.0-24&fd00:244:{node}::-64");
        let attrs = LeaseAttrs {
            public_ip: [192, 0, 2, node].into(),
            public_ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into())),
            backend_type: TYPE.to_owned(),
            backend_data: data(&key(node), 51000),
            backend_v6_data: data(&key(node), 51001),
        };
        Lease { key: key_text.parse::<SubnetKey>().expect("a key"), attrs, expires: Some(1) }
    }

    fn only_v4(number: u8) -> Lease {
        let mut lease = node(number);
        lease.key = format!("10.244.{number}.0-24").parse().expect("a key");
        (lease.attrs.public_ipv6, lease.attrs.backend_v6_data) = (None, None);
        lease
    }

    fn key(node: u8) -> String {
        render_key(&[node; 32])
    }

    fn data(key: &str, port: u16) -> Option<RawJson> {
        raw(&format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#))
    }
}
