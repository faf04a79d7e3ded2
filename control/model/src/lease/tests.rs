//! Key texts and attribute values as flannel writes them, and deviations that readers have to handle.

use proptest::prelude::*;

use super::*;

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

#[test]
fn keys_of_every_form() {
    for text in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "fd00:12:13::-56", "0.0.0.0-0", "::-0"] {
        assert_eq!(key(text).to_string(), text);
    }
    let dual = key("10.5.52.0-24&fd00:12:13::-56");
    assert_eq!(dual.ipv4(), Some("10.5.52.0/24".parse().unwrap()));
    assert_eq!(dual.ipv6(), Some("fd00:12:13::/56".parse().unwrap()));
    assert!(dual.is_readable_by_flannel());
    assert!(!key("fd00:12:13::-56").is_readable_by_flannel());
}

#[test]
fn only_the_end_of_a_key_counts() {
    let plain = key("10.5.52.0-24");
    for text in
        ["/coreos.com/network/subnets/10.5.52.0-24", "x10.5.52.0-24", "1.10.5.52.0-24", "ä10.5.52.0-24"]
    {
        assert_eq!(key(text), plain, "{text}");
    }
    assert_eq!(key("/n/subnets/10.5.52.0-24&fd00::-64"), key("10.5.52.0-24&fd00::-64"));
    assert_eq!(key("/n/subnets/fd00::-64"), key("fd00::-64"));
    assert_eq!(key("10.5.52.0-024"), plain);
    assert_eq!(key("10.5.52.9-24"), plain);
}

#[test]
fn malformed_keys() {
    let malformed = [
        "",
        "-",
        "10.12.13.0",
        "10.12.13.0-",
        "10.12.13.0-24x",
        "10.12.13.0/24",
        "10.12.13-24",
        "10.12.13.256-24",
        "10.12.013.0-24",
        "10.12.13.0-32",
        "10.12.13.0-+4",
        "10.12.13.0-24&",
        "10.12.13.0-24&fd00:12:13::",
        "10.12.13.0-24&fd00:12:13::-",
        "10.12.13.0-24&fd00:12:13::-128",
        "10.12.13.0-24&FD00:12:13::-56",
        "10.12.13.0-24&fd00:12:13-56",
        "10.12.13.0-24&fd00:12:13::g-56",
        "10.12.13.0&fd00:12:13::-56",
        "&fd00:12:13::-56",
        "x fd00::-56",
        "fd00:12:13::",
        "config",
        "10.12.13.0-24 ",
        "10.12.13.0-24\n",
    ];
    for text in malformed {
        assert!(text.parse::<SubnetKey>().is_err(), "{text}");
    }
    let error = "10.12.13.0".parse::<SubnetKey>().unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"subnet key "10.12.13.0": must end in IPV4-LENGTH, IPV4-LENGTH&IPV6-LENGTH or IPV6-LENGTH"#
    );
}

#[test]
fn subnets_without_a_key() {
    let v4 = |text: &str| Some(text.parse().unwrap());
    assert_eq!(SubnetKey::new(None, None), None);
    assert_eq!(SubnetKey::new(v4("10.0.0.1/32"), None), None);
    assert_eq!(SubnetKey::new(None, Some("fd00::1/128".parse().unwrap())), None);
    assert_eq!(SubnetKey::new(None, Some("::ffff:10.0.0.0/120".parse().unwrap())), None);
    assert_eq!(SubnetKey::new(v4("10.1.2.3/24"), None), Some(key("10.1.2.0-24")));
}

#[test]
fn overlap_in_either_family() {
    let dual = key("10.1.0.0-16&fd00::-48");
    assert!(dual.overlaps(&key("10.1.2.0-24")));
    assert!(dual.overlaps(&key("10.2.0.0-24&fd00:0:0:7::-64")));
    assert!(!dual.overlaps(&key("10.2.0.0-24&fd01::-64")));
    assert!(!key("10.1.2.0-24").overlaps(&key("fd00::-64")));
}

fn attrs(text: &str) -> LeaseAttrs {
    LeaseAttrs::parse(text).unwrap()
}

/// Values of several backends as flannel stores them.
const VALUES: [&str; 6] = [
    r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
    r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
    r#"{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#,
    r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw"}"#,
    r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"wireguard","BackendV6Data":{"PublicKey":"bm90IGEga2V5","Port":51821}}"#,
    r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"extension","BackendData":"two \"words\" and a \\"}"#,
];

#[test]
fn values_are_read_and_written_byte_for_byte() {
    for value in VALUES {
        assert_eq!(attrs(value).to_json(), value);
    }
    let dual = attrs(VALUES[2]);
    assert_eq!(dual.public_ip, Ipv4Addr::new(192, 0, 2, 7));
    assert_eq!(dual.public_ipv6, Some("2001:db8::7".parse().unwrap()));
    assert_eq!(dual.backend_type, "vxlan");
    assert_eq!(dual.backend_v6_data.unwrap().as_str(), r#"{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}"#);
}

#[test]
fn a_tolerant_reader() {
    let spaced =
        "{ \"publicip\" : \"1.2.3.4\" , \"Dc\" : 7,\n\"BACKENDDATA\" : { \"a b\" : [ 1 , \"c \\\" d\" ] } }";
    let read = attrs(spaced);
    assert_eq!(read.public_ip, Ipv4Addr::new(1, 2, 3, 4));
    assert_eq!(read.backend_data.unwrap().as_str(), r#"{"a b":[1,"c \" d"]}"#);
    assert_eq!(attrs("{}").public_ip, Ipv4Addr::UNSPECIFIED);
    let nulls = r#"{"PublicIP":null,"BackendType":null,"BackendData":null,"BackendV6Data":null}"#;
    assert_eq!(attrs(nulls), attrs("{}"));
}

#[test]
fn values_that_cannot_be_read() {
    let message = |text: &str| LeaseAttrs::parse(text).unwrap_err().to_string();
    assert_eq!(
        message(r#"{"PublicIP":"1.2.3"}"#),
        "lease attributes: PublicIP = 1.2.3: must be an IPv4 address"
    );
    assert_eq!(
        message(r#"{"PublicIPv6":"1.2.3.4"}"#),
        "lease attributes: PublicIPv6 = 1.2.3.4: must be an IPv6 address"
    );
    assert_eq!(message(r#"{"PublicIP":7}"#), "lease attributes: PublicIP = 7: must be a string");
    for text in ["", "null", "[]", "rubbish", r#"{"PublicIP":"1.2.3.4""#, r#"{"BackendType":{}}"#] {
        assert!(LeaseAttrs::parse(text).is_err(), "{text}");
    }
}

#[test]
fn the_type_of_another_node_cannot_break_the_json() {
    let odd = attrs(r#"{"PublicIP":"1.2.3.4","BackendType":"a\"b\\"}"#);
    assert_eq!(attrs(&odd.to_json()), odd);
}

prop_compose! {
    fn any_key()(
        v4 in any::<(u32, u8)>(), v6 in any::<(u128, u8)>(), families in 1..4u8,
    ) -> Option<SubnetKey> {
        let v4 = cidr::masked_v4(v4.0.into(), v4.1 % 32).filter(|_| families & 1 != 0);
        let v6 = cidr::masked_v6(v6.0.into(), v6.1).filter(|_| families & 2 != 0);
        SubnetKey::new(v4, v6)
    }
}

proptest! {
    #[test]
    fn keys_round_trip(key in any_key()) {
        if let Some(key) = key {
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn attributes_round_trip(ip: u32, v6: Option<u128>, kind in ".*", data in proptest::option::of(".*")) {
        let quoted = |text: String| RawJson::parse(&serde_json::Value::from(text).to_string()).unwrap();
        let attrs = LeaseAttrs {
            public_ip: ip.into(),
            public_ipv6: v6.map(Into::into),
            backend_type: kind,
            backend_data: data.clone().map(quoted),
            backend_v6_data: data.map(quoted),
        };
        prop_assert_eq!(LeaseAttrs::parse(&attrs.to_json()), Ok(attrs));
    }

    #[test]
    fn noise_never_panics(text in ".*", bytes: Vec<u8>) {
        let noise = String::from_utf8_lossy(&bytes);
        for text in [&*text, &*noise] {
            let _ = text.parse::<SubnetKey>();
            let _ = LeaseAttrs::parse(text);
            let _ = RawJson::parse(text);
        }
    }

    #[test]
    fn nearly_a_key_never_panics(text in "[0-9a-f.:&/ä-]{0,40}") {
        if let Ok(key) = text.parse::<SubnetKey>() {
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn nearly_a_value_never_panics(text in r#"\{("(PublicIP|publicipv6|BackendData)":("1\.2\.3\.4"|null|\{\}|7|"[^"]*"),?){0,4}\}"#) {
        if let Ok(attrs) = LeaseAttrs::parse(&text) {
            prop_assert_eq!(LeaseAttrs::parse(&attrs.to_json()), Ok(attrs));
        }
    }
}

#[test]
fn strings_are_written_as_go_does() {
    assert_eq!(RawJson::string("a b").as_str(), r#""a b""#);
    let escaped = r#""\u003ckey a=\"1\" \u0026\u003e\n\t\u2028ü""#;
    assert_eq!(RawJson::string("<key a=\"1\" &>\n\t\u{2028}ü").as_str(), escaped);
    assert_eq!(RawJson::parse(escaped).unwrap().as_str(), escaped);
}

#[test]
fn addresses_that_no_node_can_use_are_not_for_publishing() {
    let check = |ip: &str, ipv6: &str, has_ipv4: bool| {
        let public_ipv6 = (!ipv6.is_empty()).then(|| ipv6.parse().unwrap());
        let attrs = LeaseAttrs {
            public_ip: ip.parse().unwrap(),
            public_ipv6,
            backend_type: String::new(),
            backend_data: None,
            backend_v6_data: None,
        };
        attrs.check(has_ipv4).map_err(|error| error.to_string())
    };
    for (ip, ipv6, has_ipv4) in
        [("192.0.2.1", "", true), ("10.0.0.1", "fe80::1", true), ("0.0.0.0", "fd00::1", false)]
    {
        assert_eq!(check(ip, ipv6, has_ipv4), Ok(()), "{ip} {ipv6}");
    }
    for (ip, ipv6, error) in [
        ("0.0.0.0", "", "PublicIP = 0.0.0.0: must be the IPv4 address of a host"),
        ("224.0.0.1", "", "PublicIP = 224.0.0.1: must be the IPv4 address of a host"),
        ("255.255.255.255", "", "PublicIP = 255.255.255.255: must be the IPv4 address of a host"),
        ("192.0.2.1", "::", "PublicIPv6 = ::: must be the IPv6 address of a host"),
        ("192.0.2.1", "ff02::1", "PublicIPv6 = ff02::1: must be the IPv6 address of a host"),
        (
            "192.0.2.1",
            "::ffff:192.0.2.1",
            "PublicIPv6 = ::ffff:192.0.2.1: must be the IPv6 address of a host",
        ),
    ] {
        assert_eq!(check(ip, ipv6, true), Err(format!("lease attributes: {error}")));
    }
}
