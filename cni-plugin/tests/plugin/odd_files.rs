//! Files that are not what they should be, and plugins that are no longer installed.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::stat::Mode;
use serde_json::json;

use crate::{GOOD, Node, V4, answer};

#[test]
fn a_subnet_file_that_is_no_file_or_endless_is_an_error() {
    for make in [
        |path: &Path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
        |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        |path: &Path| fs::create_dir(path).unwrap(),
        |path: &Path| File::create(path).unwrap().set_len(1 << 40).unwrap(),
    ] {
        let node = Node::new(V4);
        let mut config = node.config();
        config["cniVersion"] = "1.1.0".into();
        node.delegate(GOOD).run("ADD", &config).unwrap();
        fs::remove_file(node.file("subnet.env")).unwrap();
        make(&node.file("subnet.env"));
        for (verb, code) in [("ADD", 5), ("STATUS", 50)] {
            let error = node.run(verb, &config).unwrap_err();
            assert_eq!(error["code"], code, "{error}");
            let text = error.to_string();
            assert!(text.contains("not a regular file") || text.contains("longer than"), "{error}");
        }
        config["cni.dev/valid-attachments"] = json!([{"containerID": "pod-1", "ifname": "eth0"}]);
        node.run("GC", &config).unwrap();
        node.run("DEL", &config).unwrap();
        assert_eq!(node.states(), [""; 0]);
    }
}

#[test]
fn fifos_and_endless_files_in_the_directory_of_states_hang_no_verb() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    fs::create_dir(node.file("state")).unwrap();
    let names = ["pod-1", ".pod-1.lock", ".pod-1.netns", ".pod-1.new", ".pod-1.refused"];
    for name in names {
        nix::unistd::mkfifo(&node.file("state").join(name), Mode::S_IRWXU).unwrap();
    }
    node.delegate(GOOD);
    assert_eq!(node.run("CHECK", &config).unwrap_err()["code"], 3);
    node.run("DEL", &config).unwrap();
    node.run("GC", &config).unwrap();
    node.run("ADD", &config).unwrap();
    for name in [".pod-1.lock", ".pod-1.netns", ".pod-1.new", ".pod-1.refused"] {
        let _ = fs::remove_file(node.file("state").join(name));
        nix::unistd::mkfifo(&node.file("state").join(name), Mode::S_IRWXU).unwrap();
    }
    node.run("DEL", &config).unwrap();
    assert_eq!(node.states(), [""; 0]);
    // As large as no configuration is.
    node.run("ADD", &config).unwrap();
    let state = File::options().write(true).open(node.file("state/pod-1")).unwrap();
    state.set_len(1 << 40).unwrap();
    node.run("DEL", &config).unwrap();
    assert_eq!(node.states(), [""; 0]);
}

#[test]
fn a_state_without_a_plugin_or_a_network_is_deleted_as_add_would_create_it() {
    for text in ["{}", r#"{"name":"cbr0"}"#, r#"{"type":"fake"}"#, r#"{"name":7,"type":"fake"}"#] {
        let node = Node::new(V4);
        fs::create_dir(node.file("state")).unwrap();
        fs::write(node.file("state/pod-1"), text).unwrap();
        node.delegate("").run("DEL", &node.config()).unwrap();
        let calls = node.calls();
        assert_eq!((calls.len(), calls[0].0.as_str()), (1, "DEL pod-1 eth0"), "{text}");
        assert_eq!(calls[0].1["ipam"]["ranges"][0][0]["subnet"], "10.244.7.0/24", "{text}");
        assert_eq!(node.states(), [""; 0], "{text}");
    }
}

#[test]
fn the_interface_of_a_removed_plugin_is_deleted_by_what_has_its_place() {
    let state = r#"{"name":"cbr0","type":"removed","theirs":1,"ipam":{"type":"IPAM","dataDir":"/saved"}}"#;
    // (the saved IPAM plugin, whether that is installed, today's delegate, its call)
    for (ipam, is_there, today, expected) in [
        ("host-local", true, "fake", r#""dataDir":"/saved""#),
        ("removed-too", false, "fake", r#""subnet":"10.244.7.0/24""#),
        ("", false, "fake", r#""dataDir":"/saved""#),
    ] {
        for verb in ["DEL", "GC"] {
            let node = Node::new(V4);
            let mut config = node.config();
            config["cniVersion"] = "1.1.0".into();
            config["cni.dev/valid-attachments"] = json!([]);
            config["delegate"]["type"] = today.into();
            fs::create_dir(node.file("state")).unwrap();
            fs::write(node.file("state/pod-1"), state.replace("IPAM", ipam)).unwrap();
            if is_there {
                install(&node, ipam, "exit 1");
            }
            node.delegate("").run(verb, &config).unwrap();
            let (call, handed) = node.calls().into_iter().next().unwrap();
            assert_eq!(call, "DEL pod-1 eth0", "{ipam} {verb}");
            assert!(handed.to_string().contains(expected), "{ipam} {verb}: {handed}");
            assert_eq!((&handed["type"], &handed["name"]), (&json!("fake"), &json!("cbr0")));
            assert_eq!(node.states(), [""; 0], "{ipam} {verb}");
        }
    }
}

#[test]
fn without_any_delegate_the_ipam_plugin_releases_the_addresses() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    fs::remove_file(node.file("bin/fake")).unwrap();
    // Nothing can release them, so the state has to stay.
    let error = node.run("DEL", &node.config()).unwrap_err();
    assert!(error.to_string().contains("failed to find plugin \\\"fake\\\""), "{error}");
    assert_eq!(node.states(), ["pod-1"]);
    let log = node.file("log");
    install(
        &node,
        "host-local",
        &format!("echo $CNI_COMMAND $CNI_CONTAINERID > {}; cat >> {0}", log.display()),
    );
    node.run("DEL", &node.config()).unwrap();
    let text = fs::read_to_string(log).unwrap();
    assert!(text.starts_with("DEL pod-1\n{") && text.contains("10.244.7.0/24"), "{text}");
    assert_eq!(node.states(), [""; 0]);
}

/// `.new` and `.lock` of a plugin that was killed go with the DEL that follows.
#[test]
fn a_deletion_takes_what_a_killed_add_has_left_beside_the_state() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    for name in [".pod-1.new", ".pod-1.lock"] {
        fs::write(node.file("state").join(name), "x").unwrap();
    }
    assert_eq!(
        answer(&mut node.command("DEL", "pod-1"), node.config().to_string().as_bytes()),
        Ok(String::new())
    );
    assert_eq!(node.states(), [""; 0]);
}

fn install(node: &Node, name: &str, body: &str) {
    let path = node.file("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}
