//! Collections: reservations that nobody uses, and delegates that hang.

use std::fs;
use std::time::Duration;

use cni_plugin::verbs::Timeouts;
use serde_json::json;

use crate::hang::in_library;
use crate::{GOOD, Node, V4, answer, names_in};

/// An exhausted network of eight addresses, of which the node has lost the states.
#[test]
fn reservations_of_nobody_are_released() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    config["ipam"] = json!({"dataDir": node.file("networks")});
    node.delegate(GOOD);
    for pod in ["valid", "refuses"] {
        answer(&mut node.command("ADD", pod), config.to_string().as_bytes()).unwrap();
    }
    let folder = node.file("networks/cbr0");
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in [
        ("lock", ""),
        ("last_reserved_ip.0", "10.244.7.6"),
        ("10.244.7.2", "lost-1\r\neth0"),
        ("10.244.7.3", "lost-2\r\nnet1"),
        ("fd00::3", "lost-2\r\nnet1"),
        ("10.244.7.4", "valid\r\neth0"),
        ("10.244.7.5", "refuses\r\neth0"),
        ("10.244.7.6", "kept free by hand"),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
    config["cni.dev/valid-attachments"] = json!([{"containerID": "valid", "ifname": "eth0"}]);
    // What could not be deleted keeps its address.
    node.delegate(r#"[ $CNI_COMMAND = GC ] || { echo '{"code": 11, "msg": "busy"}'; exit 1; }"#);
    assert_eq!(node.run("GC", &config).unwrap_err()["msg"], "busy");
    assert_eq!(names_in(&folder), ["10.244.7.4", "10.244.7.5", "10.244.7.6", "last_reserved_ip.0", "lock"]);
    // Without a subnet, and without a state.
    fs::remove_file(node.file("subnet.env")).unwrap();
    fs::remove_file(node.file("state/refuses")).unwrap();
    node.run("GC", &config).unwrap();
    assert_eq!(names_in(&folder), ["10.244.7.4", "10.244.7.6", "last_reserved_ip.0", "lock"]);
}

#[test]
fn a_collection_ends_in_time_however_many_delegates_hang() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    node.delegate(GOOD);
    let hanging: Vec<String> = (0..8).map(|number| format!("hangs-{number}")).collect();
    for pod in hanging.iter().map(String::as_str).chain(["works"]) {
        answer(&mut node.command("ADD", pod), config.to_string().as_bytes()).unwrap();
    }
    config["cni.dev/valid-attachments"] = json!([]);
    node.delegate("case $CNI_CONTAINERID in hangs*) sleep 1000;; esac");
    let timeouts = Timeouts { request: Duration::from_secs(3), cleanup: Duration::from_secs(1) };
    let deletions = || node.calls().iter().filter(|(call, _)| call.starts_with("DEL")).count();
    let failure = in_library(&node, "GC", &config, timeouts).unwrap_err();
    let words = " were not reached in time and come first in the next GC";
    let (before, _) = failure.details.split_once(words).unwrap_or_else(|| panic!("{failure:?}"));
    let unreached: usize = before.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!((failure.code, (2..9).contains(&unreached)), (11, true), "{failure:?}");
    // A busy machine may not let the last one begin in its time.
    assert!(deletions() <= 9 - unreached && deletions() > 0, "{}: {failure:?}", deletions());
    // The next one reaches those that the first did not.
    assert!(node.states().contains(&"works".to_owned()));
    while node.states().contains(&"works".to_owned()) && deletions() < 40 {
        in_library(&node, "GC", &config, timeouts).unwrap_err();
    }
    let left: Vec<String> = node.states().into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(left, hanging);
    node.delegate("").run("GC", &config).unwrap();
    assert_eq!(node.states(), [""; 0]);
}
