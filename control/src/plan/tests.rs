//! Plans for given leases, as text that a person can check against flannel's documentation.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use model::subnet_env;
use model::{lease::SubnetKey, net_config};

use model::lease::LeaseAttrs;
use path::encap::Format;
use wire::addr::Mac;

use super::outline::IPV4_ONLY;
use super::*;
use crate::underlay::reach::{Reach, Way};
use crate::underlay::{Endpoint, Underlay};
use path::wireguard::SecretKey;

#[test]
fn vxlan_ipv4() {
    let context = context(VXLAN, 1500);
    expect_outline(
        &context,
        r#"
        flannel.1 mtu 1450 listens 0.0.0.0:8472 sends from 192.0.2.1
        publishes {"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:2a:00:00:00:01"}}
        "#,
    );
    expect_plan(
        &context,
        &own("10.244.1.0-24"),
        &[vxlan("10.244.3.0-24", 3), vxlan("10.244.2.0-24", 2)],
        "
        flannel.1 mtu 1450 address 10.244.1.0/32
          route 10.244.2.0/24 via 10.244.2.0
          route 10.244.3.0/24 via 10.244.3.0
          peer 10.244.2.0/24 at 192.0.2.2:8472 mac 0e:2a:00:00:02:04
          peer 10.244.3.0/24 at 192.0.2.3:8472 mac 0e:2a:00:00:03:04
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_MTU=1450
        FLANNEL_IPMASQ=false
        ",
    );
}

#[test]
fn vxlan_dual_stack_is_two_overlays() {
    let context = context(VXLAN_DUAL, 1500);
    expect_outline(
        &context,
        r#"
        flannel.7 mtu 1450 listens 0.0.0.0:4789 sends from 192.0.2.1
        flannel-v6.7 mtu 1430 listens [::]:4789 sends from 2001:db8::1
        publishes {"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:2a:00:00:00:01"},"BackendV6Data":{"VNI":7,"VtepMAC":"0e:2a:00:00:00:02"}}
        "#,
    );
    expect_plan(
        &context,
        &own("10.244.1.0-24&fd00:244:1::-64"),
        &[vxlan("10.244.2.0-24&fd00:244:5::-64", 2), vxlan("10.244.3.0-24", 3)],
        "
        flannel.7 mtu 1450 address 10.244.1.0/32
          route 10.244.2.0/24 via 10.244.2.0
          route 10.244.3.0/24 via 10.244.3.0
          peer 10.244.2.0/24 at 192.0.2.2:4789 mac 0e:2a:00:00:02:04
          peer 10.244.3.0/24 at 192.0.2.3:4789 mac 0e:2a:00:00:03:04
        flannel-v6.7 mtu 1430 address fd00:244:1::/128
          route fd00:244:5::/64 via fd00:244:5::
          peer fd00:244:5::/64 at [2001:db8::2]:4789 mac 0e:2a:00:00:02:06
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_IPV6_NETWORK=fd00:244::/40
        FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
        FLANNEL_MTU=1450
        FLANNEL_IPMASQ=false
        ",
    );
}

#[test]
fn udp_takes_every_backend_type_and_one_route() {
    let context = context(UDP, 1500);
    expect_outline(
        &context,
        r#"
        flannel0 mtu 1472 listens 192.0.2.1:8285
        publishes {"PublicIP":"192.0.2.1","PublicIPv6":null}
        "#,
    );
    let mut plain = vxlan("10.244.3.0-24", 3);
    (plain.attrs.backend_type, plain.attrs.backend_data) = (String::new(), None);
    expect_plan(
        &context,
        &own("10.244.1.0-24"),
        &[vxlan("10.244.2.0-24", 2), plain],
        "
        flannel0 mtu 1472 address 10.244.1.0/32
          route 10.244.0.0/16
          peer 10.244.2.0/24 at 192.0.2.2:8285
          peer 10.244.3.0/24 at 192.0.2.3:8285
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_MTU=1472
        FLANNEL_IPMASQ=false
        ",
    );
}

#[test]
fn ipip_leads_through_public_addresses() {
    let mut context =
        context(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}"#, 1500);
    // The published address is the NAT's; packets leave from the interface's.
    context.underlay.ipv4 =
        context.underlay.ipv4.map(|ends| Endpoint { public: [203, 0, 113, 9].into(), ..ends });
    expect_outline(
        &context,
        r#"
        flannel.ipip mtu 1480 listens 192.0.2.1:0
        publishes {"PublicIP":"203.0.113.9","PublicIPv6":null,"BackendType":"ipip"}
        "#,
    );
    assert_eq!(
        outline(&context).expect("fine").tunnels[0].format,
        Format::Ipip(path::Ipip { local: [192, 0, 2, 1].into() })
    );
    let ipip = |key: &str, node| {
        let mut lease = vxlan(key, node);
        (lease.attrs.backend_type, lease.attrs.backend_data) = ("ipip".into(), None);
        lease
    };
    context.reach = [([192, 0, 2, 3].into(), Way::OnLink)].into_iter().collect();
    expect_plan(
        &context,
        &own("10.244.1.0-24"),
        &[ipip("10.244.2.0-24", 2), ipip("10.244.3.0-24", 3), vxlan("10.244.4.0-24", 4)],
        r#"
        flannel.ipip mtu 1480 address 10.244.1.0/32
          route 10.244.2.0/24 via 192.0.2.2
          peer 10.244.2.0/24 at 192.0.2.2:0
          peer 10.244.3.0/24 at 192.0.2.3:0
        direct by eth0
          in 10.244.0.0/16 of length 24
          route 10.244.3.0/24 via 192.0.2.3
        tunnelled 10.244.2.0/24: 192.0.2.2: its route has not been looked up
        ignored 10.244.4.0-24: its backend type is "vxlan", ours is "ipip"
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_MTU=1480
        FLANNEL_IPMASQ=false
        "#,
    );
}

#[test]
fn host_gw_is_one_route_per_peer_and_family() {
    let context = context(HOST_GW_DUAL, 1500);
    expect_outline(
        &context,
        r#"
        publishes {"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}
        "#,
    );
    let host_gw = |key: &str, node| {
        let mut lease = vxlan(key, node);
        (lease.attrs.backend_type, lease.attrs.backend_data, lease.attrs.backend_v6_data) =
            ("host-gw".into(), None, None);
        lease
    };
    expect_plan(
        &context,
        &own("10.244.1.0-24&fd00:244:1::-64"),
        &[
            host_gw("10.244.3.0-24&fd00:244:3::-64", 3),
            host_gw("10.244.2.0-24", 2),
            vxlan("10.244.4.0-24", 4),
        ],
        r#"
        direct by eth0
          in 10.244.0.0/16 of length 24
          in fd00:244::/40 of length 64
          route 10.244.2.0/24 via 192.0.2.2
          route 10.244.3.0/24 via 192.0.2.3
          route fd00:244:3::/64 via 2001:db8::3
        ignored 10.244.4.0-24: its backend type is "vxlan", ours is "host-gw"
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_IPV6_NETWORK=fd00:244::/40
        FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
        FLANNEL_MTU=1500
        FLANNEL_IPMASQ=false
        "#,
    );
}

#[test]
fn host_gw_serves_ipv6_alone_and_refuses_a_nat() {
    let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{"Type":"host-gw"}}"#;
    let outline_v6 = outline(&context(config, 1500)).expect("IPv6 only");
    assert_eq!(
        outline_v6.attrs.to_json(),
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}"#
    );
    let mut nat = context(HOST_GW_DUAL, 1500);
    nat.underlay.ipv6 = nat.underlay.ipv6.map(|ends| Endpoint { public: Ipv6Addr::LOCALHOST, ..ends });
    let error = outline(&nat).expect_err("routes do not cross a NAT").to_string();
    assert!(error.contains("host-gw") && error.contains("NAT") && error.contains("vxlan"), "{error}");
}

#[test]
fn leases_that_cannot_be_peers_are_left_out_with_a_reason() {
    let changed = |key, node, change: &dyn Fn(&mut Lease)| {
        let mut lease = vxlan(key, node);
        change(&mut lease);
        lease
    };
    let leases = [
        vxlan("10.244.1.0-24", 9),
        vxlan("10.244.0.0-20", 8),
        vxlan("10.244.20.0-24", 1),
        changed("10.244.21.0-24", 21, &|lease| lease.attrs.backend_type = "host-gw".into()),
        changed("10.244.22.0-24", 22, &|lease| lease.attrs.backend_data = None),
        changed("10.244.23.0-24", 23, &|lease| lease.attrs.backend_data = raw(r#"{"VtepMAC":""}"#)),
        changed("10.244.24.0-24", 24, &|lease| lease.attrs.public_ip = Ipv4Addr::UNSPECIFIED),
        changed("10.244.25.0-24", 25, &|lease| {
            lease.attrs.backend_data = raw(r#"{"VtepMAC":"0e:2a:00:00:19:04"}"#);
        }),
        vxlan("10.244.26.0-24", 26),
        vxlan("10.244.26.0-24&fd00:244:26::-64", 27),
        // One inside another lease, one around two.
        vxlan("10.244.26.128-25", 28),
        vxlan("10.244.24.0-22", 29),
    ];
    expect_plan(
        &context(VXLAN, 1500),
        &own("10.244.1.0-24"),
        &leases,
        r#"
        flannel.1 mtu 1450 address 10.244.1.0/32
          route 10.244.25.0/24 via 10.244.25.0
          route 10.244.26.0/24 via 10.244.26.0
          peer 10.244.25.0/24 at 192.0.2.25:8472 mac 0e:2a:00:00:19:04
          peer 10.244.26.0/24 at 192.0.2.27:8472 mac 0e:2a:00:00:1b:04
        ignored 10.244.0.0-20: it overlaps our own subnet 10.244.1.0-24
        ignored 10.244.20.0-24: it has our own public address 192.0.2.1
        ignored 10.244.21.0-24: its backend type is "host-gw", ours is "vxlan"
        ignored 10.244.22.0-24: it publishes no IPv4 vxlan data
        ignored 10.244.23.0-24: vxlan data: VtepMAC is empty: the node has no tunnel device yet
        ignored 10.244.24.0-22: it overlaps the lease 10.244.25.0-24
        ignored 10.244.24.0-24: it publishes no IPv4 address for its IPv4 subnet
        ignored 10.244.26.0-24: the lease 10.244.26.0-24&fd00:244:26::-64 claims the same subnet
        ignored 10.244.26.128-25: it overlaps the lease 10.244.26.0-24&fd00:244:26::-64
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_MTU=1450
        FLANNEL_IPMASQ=false
        "#,
    );
}

#[test]
fn mtu_follows_flannel_per_family() {
    let mtus = |config: &str, nic| {
        let outline = outline(&context(config, nic)).expect("room enough");
        let devices: Vec<u16> = outline.tunnels.iter().map(|tunnel| tunnel.mtu.get()).collect();
        (devices, outline.pod_mtu.get())
    };
    assert_eq!(mtus(VXLAN_DUAL, 9000), (vec![8950, 8930], 8950));
    let smaller = VXLAN_DUAL.replace(r#""VNI""#, r#""MTU":1400,"VNI""#);
    assert_eq!(mtus(&smaller, 1500), (vec![1350, 1350], 1350));
    // The pods' MTU follows the key, the device's MTU the interface.
    let larger = VXLAN_DUAL.replace(r#""VNI""#, r#""MTU":9000,"VNI""#);
    assert_eq!(mtus(&larger, 1500), (vec![1450, 1430], 8950));
    assert_eq!(mtus(UDP, 65536), (vec![65508], 65508));
}

#[test]
fn an_mtu_without_room_is_refused_by_name() {
    let error = outline(&context(VXLAN, 100)).expect_err("50 bytes are too few").to_string();
    assert_eq!(
        error,
        "MTU 100 leaves 50 bytes after 50 bytes of tunnel headers, but IPv4 needs 68; raise the MTU of eth0 \
         or Backend.MTU"
    );
    let error = outline(&context(VXLAN_DUAL, 1340)).expect_err("IPv6 has 1270").to_string();
    assert!(error.contains("IPv6 needs 1280"), "{error}");
}

#[test]
fn backends_that_are_not_built_are_named() {
    for (backend, answer) in [
        (
            r#"{"Type":"wireguard","Mode":"ipv6"}"#,
            "Backend.Type = wireguard: Mode ipv6 needs nodes with IPv6 addresses, but the network \
             configuration has only IPv4; use auto or ipv4",
        ),
        (
            r#"{"Type":"tencent-vpc"}"#,
            "Backend.Type = tencent-vpc: not supported: loden does not use cloud APIs; use vxlan, host-gw \
             within one subnet, or alloc where another program installs the cloud's routes",
        ),
        (
            r#"{"Type":"vxlan","GBP":true}"#,
            "Backend.GBP = true: the policy ID is the packet's mark, which kernels do not pass to a tunnel \
             in userspace; set it to false on all nodes",
        ),
    ] {
        let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#);
        assert_eq!(outline(&context(&config, 1500)).expect_err(backend).to_string(), answer);
    }
    let ipsec =
        format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"ipsec","PSK":"{}"}}}}"#, "k".repeat(96));
    let error = outline(&context(&ipsec, 1500)).expect_err("no ipsec").to_string();
    assert!(error.contains("use wireguard") && !error.contains("kkk"), "{error}");
}

#[test]
fn a_dual_stack_node_keeps_ipv4_where_the_backend_has_no_more() {
    let dual = VXLAN_DUAL.replace("vxlan", "udp");
    let outlined = outline(&context(&dual, 1500)).expect("IPv4 at least");
    assert_eq!(outlined.notes, [IPV4_ONLY]);
    assert_eq!(outlined.attrs.to_json(), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    let mut other = vxlan("10.244.2.0-24&fd00:244:2::-64", 2);
    other.attrs.public_ipv6 = None;
    expect_plan(
        &context(&dual, 1500),
        &own("10.244.1.0-24&fd00:244:1::-64"),
        &[other],
        "
        flannel0 mtu 1472 address 10.244.1.0/32
          route 10.244.0.0/16
          peer 10.244.2.0/24 at 192.0.2.2:4789
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_IPV6_NETWORK=fd00:244::/40
        FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
        FLANNEL_MTU=1472
        FLANNEL_IPMASQ=false
        ",
    );
    let alone =
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{"Type":"udp"}}"#;
    let error = outline(&context(alone, 1500)).expect_err("no IPv4").to_string();
    assert!(error.contains("carries IPv4 only"), "{error}");
}

#[test]
fn alloc_is_a_lease_and_a_file() {
    let alone = context(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}"#, 9000);
    assert!(alone.underlay.ipv6.is_some(), "the node has an address that is not published");
    for config in [alone.clone(), context(&VXLAN_DUAL.replace("vxlan", "alloc"), 9000)] {
        expect_outline(&config, r#"publishes {"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    }
    let mut ipv6 = alone.clone();
    ipv6.underlay.ipv4 = None;
    expect_outline(&ipv6, r#"publishes {"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}"#);
    expect_plan(
        &alone,
        &own("10.244.1.0-24"),
        &[vxlan("10.244.2.0-24", 2)],
        "
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_MTU=9000
        FLANNEL_IPMASQ=false
        ",
    );
}

#[test]
fn extension_tells_commands_of_its_own_kind() {
    let mut context = context(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/40","Backend":{"Type":"extension",
            "PreStartupCommand":"pre","SubnetAddCommand":"add $SUBNET","SubnetRemoveCommand":"del"}}"#,
        1500,
    );
    context.extension_data = raw(r#""my data""#);
    context.underlay.ipv4 =
        context.underlay.ipv4.map(|ends| Endpoint { public: [203, 0, 113, 9].into(), ..ends });
    expect_outline(
        &context,
        r#"publishes {"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"extension","BackendData":"my data"}"#,
    );
    let extension = |key: &str, node, data: &str| {
        let mut lease = vxlan(key, node);
        lease.attrs.backend_type = "extension".into();
        (lease.attrs.backend_data, lease.attrs.backend_v6_data) = (raw(data), None);
        lease
    };
    expect_plan(
        &context,
        &own("10.244.1.0-24&fd00:244:1::-64"),
        &[
            extension("10.244.2.0-24&fd00:244:2::-64", 2, r#""two\nlines""#),
            extension("10.244.3.0-24", 3, r#""""#),
            extension("10.244.4.0-24", 4, "{}"),
            vxlan("10.244.5.0-24", 5),
        ],
        r#"
        commands "add $SUBNET", "del"
          peer SUBNET=10.244.2.0/24 PUBLIC_IP=192.0.2.2 IPV6SUBNET=fd00:244:2::/64 PUBLIC_IPV6=2001:db8::2 "two\nlines"
          peer SUBNET=10.244.3.0/24 PUBLIC_IP=192.0.2.3 IPV6SUBNET= PUBLIC_IPV6= ""
        ignored 10.244.4.0-24: its extension data is not a JSON string
        ignored 10.244.5.0-24: its backend type is "vxlan", ours is "extension"
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_IPV6_NETWORK=fd00:244::/40
        FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
        FLANNEL_MTU=1500
        FLANNEL_IPMASQ=false
        "#,
    );
    let variables = startup_variables(&context.config, &own("10.244.1.0-24"));
    let variables: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        variables,
        [
            "NETWORK=10.244.0.0/16",
            "SUBNET=10.244.1.0/24",
            "PUBLIC_IP=192.0.2.1",
            "IPV6SUBNET=",
            "PUBLIC_IPV6="
        ]
    );
}

#[test]
fn direct_routing_parts_the_peers_by_the_way_to_them() {
    let config = VXLAN_DUAL.replace(r#""VNI""#, r#""directrouting":true,"VNI""#);
    let mut context = context(&config, 1500);
    let ways = [
        ("192.0.2.2", Way::OnLink),
        ("2001:db8::2", Way::Gateway("2001:db8::fe".parse().expect("address"))),
        ("192.0.2.3", Way::Elsewhere),
    ];
    context.reach = ways.into_iter().map(|(ip, way)| (ip.parse().expect("address"), way)).collect();
    assert!(context.routes_directly());
    expect_plan(
        &context,
        &own("10.244.1.0-24&fd00:244:1::-64"),
        &[vxlan("10.244.2.0-24&fd00:244:2::-64", 2), vxlan("10.244.3.0-24", 3), vxlan("10.244.4.0-24", 4)],
        "
        flannel.7 mtu 1450 address 10.244.1.0/32
          route 10.244.3.0/24 via 10.244.3.0
          route 10.244.4.0/24 via 10.244.4.0
          peer 10.244.2.0/24 at 192.0.2.2:4789 mac 0e:2a:00:00:02:04
          peer 10.244.3.0/24 at 192.0.2.3:4789 mac 0e:2a:00:00:03:04
          peer 10.244.4.0/24 at 192.0.2.4:4789 mac 0e:2a:00:00:04:04
        flannel-v6.7 mtu 1430 address fd00:244:1::/128
          route fd00:244:2::/64 via fd00:244:2::
          peer fd00:244:2::/64 at [2001:db8::2]:4789 mac 0e:2a:00:00:02:06
        direct by eth0
          in 10.244.0.0/16 of length 24
          in fd00:244::/40 of length 64
          route 10.244.2.0/24 via 192.0.2.2
        tunnelled 10.244.3.0/24: 192.0.2.3: the route to it leaves through another interface
        tunnelled 10.244.4.0/24: 192.0.2.4: its route has not been looked up
        tunnelled fd00:244:2::/64: 2001:db8::2: the route to it leads through the gateway 2001:db8::fe
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_IPV6_NETWORK=fd00:244::/40
        FLANNEL_IPV6_SUBNET=fd00:244:1::1/64
        FLANNEL_MTU=1450
        FLANNEL_IPMASQ=false
        ",
    );
}

#[test]
fn a_public_address_elsewhere_is_published_but_not_sent_from() {
    let mut context = context(VXLAN, 1500);
    context.underlay.ipv4 = Some(Endpoint {
        source: [192, 0, 2, 1].into(),
        public: [203, 0, 113, 9].into(),
        local: [192, 0, 2, 1].into(),
    });
    let outline = outline(&context).expect("fine");
    assert_eq!(outline.attrs.public_ip.to_string(), "203.0.113.9");
    assert_eq!(outline.tunnels[0].send_from, Some([192, 0, 2, 1].into()));
}

#[test]
fn generated_addresses_are_local_and_unicast() {
    for byte in 0..=255 {
        let Identity { mac, mac_v6 } = Identity::from_random([byte; 12]);
        assert!(mac.is_local() && !mac.is_multicast(), "{mac}");
        assert!(mac_v6.is_local() && !mac_v6.is_multicast(), "{mac_v6}");
    }
}

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const VXLAN_DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/40",
    "Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#;
const HOST_GW_DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/40",
    "Backend":{"Type":"host-gw"}}"#;
const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

pub(super) fn context(config: &str, nic: u32) -> Context {
    let (config, _) = net_config::parse(config).expect("a good configuration");
    let (ipv4, ipv6) = ("192.0.2.1".parse().expect("address"), "2001:db8::1".parse().expect("address"));
    Context {
        config,
        underlay: Underlay {
            interface: "eth0".into(),
            index: 2,
            mtu: nic,
            ipv4: Some(Endpoint { source: ipv4, public: ipv4, local: ipv4 }),
            ipv6: Some(Endpoint { source: ipv6, public: ipv6, local: ipv6 }),
        },
        private_key: Some(SecretKey([7; 32])),
        identity: Identity {
            mac: Mac::new([0x0e, 0x2a, 0, 0, 0, 1]),
            mac_v6: Mac::new([0x0e, 0x2a, 0, 0, 0, 2]),
        },
        ip_masq: false,
        extension_data: None,
        reach: Reach::new(),
    }
}

fn own(key: &str) -> Lease {
    vxlan(key, 1)
}

/// Makes the lease of a vxlan node at 192.0.2.NODE and 2001:db8::NODE.
fn vxlan(key: &str, node: u8) -> Lease {
    let key: SubnetKey = key.parse().expect("a key");
    let data = |family: u8| raw(&format!(r#"{{"VNI":1,"VtepMAC":"0e:2a:00:00:{node:02x}:{family:02x}"}}"#));
    let attrs = LeaseAttrs {
        public_ip: [192, 0, 2, node].into(),
        public_ipv6: key.ipv6().map(|_| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into())),
        backend_type: "vxlan".into(),
        backend_data: data(4),
        backend_v6_data: key.ipv6().and_then(|_| data(6)),
    };
    Lease { key, attrs, expires: Some(1) }
}

pub(super) fn raw(text: &str) -> Option<model::lease::RawJson> {
    Some(model::lease::RawJson::parse(text).expect("JSON"))
}

pub(super) fn expect_outline(context: &Context, expected: &str) {
    let outline = outline(context).expect("an outline");
    let mut text = String::new();
    for tunnel in &outline.tunnels {
        write!(text, "{} mtu {} listens {}", tunnel.device, tunnel.mtu, tunnel.listen).expect("write");
        tunnel.listen_besides.iter().for_each(|at| write!(text, " and {at}").expect("write"));
        tunnel.send_from.into_iter().for_each(|ip| write!(text, " sends from {ip}").expect("write"));
        text.push('\n');
    }
    writeln!(text, "publishes {}", outline.attrs.to_json()).expect("write");
    assert_eq!(text, dedent(expected));
}

pub(super) fn expect_plan(context: &Context, own: &Lease, leases: &[Lease], expected: &str) {
    let in_order = plan(context, own, &leases.iter().cloned().collect()).expect("a plan");
    let reversed = plan(context, own, &leases.iter().rev().cloned().collect()).expect("a plan");
    assert_eq!(in_order, reversed, "the order of leases must not matter");
    assert_eq!(render(&in_order), dedent(expected));
}

fn render(plan: &Plan) -> String {
    let mut text = String::new();
    for tunnel in &plan.tunnels {
        let link = &tunnel.link;
        let addresses: Vec<String> = link.addresses().map(|address| address.to_string()).collect();
        writeln!(text, "{} mtu {} address {}", link.device, link.mtu, addresses.join(" and "))
            .expect("write");
        for route in &tunnel.routes {
            let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
            let scope = if route.link_scope { " scope link" } else { "" };
            writeln!(text, "  route {}{via}{scope}", route.to).expect("write");
        }
        for peer in &tunnel.peers {
            let mac = peer.mac.map(|mac| format!(" mac {mac}")).unwrap_or_default();
            let key = peer.key.map(|key| format!(" key {:02x}", key.0[0])).unwrap_or_default();
            writeln!(text, "  peer {} at {}{mac}{key}", peer.subnet, peer.remote).expect("write");
        }
    }
    if let Some(direct) = &plan.direct {
        writeln!(text, "direct by {}", direct.interface).expect("write");
        for place in &direct.places {
            writeln!(text, "  in {} of length {}", place.cluster, place.subnet.prefix()).expect("write");
        }
        for route in &direct.routes {
            let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
            writeln!(text, "  route {}{via}", route.to).expect("write");
        }
        for detour in &direct.detours {
            writeln!(text, "tunnelled {}: {}", detour.subnet, detour.reason).expect("write");
        }
    }
    if let Some(Commands { add, remove, peers }) = &plan.commands {
        writeln!(text, "commands {add:?}, {remove:?}").expect("write");
        for CommandPeer { variables, stdin } in peers.values() {
            let variables: Vec<String> =
                variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
            writeln!(text, "  peer {} {stdin:?}", variables.join(" ")).expect("write");
        }
    }
    for ignored in &plan.ignored {
        writeln!(text, "ignored {}: {}", ignored.subnet, ignored.reason).expect("write");
    }
    text + &subnet_env::render(&plan.subnet_env)
}

/// Removes the first line's indentation from every line, and surrounding blank lines.
fn dedent(text: &str) -> String {
    let text = text.trim_start_matches('\n').trim_end();
    let indent = text.len() - text.trim_start().len();
    text.lines().map(|line| format!("{}\n", line.get(indent..).unwrap_or(""))).collect()
}

#[test]
fn a_vni_that_makes_the_devices_name_too_long_is_named() {
    let config = |vni: u32, more: &str| {
        format!(r#"{{"Network":"10.244.0.0/16"{more},"Backend":{{"Type":"vxlan","VNI":{vni}}}}}"#)
    };
    let dual = r#","EnableIPv6":true,"IPv6Network":"fd00::/48""#;
    for (vni, more, good) in [
        (9_999_999, "", true),
        (10_000_000, "", false),
        (16_777_215, "", false),
        (9999, dual, true),
        (10_000, dual, false),
    ] {
        match outline(&context(&config(vni, more), 1500)) {
            Ok(_) => assert!(good, "{vni}"),
            Err(error) => {
                assert!(!good && error.to_string().contains(&format!(".{vni} cannot be made")), "{error}")
            }
        }
    }
}
