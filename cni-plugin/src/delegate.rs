//! The delegate's configuration: the operator's keys, completed from this node's subnet. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::reply::{Code, Failure};
use crate::request::Config;
use crate::subnet::Subnet;

/// The usual delegate.
const BRIDGE: &str = "bridge";
/// Its usual IPAM plugin.
pub const HOST_LOCAL: &str = "host-local";
/// Fields of a route that the CNI library knows, in any case; it drops all others (`Route`, CNI library).
const ROUTE: [&str; 7] = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

/// Builds the configuration for the delegate. Keys come sorted, as Go writes a map.
pub fn build(config: &Config, subnet: &Subnet) -> Result<Value, Failure> {
    let own = config.kind.as_str();
    for kind in [type_of(config), ipam_type_of(config)] {
        if !own.is_empty() && kind == own {
            return Err(is_itself(kind));
        }
    }
    let mut delegate = config.delegate.clone();
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    default("type", BRIDGE.into());
    // Either the daemon or the delegate masquerades, not both.
    default("ipMasq", (!subnet.masquerades).into());
    default("mtu", subnet.mtu.into());
    if type_of(config) == BRIDGE {
        delegate.entry("isGateway").or_insert(true.into());
    }
    delegate.insert("name".into(), config.name.as_str().into());
    if !config.version.is_empty() {
        delegate.insert("cniVersion".into(), config.version.as_str().into());
    }
    if let Some(runtime) = &config.runtime_config {
        delegate.insert("runtimeConfig".into(), runtime.clone());
    }
    delegate.insert("ipam".into(), Value::Object(ipam(&config.ipam, subnet)?));
    Ok(Value::Object(delegate))
}

/// Returns the delegate's type.
pub fn type_of(config: &Config) -> &str {
    config.delegate.get("type").and_then(Value::as_str).unwrap_or(BRIDGE)
}

/// Returns the type of the delegate's IPAM plugin; empty if the configuration is not valid.
pub fn ipam_type_of(config: &Config) -> &str {
    config.ipam.get("type").map_or(HOST_LOCAL, |kind| kind.as_str().unwrap_or_default())
}

/// Returns the operator's keys, with a set of ranges for each subnet and a route to each cluster network.
fn ipam(base: &Map<String, Value>, subnet: &Subnet) -> Result<Map<String, Value>, Failure> {
    let mut ipam = base.clone();
    ipam.entry("type").or_insert(HOST_LOCAL.into());
    let ranges: Vec<Value> = subnet.subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    ipam.insert("ranges".into(), ranges.into());
    let mut routes = match base.get("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(given)) => given.iter().enumerate().map(checked_route).collect::<Result<_, _>>()?,
        Some(other) => return Err(bad_routes("it is not a list", other)),
    };
    routes.extend(subnet.networks.iter().map(|network| json!({ "dst": network })));
    ipam.insert("routes".into(), routes.into());
    Ok(ipam)
}

/// Returns the fields of a route that the CNI library knows, with their names in lower case. Go reads null,
/// and an empty gateway, as nothing.
fn checked_route((index, route): (usize, &Value)) -> Result<Value, Failure> {
    let bad = |why: &str| bad_routes(&format!("entry {}: {why}", index + 1), route);
    let given = route.as_object().ok_or_else(|| bad("it is not an object"))?;
    let mut fields = Map::new();
    for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
        let Some(field) = ROUTE.iter().find(|field| field.eq_ignore_ascii_case(key)) else { continue };
        if *field == "gw" && value == "" {
            continue;
        }
        let is_good = match *field {
            "dst" => value.as_str().is_some_and(is_cidr),
            "gw" => value.as_str().is_some_and(|text| text.parse::<IpAddr>().is_ok()),
            _ => value.is_i64() || value.is_u64(),
        };
        if !is_good {
            let wanted = match *field {
                "dst" => "an IPv4 or IPv6 CIDR",
                "gw" => "an IP address",
                _ => "an integer",
            };
            return Err(bad(&format!("{key} must be {wanted}")));
        }
        fields.insert((*field).to_owned(), value.clone());
    }
    if !fields.contains_key("dst") {
        return Err(bad("it has no dst"));
    }
    Ok(fields.into())
}

/// Returns the error for a delegate that is this plugin, which would start itself without end.
pub fn is_itself(kind: &str) -> Failure {
    let message = format!("the delegate's type {kind:?} is this plugin itself");
    let details = "set delegate.type, or ipam.type, to the plugin that does the work, such as bridge";
    Failure::new(Code::BadConfig, message, details)
}

fn is_cidr(text: &str) -> bool {
    text.contains('/') && text.parse::<IpNetwork>().is_ok()
}

fn bad_routes(why: &str, what: &Value) -> Failure {
    Failure::new(Code::BadConfig, "failed to read IPAM routes", format!("{why}: {what}"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn build(config: &Config, subnet: &Subnet) -> Value {
        super::build(config, subnet).expect("a good configuration")
    }

    #[test]
    fn ipv4_with_defaults() {
        expect(
            config(json!({}), json!({})),
            &v4(),
            json!({
                "cniVersion": "0.3.1", "name": "cni-flannel", "type": "bridge",
                "ipMasq": false, "isGateway": true,
                "mtu": 1472,
                "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}]],
                    "routes": [{"dst": "10.1.0.0/16"}]
                }
            }),
        );
    }

    #[test]
    fn two_cluster_networks_are_two_routes() {
        let mut subnet = v4();
        subnet.networks.push("192.168.0.0/16".into());
        let built = build(&config(json!({}), json!({})), &subnet);
        assert_eq!(built["ipam"]["routes"], json!([{"dst": "10.1.0.0/16"}, {"dst": "192.168.0.0/16"}]));
    }

    #[test]
    fn ipv6_and_dual_stack_have_their_ranges_and_routes() {
        let v6 = Subnet { networks: vec!["fc00::/48".into()], subnets: vec!["fc00::/64".into()], ..v4() };
        let built = build(&config(json!({}), json!({})), &v6);
        assert_eq!(built["ipam"]["ranges"], json!([[{"subnet": "fc00::/64"}]]));
        let dual = Subnet {
            networks: [v4().networks, v6.networks].concat(),
            subnets: [v4().subnets, v6.subnets].concat(),
            ..v4()
        };
        let built = build(&config(json!({}), json!({})), &dual);
        assert_eq!(built["ipam"]["ranges"], json!([[{"subnet": "10.1.17.0/24"}], [{"subnet": "fc00::/64"}]]));
        assert_eq!(built["ipam"]["routes"], json!([{"dst": "10.1.0.0/16"}, {"dst": "fc00::/48"}]));
    }

    #[test]
    fn the_operators_ipam_is_kept_and_extended() {
        let ipam = json!({
            "type": "other", "dataDir": "/var/x", "ranges": [[{"subnet": "1.2.3.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9", "odd": 1}]
        });
        let built = build(&config(json!({}), ipam), &v4());
        assert_eq!(
            built["ipam"],
            json!({
                "type": "other", "dataDir": "/var/x", "ranges": [[{"subnet": "10.1.17.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9"}, {"dst": "10.1.0.0/16"}]
            })
        );
        let built = build(&config(json!({}), json!({"dataDir": "/var/x"})), &v4());
        assert_eq!(built["ipam"]["type"], "host-local", "without a type");
    }

    #[test]
    fn routes_are_read_as_go_reads_them() {
        let routes = json!([
            {"dst": "0.0.0.0/0", "gw": "10.1.17.9", "mtu": 1400, "advmss": 1360, "priority": 7, "table": -1},
            {"DST": "fd00::/64", "Gw": "fd00::9", "Scope": 253, "gW2": "x", "odd": [{}]},
            {"dst": "10.9.8.7/16", "gw": null, "mtu": null},
            {"dst": "10.9.0.0/16", "gw": ""},
        ]);
        let built = build(&config(json!({}), json!({"routes": routes})), &v4());
        assert_eq!(
            built["ipam"]["routes"],
            json!([
                {
                    "dst": "0.0.0.0/0", "gw": "10.1.17.9",
                    "mtu": 1400, "advmss": 1360, "priority": 7, "table": -1
                },
                {"dst": "fd00::/64", "gw": "fd00::9", "scope": 253},
                {"dst": "10.9.8.7/16"},
                {"dst": "10.9.0.0/16"},
                {"dst": "10.1.0.0/16"},
            ])
        );
        for none in [json!(null), json!([])] {
            let built = build(&config(json!({}), json!({"routes": none})), &v4());
            assert_eq!(built["ipam"]["routes"], json!([{"dst": "10.1.0.0/16"}]));
        }
    }

    #[test]
    fn routes_that_go_could_not_read_are_errors() {
        for (routes, words) in [
            (json!("10.9.0.0/16"), "it is not a list"),
            (json!({"dst": "10.9.0.0/16"}), "it is not a list"),
            (json!(7), "it is not a list"),
            (json!(["10.9.0.0/16"]), "entry 1: it is not an object"),
            (json!([{"dst": "10.9.0.0/16"}, null]), "entry 2: it is not an object"),
            (json!([[]]), "entry 1: it is not an object"),
            (json!([{"gw": "10.1.17.9"}]), "entry 1: it has no dst"),
            (json!([{"dst": null}]), "entry 1: it has no dst"),
            (json!([{"dst": ""}]), "dst must be an IPv4 or IPv6 CIDR"),
            (json!([{"dst": "10.9.0.0"}]), "dst must be"),
            (json!([{"dst": "10.9.0.0/33"}]), "dst must be"),
            (json!([{"dst": "default"}]), "dst must be"),
            (json!([{"dst": 7}]), "dst must be"),
            (json!([{"dst": {"a": 1}}]), "dst must be"),
            (json!([{"dst": "10.9.0.0/16", "gw": "10.1"}]), "gw must be an IP address"),
            (json!([{"dst": "10.9.0.0/16", "GW": 9}]), "GW must be an IP address"),
            (json!([{"dst": "10.9.0.0/16", "mtu": "1400"}]), "mtu must be an integer"),
            (json!([{"dst": "10.9.0.0/16", "table": 1.5}]), "table must be an integer"),
            (json!([{"dst": "10.9.0.0/16", "priority": true}]), "priority must be an integer"),
        ] {
            let failure =
                super::build(&config(json!({}), json!({"routes": routes})), &v4()).expect_err(words);
            assert_eq!((failure.code, failure.message.as_str()), (7, "failed to read IPAM routes"));
            assert!(failure.details.contains(words), "{failure:?}");
        }
    }

    #[test]
    fn what_the_operator_says_of_the_delegate_holds() {
        let delegate =
            json!({"mtu": 1300, "ipMasq": true, "isGateway": false, "hairpinMode": true, "bridge": "br7"});
        let built = build(&config(delegate.clone(), json!({})), &v4());
        for (key, value) in delegate.as_object().expect("an object") {
            assert_eq!(&built[key], value, "{key}");
        }
        let built = build(&config(json!({"type": "ptp"}), json!({})), &Subnet { masquerades: false, ..v4() });
        assert_eq!(built.get("isGateway"), None, "only for a bridge");
        assert_eq!(built["ipMasq"], true);
    }

    #[test]
    fn version_and_runtime_configuration_are_passed_on_if_present() {
        let mut config = config(json!({}), json!({}));
        config.runtime_config = Some(json!({"mac": "x"}));
        config.version.clear();
        let built = build(&config, &v4());
        assert_eq!((built.get("cniVersion"), &built["runtimeConfig"]), (None, &json!({"mac": "x"})));
        let keys: Vec<&String> = built.as_object().expect("an object").keys().collect();
        assert!(keys.is_sorted(), "not as flannel's plugin writes it: {keys:?}");
    }

    fn expect(config: Config, subnet: &Subnet, expected: Value) {
        assert_eq!(build(&config, subnet), expected);
    }

    fn v4() -> Subnet {
        Subnet {
            networks: vec!["10.1.0.0/16".into()],
            subnets: vec!["10.1.17.0/24".into()],
            mtu: 1472,
            masquerades: true,
        }
    }

    fn config(delegate: Value, ipam: Value) -> Config {
        let map = |value: Value| value.as_object().cloned().expect("an object");
        Config {
            version: "0.3.1".into(),
            kind: "flannel".into(),
            name: "cni-flannel".into(),
            subnet_file: PathBuf::new(),
            data_directory: PathBuf::new(),
            delegate: map(delegate),
            ipam: map(ipam),
            runtime_config: None,
            previous: None,
            valid: None,
        }
    }
}
