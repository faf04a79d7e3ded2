//! Full disks and read-only disks.

use std::fs;

use lab::{Needs, mounts};
use serde_json::json;

use crate::{GOOD, Node, V4, answer, names_in};

/// Uses a real file system of two pages, which has no room for a second state.
#[test]
fn a_full_disk_gives_no_interface_and_takes_away_those_that_are_there() {
    if !Needs::root().are_met() {
        return;
    }
    let node = Node::new(V4);
    let (state, mut config) = (node.file("full"), node.config());
    fs::create_dir(&state).unwrap();
    config["dataDir"] = state.to_str().unwrap().into();
    node.delegate(GOOD);
    mounts::private(|| {
        mounts::tmpfs(&state, "8k").unwrap();
        node.run("ADD", &config).unwrap();
        fs::write(state.join("filler"), [0; 4096]).unwrap();
        let mut second = node.command("ADD", "pod-2");
        // An existing file, so that the namespace has to be recorded as well.
        second.env("CNI_NETNS", state.join("filler"));
        let error = answer(&mut second, config.to_string().as_bytes()).unwrap_err();
        assert_eq!(error["code"], 5, "{error}");
        for word in ["pod-2", "No space left", "free some disk space"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(names_in(&state), ["filler", "pod-1"]);
        assert_eq!(node.run("DEL", &config), Ok(String::new()));
        assert_eq!(names_in(&state), ["filler"]);
    })
    .unwrap();
    let calls: Vec<String> = node.calls().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls, ["ADD pod-1 eth0", "DEL pod-1 eth0"]);
}

#[test]
fn a_disk_that_became_read_only_does_not_keep_an_interface() {
    if !Needs::root().are_met() {
        return;
    }
    let node = Node::new(V4);
    let (state, mut config) = (node.file("state"), node.config());
    fs::create_dir(&state).unwrap();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    node.delegate(GOOD);
    mounts::private(|| {
        mounts::tmpfs(&state, "1m").unwrap();
        node.run("ADD", &config).unwrap();
        mounts::set_read_only(&state, true).unwrap();
        let error = node.run("DEL", &config).unwrap_err();
        assert_eq!(error["code"], 5, "{error}");
        for word in
            ["cannot remove", "pod-1", "Read-only", "make it writable", "interface itself was deleted"]
        {
            assert!(error.to_string().contains(word), "{error}");
        }
        let error = node.run("ADD", &config).unwrap_err();
        assert!(error.to_string().contains("Read-only"), "{error}");
        let calls: Vec<String> = node.calls().into_iter().map(|(call, _)| call).collect();
        assert_eq!(calls, ["ADD pod-1 eth0", "DEL pod-1 eth0"]);
        assert_eq!(names_in(&state), ["pod-1"]);
        mounts::set_read_only(&state, false).unwrap();
        assert_eq!(node.run("DEL", &config), Ok(String::new()));
        assert_eq!(names_in(&state), [""; 0]);
    })
    .unwrap();
}
