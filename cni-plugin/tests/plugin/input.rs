//! Input of unusual form or length.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::{GOOD, Node, V4, answer};

#[test]
fn version_does_not_wait_for_its_input() {
    let node = Node::new(V4);
    let mut child = node.command("VERSION", "").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Open for as long as the plugin runs.
    let input = child.stdin.take().unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert!(output.status.success());
    let versions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(versions["supportedVersions"][6], "1.1.0");
    for stdin in ["", "rubbish", r#"{"cniVersion":"9"}"#] {
        answer(&mut node.command("VERSION", ""), stdin.as_bytes()).unwrap();
    }
}

/// Go's JSON package, and so flannel's plugin, takes keys in any case, and the last of several.
#[test]
fn keys_count_in_any_case() {
    let node = Node::new(V4);
    let (file, state) = (node.file("subnet.env"), node.file("state"));
    let text = format!(
        r#"{{"CNIVERSION":"1.1.0","Name":"first","NAME":"cbr0","type":"flannel","SubnetFile":{file:?},
        "datadir":"/nowhere","DataDir":{state:?},"Delegate":{{"type":"fake","MTU":1}},"IPAM":{{"dataDir":"/x"}},
        "RuntimeConfig":{{"mac":"m"}},"CNI.dev/Valid-Attachments":[{{"ContainerId":"keep","IFNAME":"eth0"}}]}}"#
    );
    node.delegate(GOOD);
    for pod in ["pod-1", "keep"] {
        answer(&mut node.command("ADD", pod), text.as_bytes()).unwrap();
    }
    let handed = &node.calls()[0].1;
    assert_eq!(
        (&handed["cniVersion"], &handed["name"], &handed["ipam"]["dataDir"], &handed["runtimeConfig"]["mac"]),
        (&json!("1.1.0"), &json!("cbr0"), &json!("/x"), &json!("m"))
    );
    assert_eq!((&handed["mtu"], &handed["MTU"]), (&json!(1450), &json!(1)), "below, each key is another");
    answer(&mut node.command("GC", ""), text.as_bytes()).unwrap();
    assert_eq!(node.states(), ["keep"]);
    let error = answer(&mut node.command("ADD", "x"), br#"{"cniversion":"0.4.0","name":"a/b"}"#).unwrap_err();
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(7), &json!("0.4.0")));
}

#[test]
fn container_ids_may_be_as_long_as_a_file_name() {
    let node = Node::new(V4);
    node.delegate(GOOD);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    for length in [200, 201, 240, 249, 255] {
        let id = "a1".repeat(128)[..length].to_owned();
        for last in ["DEL", "GC"] {
            for interface in ["eth0", "net1"] {
                let call = |verb: &str| {
                    let mut command = node.command(verb, &id);
                    answer(command.env("CNI_IFNAME", interface), config.to_string().as_bytes())
                };
                call("ADD").unwrap();
                if interface == "eth0" {
                    assert!(node.file("state").join(&id).is_file(), "flannel's name");
                }
                call("CHECK").unwrap();
                call(last).unwrap();
                assert_eq!(node.states(), [""; 0], "{length} {interface} {last}");
                let calls = node.calls();
                assert!(calls.iter().any(|(call, _)| *call == format!("DEL {id} {interface}")));
            }
        }
    }
    let error =
        answer(&mut node.command("ADD", &"a".repeat(256)), config.to_string().as_bytes()).unwrap_err();
    assert_eq!((&error["code"], &error["msg"]), (&json!(4), &json!("containerID is too long")));
}

#[test]
fn a_collection_may_name_many_thousand_attachments() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    let one = |number: usize| json!({"containerID": format!("{number:064x}"), "ifname": "eth0"});
    let mut valid: Vec<Value> = (0..12_000).map(one).collect();
    valid.push(json!({"containerID": "pod-1", "ifname": "eth0"}));
    config["cni.dev/valid-attachments"] = valid.into();
    assert!(config.to_string().len() > 1 << 20);
    node.run("GC", &config).unwrap();
    assert_eq!(node.states(), ["pod-1"]);
    let handed = node.calls().pop().unwrap().1;
    assert_eq!(handed["cni.dev/valid-attachments"].as_array().unwrap().len(), 12_001);
    // The bound is for what never ends.
    let mut child =
        node.command("ADD", "pod-1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    while input.write_all(&[b' '; 1 << 16]).is_ok() {}
    let output = child.wait_with_output().unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["msg"], "the configuration on stdin is too long");
    assert!(fs::exists(node.file("state/pod-1")).unwrap());
}
