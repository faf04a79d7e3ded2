//! ADDs that are refused before the delegate runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use lab::{Namespace, Needs};
use serde_json::{Value, json};

use crate::{GOOD, Node, V4, answer};

#[test]
fn a_refused_add_of_another_network_leaves_the_interface_and_its_state() {
    let node = Node::new(V4);
    node.delegate(GOOD);
    let of = |name: &str| {
        let mut config = node.config();
        config["cniVersion"] = "1.1.0".into();
        config["name"] = name.into();
        config
    };
    for interface in ["eth0", "net1"] {
        let call = |verb: &str, config: &Value| {
            let mut command = node.command(verb, "pod-1");
            answer(command.env("CNI_IFNAME", interface), config.to_string().as_bytes())
        };
        call("ADD", &of("first")).unwrap();
        let (states, before) = (node.states(), node.calls().len());
        for other in ["second", "third", "second"] {
            let error = call("ADD", &of(other)).unwrap_err();
            assert_eq!(error["code"], 4, "{error}");
            let words = format!("interface {interface} of this container belongs to network \"first\"");
            assert!(error["msg"].as_str().unwrap().contains(&words), "{error}");
            // A runtime deletes what it failed to add, perhaps several times.
            for _ in 0..2 {
                assert_eq!(call("DEL", &of(other)), Ok(String::new()));
                assert_eq!(call("CHECK", &of(other)).unwrap_err()["code"], 3);
            }
        }
        // A collection of the other network is no reason either.
        let mut collection = of("second");
        collection["cni.dev/valid-attachments"] = json!([]);
        node.delegate_of("1.1.0", r#"[ $CNI_COMMAND = GC ] || { echo '{"code": 9, "msg": "x"}'; exit 1; }"#);
        call("GC", &collection).unwrap();
        node.delegate(GOOD);
        let left: Vec<String> =
            node.states().into_iter().filter(|name| !name.ends_with(".refused")).collect();
        assert_eq!((left, node.calls().len()), (states, before + 1), "only the GC of the second network");
        call("CHECK", &of("first")).unwrap();
        call("DEL", &of("first")).unwrap();
        let (call, config) = node.calls().pop().unwrap();
        assert_eq!((call, &config["name"]), (format!("DEL pod-1 {interface}"), &json!("first")));
        assert_eq!(node.states(), [""; 0]);
    }
}

/// DEL must find what an ADD created under the network's former name.
#[test]
fn a_network_that_was_renamed_is_no_other_network() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    let mut renamed = node.config();
    renamed["name"] = "pods".into();
    node.run("DEL", &renamed).unwrap();
    assert_eq!((node.calls()[1].1["name"].as_str(), node.states()), (Some("cbr0"), vec![]));
}

#[test]
fn the_plugin_does_not_start_itself() {
    let node = Node::new(V4);
    let bin = env!("CARGO_BIN_EXE_loden-cni");
    for name in ["flannel", "loden-cni", "copy", "link"] {
        let path = node.file("bin").join(name);
        if name == "link" {
            symlink(bin, path).unwrap();
        } else {
            fs::copy(bin, path).unwrap();
        }
    }
    let body = "exec env CNI_COMMAND=$CNI_COMMAND \"$(dirname $0)/copy\" < $0.stdin";
    let shell = format!("#!/bin/sh\ncat > $0.stdin\n[ $CNI_COMMAND = VERSION ] && exit 0\n{body}\n");
    fs::write(node.file("bin/indirect"), shell).unwrap();
    fs::set_permissions(node.file("bin/indirect"), fs::Permissions::from_mode(0o755)).unwrap();
    for (key, kind) in [
        ("delegate", "flannel"),
        ("delegate", "loden-cni"),
        ("delegate", "copy"),
        ("delegate", "link"),
        ("delegate", "indirect"),
        ("ipam", "flannel"),
        ("ipam", "loden-cni"),
    ] {
        let mut config = node.config();
        config["cniVersion"] = "1.1.0".into();
        config[key]["type"] = kind.into();
        node.delegate(GOOD);
        for (verb, code) in [("ADD", 7), ("STATUS", 50)] {
            let answer = node.run(verb, &config);
            // What starts the plugin by detours is found when the plugin is started.
            let is_late = verb == "STATUS" && ["copy", "link", "indirect"].contains(&kind);
            let error = answer.unwrap_err();
            assert_eq!(error["code"], if is_late { 7 } else { code }, "{kind} {verb}: {error}");
            assert!(error.to_string().contains("is this plugin itself"), "{kind} {verb}: {error}");
        }
        fs::remove_dir_all(node.file("state")).unwrap_or_default();
        assert_eq!(node.calls().len(), 0, "{kind}");
    }
    // Its own type in the configuration, whatever the runtime found it by.
    let mut config = node.config();
    (config["type"], config["delegate"]["type"]) = ("fake".into(), "fake".into());
    assert_eq!(node.run("ADD", &config).unwrap_err()["code"], 7);
    // A state of such an ADD, by an earlier version, can be deleted.
    fs::create_dir_all(node.file("state")).unwrap();
    fs::write(node.file("state/pod-1"), r#"{"name":"cbr0","type":"flannel"}"#).unwrap();
    node.run("DEL", &node.config()).unwrap();
    assert_eq!((node.calls().len(), node.states()), (1, vec![]));
}

/// The rule is for the pod's interfaces alone.
#[test]
fn the_hosts_namespace_is_refused_to_add_alone() {
    if !Needs::root().are_met() {
        return;
    }
    let node = Node::new(V4);
    node.delegate(GOOD);
    let pod = Namespace::create(&format!("cni-{}-own", std::process::id())).unwrap();
    let call = |verb: &str, netns: &str| {
        let mut command = node.command(verb, "pod-1");
        answer(command.env("CNI_NETNS", netns), node.config().to_string().as_bytes())
    };
    assert_eq!(call("ADD", "/proc/self/ns/net").unwrap_err()["code"], 8);
    call("ADD", &pod.path().display().to_string()).unwrap();
    call("DEL", "/proc/self/ns/net").unwrap();
    assert_eq!(node.states(), [""; 0]);
}
