//! Delegates, and IPAM plugins, that do not support the configuration's version of the specification.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::{GOOD, Node, V4};

#[test]
fn a_version_that_the_delegate_does_not_support_is_found_before_anything_is_done() {
    for (supported, version, words) in [
        ("0.1.0 0.3.1 0.4.0 1.0.0", "1.1.0", "fake does not support CNI 1.1.0"),
        ("1.0.0 1.1.0", "", "fake does not support CNI 0.1.0"),
        ("0.1.0 0.3.10", "0.3.1", "it supports 0.1.0, 0.3.10"),
    ] {
        let node = Node::new(V4);
        let mut config = node.config();
        config["cniVersion"] = version.into();
        let error = node.delegate_of(supported, GOOD).run("ADD", &config).unwrap_err();
        assert_eq!(error["code"], 1, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!((node.calls().len(), node.states().len()), (0, 0), "{version}");
        // The DEL that follows a failed ADD.
        assert_eq!(node.run("DEL", &config), Ok(String::new()));
        assert_eq!(node.calls().len(), 0);
    }
}

#[test]
fn status_reports_that_a_delegate_or_its_ipam_plugin_is_too_old() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    let error = node.delegate_of("0.4.0 1.0.0", GOOD).run("STATUS", &config).unwrap_err();
    assert_eq!((&error["code"], node.calls().len()), (&json!(50), 0), "{error}");
    assert!(error.to_string().contains("fake does not support CNI 1.1.0"), "{error}");
    // The delegate is new enough, but what it calls is not.
    node.delegate(GOOD);
    ipam(&node, "host-local", r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#);
    for (verb, code) in [("STATUS", 50), ("ADD", 1)] {
        let error = node.run(verb, &config).unwrap_err();
        assert_eq!(error["code"], code, "{error}");
        assert!(error.to_string().contains("host-local does not support CNI 1.1.0"), "{error}");
    }
    assert_eq!((node.calls().len(), node.states().len()), (0, 0));
    config["cniVersion"] = "1.0.0".into();
    node.run("ADD", &config).unwrap();
}

#[test]
fn a_delegate_that_does_not_say_what_it_supports_is_trusted() {
    for answer in [
        "echo rubbish; exit 0",
        "echo rubbish; exit 1",
        "exit 0",
        r#"echo '{"cniVersion":"1.0.0"}'; exit 0"#,
        r#"echo '{"code": 999, "msg": "not today"}'; exit 1"#,
    ] {
        let node = Node::new(V4);
        let first = format!("[ $CNI_COMMAND = VERSION ] && {{ {answer}; }}");
        node.program(&first, "", GOOD).run("ADD", &node.config()).unwrap();
    }
    // Older than VERSION.
    let node = Node::new(V4);
    let answer = r#"echo '{"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}'; exit 1"#;
    let first = format!("[ $CNI_COMMAND = VERSION ] && {{ {answer}; }}");
    let mut config = node.config();
    assert_eq!(node.program(&first, "", GOOD).run("ADD", &config).unwrap_err()["code"], 1);
    config["cniVersion"] = "0.1.0".into();
    node.run("ADD", &config).unwrap();
}

#[test]
fn a_deletion_goes_down_to_a_version_that_the_delegate_supports() {
    for (saved, supported, used) in [
        ("1.1.0", "0.3.1 0.4.0 1.0.0", "1.0.0"),
        ("1.0.0", "0.3.1 0.4.0", "0.4.0"),
        ("0.3.1", "1.0.0 1.1.0", "1.0.0"),
        ("", "1.1.0", "1.1.0"),
    ] {
        for verb in ["DEL", "GC"] {
            let node = Node::new(V4);
            let mut config = node.config();
            config["cniVersion"] = saved.into();
            node.delegate(GOOD).run("ADD", &config).unwrap();
            config["cniVersion"] = "1.1.0".into();
            config["cni.dev/valid-attachments"] = json!([]);
            node.delegate_of(supported, "").run(verb, &config).unwrap();
            assert_eq!(node.states(), [""; 0], "{saved} {verb}");
            let calls = node.calls();
            let last: Option<&(String, Value)> = calls.iter().rfind(|(call, _)| call.starts_with("DEL"));
            assert_eq!(last.unwrap().1["cniVersion"], used, "{saved} {verb}");
        }
    }
}

#[test]
fn a_deletion_refused_in_every_version_keeps_its_state_and_names_the_first_reason() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    node.delegate(r#"echo "{\"code\": 1, \"msg\": \"not in $version\"}"; exit 1"#);
    let error = node.run("DEL", &node.config()).unwrap_err();
    assert_eq!((&error["code"], &error["msg"]), (&json!(1), &json!("not in 1.0.0")), "{error}");
    assert_eq!((node.calls().len(), node.states()), (8, vec!["pod-1".to_owned()]));
    // Another failure is no matter of versions.
    node.delegate(r#"echo '{"code": 11, "msg": "busy"}'; exit 1"#);
    assert_eq!(node.run("DEL", &node.config()).unwrap_err()["msg"], "busy");
    assert_eq!(node.calls().len(), 9);
}

/// Installs an IPAM plugin.
fn ipam(node: &Node, name: &str, body: &str) {
    let path = node.file("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}
