//! Debian's `bridge` and `host-local` as delegates, with one namespace as the host and one as the pod.

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::{Namespace, Needs};
use serde_json::{Value, json};

use crate::{DUAL, Node, V4, V6, answer, names_in};

/// Debian's directory of CNI plugins.
const DEBIAN: &str = "/usr/lib/cni";

#[test]
fn bridge_and_host_local_give_and_take_addresses() {
    for (env, addresses) in [
        (V4, vec!["10.244.7.2/24"]),
        (V6, vec!["fd00:244:0:7::2/64"]),
        (DUAL, vec!["10.244.7.2/24", "fd00:244:0:7::2/64"]),
    ] {
        let Some(place) = Place::create("a", env) else { return };
        let mut config = place.config();
        let result: Value = serde_json::from_str(&place.call("ADD", &config).unwrap()).unwrap();
        let given: Vec<&str> =
            result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
        assert_eq!(given, addresses);
        let shown = place.in_pod("address show dev eth0");
        assert!(addresses.iter().all(|address| shown.contains(address)), "{shown}");
        let mtu = if env == V4 { "mtu 1450" } else { "mtu 1430" };
        assert!(shown.contains(mtu), "{shown}");
        assert_eq!(place.reserved(), addresses.len());
        config["prevResult"] = result;
        place.call("CHECK", &config).unwrap();
        config.as_object_mut().unwrap().remove("prevResult");
        for _ in 0..2 {
            assert_eq!(place.call("DEL", &config), Ok(String::new()));
            place.is_as_before();
        }
        // A version newer than these plugins, while the namespace exists.
        place.call("ADD", &config).unwrap();
        config["cniVersion"] = "1.1.0".into();
        config["cni.dev/valid-attachments"] = json!([]);
        for (verb, code) in [("STATUS", 50), ("ADD", 1)] {
            let error = place.call(verb, &config).unwrap_err();
            assert_eq!((&error["code"], &error["cniVersion"]), (&json!(code), &json!("1.1.0")), "{error}");
            for words in ["bridge does not support CNI 1.1.0", "0.4.0, 1.0.0"] {
                assert!(error.to_string().contains(words), "{error}");
            }
        }
        place.call("GC", &config).unwrap();
        place.is_as_before();
        for verb in ["ADD", "DEL"] {
            let _ = place.call(verb, &config);
            place.is_as_before();
        }
    }
}

/// As after a downgrade of the plugins, or with a state that an earlier release of loden left.
#[test]
fn what_bridge_and_host_local_do_not_support_is_deleted_in_a_version_that_they_do() {
    for verb in ["DEL", "GC"] {
        let Some(place) = Place::create("d", V4) else { return };
        let mut config = place.config();
        place.call("ADD", &config).unwrap();
        let state = place.node.file("state/pod-1");
        let saved = fs::read_to_string(&state).unwrap();
        fs::write(&state, saved.replace(r#""cniVersion":"1.0.0""#, r#""cniVersion":"1.1.0""#)).unwrap();
        config["cniVersion"] = "1.1.0".into();
        config["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(place.call(verb, &config), Ok(String::new()));
        place.is_as_before();
    }
}

#[test]
fn bridge_and_host_local_answer_old_versions_in_their_form() {
    for (version, place_of_address) in [
        ("", "/ip4/ip"),
        ("0.1.0", "/ip4/ip"),
        ("0.2.0", "/ip4/ip"),
        ("0.3.1", "/ips/0/address"),
        ("0.4.0", "/ips/0/address"),
    ] {
        let Some(place) = Place::create("v", V4) else { return };
        let mut config = place.config();
        config["cniVersion"] = version.into();
        let result: Value = serde_json::from_str(&place.call("ADD", &config).unwrap()).unwrap();
        assert_eq!(result.pointer(place_of_address), Some(&json!("10.244.7.2/24")), "{version}: {result}");
        if !version.is_empty() {
            assert_eq!(result["cniVersion"], version, "{result}");
        }
        assert!(place.in_pod("address show dev eth0").contains("10.244.7.2/24"), "{version}");
        assert_eq!(place.reserved(), 1, "{version}");
        assert_eq!(place.call("DEL", &config), Ok(String::new()), "{version}");
        place.is_as_before();
    }
}

/// A host, a pod and a node's files.
struct Place {
    host: Namespace,
    pod: Namespace,
    node: Node,
}

impl Place {
    /// Creates the namespaces; `None` if the plugins or root rights are missing.
    fn create(tag: &str, env: &str) -> Option<Place> {
        let are_there = ["bridge", "host-local"].iter().all(|name| Path::new(DEBIAN).join(name).exists());
        let plugins = format!("bridge and host-local in {DEBIAN} (Debian's containernetworking-plugins)");
        if !Needs::root().and(plugins, are_there).are_met() {
            return None;
        }
        let name = |end: &str| format!("cni-{}-{tag}{end}", std::process::id());
        let (host, pod) = (Namespace::create(&name("h")).unwrap(), Namespace::create(&name("p")).unwrap());
        Some(Place { host, pod, node: Node::new(env) })
    }

    fn config(&self) -> Value {
        let mut config = self.node.config();
        config["delegate"] = json!({"hairpinMode": true, "isDefaultGateway": true, "bridge": "cni0"});
        config["ipam"] = json!({"dataDir": self.node.file("addresses")});
        config
    }

    fn call(&self, verb: &str, config: &Value) -> Result<String, Value> {
        let mut command = self.node.command(verb, "pod-1");
        command.env("CNI_PATH", DEBIAN).env("CNI_NETNS", self.pod.path());
        if matches!(verb, "STATUS" | "GC") {
            // As runtimes run them.
            for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
                command.env_remove(name);
            }
        }
        self.host.run(|| answer(&mut command, config.to_string().as_bytes())).unwrap()
    }

    /// Runs `ip` in the pod.
    fn in_pod(&self, line: &str) -> String {
        let output = self.pod.output(Command::new("ip").args(line.split(' '))).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Counts the addresses that `host-local` has reserved.
    fn reserved(&self) -> usize {
        let names = names_in(&self.node.file("addresses/cbr0"));
        let addresses = names.iter().filter(|name| name.contains('.') || name.contains(':'));
        addresses.filter(|name| !name.starts_with("last")).count()
    }

    fn is_as_before(&self) {
        assert_eq!((self.reserved(), self.node.states()), (0, vec![]));
        assert!(!self.in_pod("-o link").contains("eth0"));
    }
}
