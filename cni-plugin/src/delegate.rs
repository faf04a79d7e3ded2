//! The delegate's configuration: the operator's keys, completed from this node's subnet. Pure.

use serde_json::{Map, Value, json};

use crate::request::Config;
use crate::subnet::Subnet;

/// Fields of a route that the CNI library knows; it drops all others.
const ROUTE: [&str; 7] = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

/// Builds the configuration for the delegate. Keys come sorted, as Go writes a map.
pub fn build(config: &Config, subnet: &Subnet) -> Value {
    let mut delegate = config.delegate.clone();
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    default("type", "bridge".into());
    // Either the daemon or the delegate masquerades, not both.
    default("ipMasq", (!subnet.masquerades).into());
    default("mtu", subnet.mtu.into());
    if delegate.get("type").and_then(Value::as_str) == Some("bridge") {
        delegate.entry("isGateway").or_insert(true.into());
    }
    delegate.insert("name".into(), config.name.as_str().into());
    if !config.version.is_empty() {
        delegate.insert("cniVersion".into(), config.version.as_str().into());
    }
    if let Some(runtime) = &config.runtime_config {
        delegate.insert("runtimeConfig".into(), runtime.clone());
    }
    delegate.insert("ipam".into(), Value::Object(ipam(&config.ipam, subnet)));
    Value::Object(delegate)
}

/// Returns the operator's keys, with a set of ranges for each subnet and a route to each cluster network.
fn ipam(base: &Map<String, Value>, subnet: &Subnet) -> Map<String, Value> {
    let mut ipam = base.clone();
    ipam.entry("type").or_insert("host-local".into());
    let ranges: Vec<Value> = subnet.subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    ipam.insert("ranges".into(), ranges.into());
    let given = base.get("routes").and_then(Value::as_array).into_iter().flatten();
    let mut routes: Vec<Value> =
        given.filter_map(Value::as_object).map(|route| known_fields(route).into()).collect();
    routes.extend(subnet.networks.iter().map(|network| json!({ "dst": network })));
    ipam.insert("routes".into(), routes.into());
    ipam
}

fn known_fields(route: &Map<String, Value>) -> Map<String, Value> {
    let fields = route.iter().filter(|(key, _)| ROUTE.contains(&key.as_str()));
    fields.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

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
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9", "odd": 1}, "no route"]
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
