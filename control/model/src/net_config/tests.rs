//! Defaults, overrides and one case for every check; the values are from flannel's own tests and rules.

use proptest::prelude::*;

use super::*;
use crate::backend::Vxlan;

fn config(text: &str) -> NetConfig {
    parse(text).unwrap().0
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn v4(text: &str) -> Ipv4Pool {
    config(text).ipv4.unwrap()
}

fn v6(members: &str) -> Result<Ipv6Pool, ConfigError> {
    let text = format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{members},"Backend":{{"Type":"vxlan"}}}}"#);
    parse(&text).map(|(config, _)| config.ipv6.unwrap())
}

fn error_v4(members: &str) -> String {
    message(&format!("{{{members}}}")).replace("network configuration: ", "")
}

fn error_v6(members: &str) -> String {
    v6(members).unwrap_err().to_string().replace("network configuration: ", "")
}

#[test]
fn defaults_v4() {
    for key in ["Network", "network", "NETWORK"] {
        let pool = v4(&format!(r#"{{"{key}":"10.3.0.0/16"}}"#));
        assert_eq!(pool.network.to_string(), "10.3.0.0/16");
        assert_eq!(pool.subnet_len, 24);
        assert_eq!(pool.subnet_min, Ipv4Addr::new(10, 3, 1, 0));
        assert_eq!(pool.subnet_max, Ipv4Addr::new(10, 3, 255, 0));
    }
    let (config, warnings) = parse(r#"{"Network":"10.3.0.0/16"}"#).unwrap();
    assert_eq!((config.ipv6, config.nftables), (None, false));
    assert_eq!(config.backend, Backend::Udp { port: 8285 });
    assert_eq!(warnings, [Warning::NoBackend]);
    assert!(warnings[0].to_string().contains("the backend is udp, not vxlan"));
}

#[test]
fn defaults_v6() {
    let pool = v6(r#""IPv6Network":"fc00::/48""#).unwrap();
    assert_eq!(pool.subnet_len, 64);
    assert_eq!(pool.subnet_min.to_string(), "fc00:0:0:1::");
    assert_eq!(pool.subnet_max.to_string(), "fc00:0:0:ffff::");
}

#[test]
fn overrides() {
    let pool =
        v4(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}"#);
    assert_eq!(pool.subnet_len, 28);
    assert_eq!(pool.subnet_min, Ipv4Addr::new(10, 3, 5, 0));
    assert_eq!(pool.subnet_max, Ipv4Addr::new(10, 3, 8, 0));
    let pool = v6(
        r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:f::","IPv6SubnetLen":124"#,
    )
    .unwrap();
    assert_eq!(pool.subnet_len, 124);
    assert_eq!(pool.subnet_min.to_string(), "fc00:0:0:1::");
    assert_eq!(pool.subnet_max.to_string(), "fc00:0:0:f::");
}

#[test]
fn the_length_follows_the_network() {
    let length = |prefix: u8| v4(&format!(r#"{{"Network":"10.0.0.0/{prefix}"}}"#)).subnet_len;
    assert_eq!([8, 16, 22, 23, 24, 28].map(length), [24, 24, 24, 25, 26, 30]);
    let length = |prefix: u8| v6(&format!(r#""IPv6Network":"fc00::/{prefix}""#)).unwrap().subnet_len;
    assert_eq!([8, 48, 62, 63, 124].map(length), [64, 64, 64, 65, 126]);
}

#[test]
fn networks_at_the_edges() {
    let pool = v4(r#"{"Network":"255.255.255.240/28"}"#);
    assert_eq!(pool.subnet_min, Ipv4Addr::new(255, 255, 255, 244));
    assert_eq!(pool.subnet_max, Ipv4Addr::new(255, 255, 255, 252));
    let pool = v4(r#"{"Network":"128.0.0.0/1","SubnetLen":3}"#);
    assert_eq!(pool.subnet_min, Ipv4Addr::new(160, 0, 0, 0));
    assert_eq!(pool.subnet_max, Ipv4Addr::new(224, 0, 0, 0));
    let pool = v6(r#""IPv6Network":"8000::/1","IPv6SubnetLen":3"#).unwrap();
    assert_eq!(pool.subnet_max.to_string(), "e000::");
    // As in flannel, zero means "not set", even if it is a subnet.
    assert_eq!(v4(r#"{"Network":"0.0.0.0/8","SubnetMin":"0.0.0.0"}"#).subnet_min, Ipv4Addr::new(0, 0, 1, 0));
}

#[test]
fn host_bits_are_masked_and_null_leaves_the_default() {
    let pool = v4(r#"{"Network":"10.244.3.7/16","SubnetLen":null,"SubnetMin":null,"EnableIPv4":null}"#);
    assert_eq!(pool.network.to_string(), "10.244.0.0/16");
    assert_eq!(pool.subnet_len, 24);
    assert_eq!(v4(r#"{"Network":"10.3.0.0/16","SubnetLen":0}"#).subnet_len, 24);
}

#[test]
fn the_last_duplicate_wins() {
    let pool = v4(r#"{"Network":"10.3.0.0/16","network":"10.4.0.0/16","NETWORK":"10.5.0.0/16"}"#);
    assert_eq!(pool.network.to_string(), "10.5.0.0/16");
    let twice =
        config(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"},"backend":{"Type":"host-gw"}}"#);
    assert_eq!(twice.backend, Backend::HostGw);
}

#[test]
fn both_families() {
    let text = r#"{"enableIPv6":true,"EnableNFTables":true,"Network":"10.244.0.0/16",
        "IPv6Network":"2001:cafe:42::/56","Backend":{"Type":"vxlan","VNI":4096,"Port":4789}}"#;
    let (config, warnings) = parse(text).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.ipv4.unwrap().network.to_string(), "10.244.0.0/16");
    assert_eq!(config.ipv6.unwrap().network.to_string(), "2001:cafe:42::/56");
    assert!(config.nftables);
    assert!(matches!(config.backend, Backend::Vxlan(Vxlan { port: 4789, .. })));
}

#[test]
fn a_null_backend_has_no_type() {
    assert!(message(r#"{"Network":"10.3.0.0/16","Backend":null}"#).contains("Backend.Type = \"\""));
    assert!(message(r#"{"Network":"10.3.0.0/16","Backend":{}}"#).contains("Backend.Type = \"\""));
    assert!(message(r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#).contains("Backend = \"vxlan\""));
}

#[test]
fn unknown_keys_are_warnings() {
    let text = r#"{"Network":"10.3.0.0/16","SubnetLenght":26,"Backend":{"Type":"vxlan","Vlan":1}}"#;
    let warnings: Vec<String> = parse(text).unwrap().1.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "network configuration: Backend.Vlan: unknown key, ignored",
            "network configuration: SubnetLenght: unknown key, ignored",
        ]
    );
}

#[test]
fn no_family_and_no_network() {
    assert_eq!(
        error_v4(r#""EnableIPv4":false"#),
        "EnableIPv4 = false: must not be false while EnableIPv6 is false: no address family would be left"
    );
    let rule = "must be set to a network smaller than the whole address space while its family is enabled";
    assert_eq!(error_v4(""), format!("Network = (absent): {rule}"));
    assert_eq!(error_v4(r#""Network":"10.0.0.0/0""#), format!("Network = (absent): {rule}"));
    assert_eq!(error_v4(r#""Network":null"#), format!("Network = (absent): {rule}"));
    assert_eq!(error_v6(r#""EnableNFTables":false"#), format!("IPv6Network = (absent): {rule}"));
    assert!(error_v4(r#""Network":"10.0.0.0/16","EnableIPv6":true"#).starts_with("IPv6Network = (absent)"));
}

#[test]
fn networks_of_the_wrong_kind() {
    let cidr = "must be an IPv4 CIDR such as 10.244.0.0/16";
    for bad in ["fd00::/48", "10.3.0.0", "10.3.0.0/33", "10.3.0/16", "", "10.3.0.0/16 "] {
        assert_eq!(error_v4(&format!(r#""Network":"{bad}""#)), format!("Network = {bad:?}: {cidr}"));
    }
    assert_eq!(error_v4(r#""Network":10"#), "Network = 10: must be a string");
    assert_eq!(
        error_v6(r#""IPv6Network":"10.3.0.0/16""#),
        "IPv6Network = \"10.3.0.0/16\": must be an IPv6 CIDR such as fd00::/48"
    );
    // An error even though its family is disabled.
    assert!(error_v4(r#""Network":"10.3.0.0/16","IPv6Network":"x""#).starts_with("IPv6Network = \"x\""));
}

#[test]
fn subnet_lengths_out_of_range() {
    let length = |members| error_v4(&format!(r#""Network":"10.3.0.0/16",{members}"#));
    assert_eq!(length(r#""SubnetLen":31"#), "SubnetLen = 31: must be at most 30");
    assert_eq!(
        length(r#""SubnetLen":17"#),
        "SubnetLen = 17: must be at least 18: the /16 network must hold four subnets"
    );
    assert_eq!(length(r#""SubnetLen":-1"#), "SubnetLen = -1: must be between 0 (for the default) and 30");
    assert_eq!(
        length(r#""SubnetLen":"24""#),
        "SubnetLen = \"24\": must be a whole number, without quotes, fraction or exponent"
    );
    assert!(length(r#""SubnetLen":256"#).starts_with("SubnetLen = 256"));
    assert!(length(r#""SubnetLen":24.0"#).starts_with("SubnetLen = 24.0"));
    assert_eq!(error_v4(r#""Network":"10.3.0.0/29""#), "Network = 10.3.0.0/29: must be /28 or larger");
    assert_eq!(
        error_v4(r#""Network":"10.3.0.0/29","SubnetLen":30"#),
        "SubnetLen = 30: must be at least 31: the /29 network must hold four subnets"
    );
    assert_eq!(
        error_v6(r#""IPv6Network":"fc00::/48","IPv6SubnetLen":127"#),
        "IPv6SubnetLen = 127: must be at most 126"
    );
    assert_eq!(
        error_v6(r#""IPv6Network":"fc00::/48","IPv6SubnetLen":49"#),
        "IPv6SubnetLen = 49: must be at least 50: the /48 network must hold four subnets"
    );
    assert_eq!(error_v6(r#""IPv6Network":"fc00::/125""#), "IPv6Network = fc00::/125: must be /124 or larger");
    assert!(error_v6(r#""IPv6Network":"fc00::/128","IPv6SubnetLen":126"#).starts_with("IPv6SubnetLen = 126"));
}

#[test]
fn first_and_last_subnet_out_of_place() {
    let edge = |members| error_v4(&format!(r#""Network":"10.3.0.0/16",{members}"#));
    assert_eq!(edge(r#""SubnetMin":"10.4.0.0""#), "SubnetMin = 10.4.0.0: must lie inside the network");
    assert_eq!(edge(r#""SubnetMax":"10.2.255.0""#), "SubnetMax = 10.2.255.0: must lie inside the network");
    assert_eq!(
        edge(r#""SubnetMin":"10.3.5.1""#),
        "SubnetMin = 10.3.5.1: must be the base address of a /24 subnet"
    );
    assert_eq!(
        edge(r#""SubnetMax":"10.3.5.8","SubnetLen":28"#),
        "SubnetMax = 10.3.5.8: must be the base address of a /28 subnet"
    );
    assert_eq!(edge(r#""SubnetMin":"fd00::""#), "SubnetMin = \"fd00::\": must be an IPv4 address");
    assert_eq!(
        error_v6(r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:1::""#),
        "IPv6SubnetMin = fc00:0:1::: must lie inside the network"
    );
    assert_eq!(
        error_v6(r#""IPv6Network":"fc00::/48","IPv6SubnetMax":"fc00::1""#),
        "IPv6SubnetMax = fc00::1: must be the base address of a /64 subnet"
    );
}

#[test]
fn a_last_subnet_below_the_first_is_legal() {
    let pool = v4(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#);
    assert!(!pool.allows("10.3.9.0/24".parse().unwrap()));
}

#[test]
fn booleans_are_booleans() {
    assert_eq!(error_v4(r#""EnableIPv6":"true""#), "EnableIPv6 = \"true\": must be true or false");
    assert_eq!(error_v4(r#""EnableIPv4":1"#), "EnableIPv4 = 1: must be true or false");
}

#[test]
fn text_that_is_not_an_object() {
    for text in ["", "null", "[]", "Network", "{", r#"{"Network":"10.3.0.0/16",}"#, "/* c */ {}"] {
        assert!(message(text).starts_with("network configuration: not a JSON object: "), "{text}");
    }
}

#[test]
fn what_a_pool_allows() {
    let pool = v4(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0"}"#);
    let allows = |text: &str| pool.allows(text.parse().unwrap());
    assert!(allows("10.3.5.0/24") && allows("10.3.8.0/24"));
    assert!(!allows("10.3.4.0/24") && !allows("10.3.9.0/24"));
    assert!(!allows("10.3.5.0/25") && !allows("10.4.5.0/24"));
}

#[test]
fn an_error_shows_no_secret() {
    for text in [
        r#""PSK s3cret""#,
        r#"{"Backend":[{"Psk":"s3cret"}]}"#,
        r#"{"Network":{"psk":"s3cret"}}"#,
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","PSK":"s3cret"}}"#,
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","PSK":["s3cret"]}}"#,
    ] {
        assert!(!message(text).contains("s3cret"), "{}", message(text));
    }
}

proptest! {
    #[test]
    fn an_accepted_pool_obeys_the_rules(base: u32, prefix in 0..=32u8, length: u8, min: u32) {
        let network = cidr::masked_v4(base.into(), prefix).unwrap();
        let min = Ipv4Addr::from(min);
        let text = format!(r#"{{"Network":"{network}","SubnetLen":{length},"SubnetMin":"{min}"}}"#);
        if let Ok((config, _)) = parse(&text) {
            let pool = config.ipv4.unwrap();
            prop_assert!(pool.subnet_len >= prefix + 2 && pool.subnet_len <= 30);
            for edge in [pool.subnet_min, pool.subnet_max] {
                prop_assert!(network.contains(edge));
                prop_assert_eq!(edge.to_bits() % (1 << (32 - pool.subnet_len)), 0);
            }
        }
    }

    #[test]
    fn any_v6_network_and_length_is_judged(base: u128, prefix in 0..=128u8, length: u8) {
        let network = cidr::masked_v6(base.into(), prefix).unwrap();
        let judged = v6(&format!(r#""IPv6Network":"{network}","IPv6SubnetLen":{length}"#));
        let mapped = network.network().to_ipv4_mapped().is_some();
        let fits = (1..=126).contains(&length) && length >= prefix.saturating_add(2);
        let by_default = length == 0 && prefix <= 124;
        prop_assert_eq!(judged.is_ok(), prefix > 0 && !mapped && (fits || by_default), "{:?}", judged);
    }

    #[test]
    fn noise_never_panics(text in ".*", bytes: Vec<u8>, members in r#"("(Network|subnetlen|SubnetMin|IPv6Network|EnableIPv6|Backend)":("10\.0\.0\.0/[0-9]{1,3}"|-?[0-9.e]{1,25}|null|true|\{\}|".{0,9}"),?){0,6}"#) {
        let _ = parse(&text);
        let _ = parse(&String::from_utf8_lossy(&bytes));
        let _ = parse(&format!("{{{members}}}"));
        let _ = parse_assigned(&format!("{{{members}}}"));
    }
}

#[test]
fn a_misspelt_key_is_named_beside_the_one_that_is_missing() {
    for (text, missing, misspelt) in [
        (r#"{"Netwrok":"10.244.0.0/16"}"#, "Network", "Netwrok"),
        (r#"{"Networks":"10.244.0.0/16"}"#, "Network", "Networks"),
        (r#"{"network ":"10.244.0.0/16"}"#, "Network", "network "),
        (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Netwrk":"fd00::/48"}"#, "IPv6Network", "IPv6Netwrk"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Tpye":"vxlan"}}"#, "Backend.Type", "Tpye"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(
            error.contains(missing) && error.contains(&format!("{misspelt:?} meant?")),
            "{text}: {error}"
        );
    }
    let error = parse(r#"{"Comment":"10.244.0.0/16"}"#).expect_err("no network").to_string();
    assert!(!error.contains("meant"), "{error}");
    let text =
        r#"{"Network":"10.244.0.0/16","SubnetLength":24,"SubnetLn":24,"Backend":{"Type":"vxlan","Prot":1}}"#;
    let (_, warnings) = parse(text).expect("a configuration");
    let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|line| line.contains("SubnetLn: unknown key, ignored; is SubnetLen meant?")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("Backend.Prot: unknown key, ignored; is Port meant?")),
        "{said:?}"
    );
    assert!(said.iter().any(|line| line.ends_with("SubnetLength: unknown key, ignored")), "{said:?}");
}

/// The rules of subnets bind nobody where Kubernetes hands them out, and flannel does not check them there.
#[test]
fn assigned_subnets_are_bound_by_the_networks_alone() {
    for text in [
        r#"{"Network":"10.244.0.0/16","SubnetLen":31}"#,
        r#"{"Network":"10.244.0.0/16","SubnetMin":"192.0.2.7","SubnetMax":"10.0.0.1"}"#,
        r#"{"Network":"10.244.0.0/30"}"#,
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/127","IPv6SubnetLen":200}"#,
    ] {
        assert!(parse(text).is_err(), "{text}");
        let (config, _) = parse_assigned(text).expect(text);
        assert!(config.ipv4.is_none_or(|pool| pool.allows(pool.network)), "{text}");
        assert!(config.ipv6.is_none_or(|pool| pool.allows(pool.network)), "{text}");
    }
    for text in [
        "",
        "{}",
        r#"{"Network":"fd00::/48"}"#,
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true}"#,
        r#"{"Network":"10.244.0.0/16","SubnetLen":"24"}"#,
        r#"{"Network":"10.244.0.0/16","SubnetMin":"nowhere"}"#,
        r#"{"EnableIPv4":false}"#,
        r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"10.0.0.0/8"}"#,
    ] {
        assert!(parse_assigned(text).is_err(), "{text}");
    }
}
