//! Namespaces that are gone while their path, and often their inode, names another pod's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use lab::{Namespace, Needs};
use serde_json::{Value, json};

use crate::{GOOD, Node, V4, answer};

/// Pods that are gone, sorted.
const FORMER: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
/// The most namespaces to create until the kernel uses an inode again; a few are enough.
const MOST_TRIES: usize = 2000;

#[test]
fn gc_does_not_touch_the_next_pod_in_a_namespace_of_the_same_path_and_inode() {
    let Some(mut place) = Place::create("gc") else { return };
    place.add_until_an_inode_is_used_again();
    place.add("new");
    place.gc(&["new"]);
    assert_eq!(place.deletions(), FORMER.map(|pod| format!("DEL {pod} ")), "without a namespace");
    assert_eq!(place.node.states(), [".new.netns", "new"]);
    // While the namespace exists, GC names it.
    place.gc(&[]);
    assert_eq!(place.deletions()[FORMER.len()..], [format!("DEL new {}", place.path())]);
}

#[test]
fn del_does_not_touch_the_next_pod_in_a_namespace_of_the_same_path() {
    let Some(mut place) = Place::create("del") else { return };
    let former = place.add_until_an_inode_is_used_again();
    place.add("new");
    place.del(former, &place.path());
    for pod in FORMER.iter().filter(|pod| **pod != former) {
        place.del(pod, &place.path());
    }
    place.del("new", &place.path());
    let mut deletions = place.deletions();
    assert_eq!(deletions[0], format!("DEL {former} "), "the one with the inode of today");
    assert_eq!(deletions.pop(), Some(format!("DEL new {}", place.path())));
    assert!(deletions.iter().all(|line| line.ends_with(' ')), "{deletions:?}");
    assert_eq!(place.node.states(), [""; 0]);
}

#[test]
fn del_in_a_path_that_names_the_hosts_namespace_touches_no_interface_of_the_host() {
    let Some(place) = Place::create("host") else { return };
    place.add("recorded");
    place.add("unrecorded");
    fs::remove_file(place.node.file("state/.unrecorded.netns")).unwrap();
    fs::write(place.node.file("state/broken"), "{").unwrap();
    for pod in ["broken", "recorded", "unrecorded"] {
        place.del(pod, "/proc/self/ns/net");
    }
    assert_eq!(place.deletions(), ["DEL broken ", "DEL recorded ", "DEL unrecorded "]);
    assert_eq!(place.node.states(), [""; 0]);
}

/// A runtime may name a namespace by another path, or by a process that is in it.
#[test]
fn del_knows_the_namespace_by_another_path() {
    let Some(place) = Place::create("paths") else { return };
    let mut sleep = place.netns().spawn(Command::new("sleep").arg("600")).unwrap();
    let of_process = format!("/proc/{}/ns/net", sleep.id());
    place.add_in("pod", &of_process);
    place.del("pod", &place.path());
    place.add("pod");
    place.del("pod", &of_process);
    place.add_in("pod", &of_process);
    place.gc(&[]);
    assert_eq!(
        place.deletions(),
        [
            format!("DEL pod {}", place.path()),
            format!("DEL pod {of_process}"),
            format!("DEL pod {of_process}")
        ]
    );
    sleep.kill().unwrap();
    sleep.wait().unwrap();
}

/// The namespace may be a pod's after the boot in which the record was written.
#[test]
fn a_record_of_an_earlier_boot_or_version_proves_nothing_to_gc() {
    let Some(place) = Place::create("boot") else { return };
    let there = fs::metadata(place.path()).unwrap();
    place.add("rebooted");
    let record = place.node.file("state/.rebooted.netns");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text =
        fs::read_to_string(&record).unwrap().replace(boot.trim(), "00000000-0000-4000-8000-000000000000");
    fs::write(&record, text).unwrap();
    place.add("upgraded");
    let earlier = format!("{}:{} {}\n", there.dev(), there.ino(), place.path());
    fs::write(place.node.file("state/.upgraded.netns"), &earlier).unwrap();
    place.gc(&[]);
    assert_eq!(place.deletions(), ["DEL rebooted ", "DEL upgraded "]);
    // The runtime knows which namespace it names in a DEL.
    place.add("upgraded");
    fs::write(place.node.file("state/.upgraded.netns"), earlier).unwrap();
    place.del("upgraded", &place.path());
    assert_eq!(place.deletions()[2..], [format!("DEL upgraded {}", place.path())]);
}

/// A node, and a pod's namespace at a path that stays the same.
struct Place {
    node: Node,
    namespace: Option<Namespace>,
    config: Value,
}

impl Place {
    /// `None` if root rights are missing.
    fn create(tag: &str) -> Option<Place> {
        if !Needs::root().are_met() {
            return None;
        }
        let node = Node::new(V4);
        let log = node.file("log").display().to_string();
        let line = r#"echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS""#;
        node.delegate(&format!("{line} >> {log}\n{GOOD}"));
        let mut config = node.config();
        config["cniVersion"] = "1.1.0".into();
        let namespace = Namespace::create(&format!("cni-{}-ns-{tag}", std::process::id())).unwrap();
        Some(Place { node, namespace: Some(namespace), config })
    }

    fn netns(&self) -> &Namespace {
        self.namespace.as_ref().unwrap()
    }

    fn path(&self) -> String {
        self.netns().path().display().to_string()
    }

    fn inode(&self) -> u64 {
        fs::metadata(self.netns().path()).unwrap().ino()
    }

    /// Replaces the namespace by a new one at the same path.
    fn replace(&mut self) {
        let name = self.netns().name().to_owned();
        self.namespace = None;
        self.namespace = Some(Namespace::create(&name).unwrap());
    }

    /// Gives each of the former pods a namespace at the same path, and then replaces the last until the inode
    /// is that of a former pod, which it returns. Others on this machine may take some of the inodes.
    fn add_until_an_inode_is_used_again(&mut self) -> &'static str {
        let mut inodes = BTreeMap::new();
        for pod in FORMER {
            self.add(pod);
            inodes.insert(self.inode(), pod);
            self.replace();
        }
        for _ in 0..MOST_TRIES {
            if let Some(pod) = inodes.get(&self.inode()) {
                return pod;
            }
            self.replace();
        }
        panic!("the kernel has used none of these inodes again: {inodes:?}");
    }

    fn call(&self, verb: &str, pod: &str, netns: &str, config: &Value) {
        let mut command = self.node.command(verb, pod);
        answer(command.env("CNI_NETNS", netns), config.to_string().as_bytes()).unwrap();
    }

    fn add(&self, pod: &str) {
        self.add_in(pod, &self.path());
    }

    fn add_in(&self, pod: &str, netns: &str) {
        assert!(Path::new(netns).exists());
        self.call("ADD", pod, netns, &self.config);
    }

    fn del(&self, pod: &str, netns: &str) {
        self.call("DEL", pod, netns, &self.config);
    }

    fn gc(&self, valid: &[&str]) {
        let mut config = self.config.clone();
        let entries = valid.iter().map(|pod| json!({"containerID": pod, "ifname": "eth0"}));
        config["cni.dev/valid-attachments"] = entries.collect();
        let mut command = self.node.command("GC", "");
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            command.env_remove(name);
        }
        answer(&mut command, config.to_string().as_bytes()).unwrap();
    }

    /// Returns the delegate's deletions so far, with the namespace of each.
    fn deletions(&self) -> Vec<String> {
        let log = fs::read_to_string(self.node.file("log")).unwrap();
        log.lines().filter(|line| line.starts_with("DEL")).map(str::to_owned).collect()
    }
}
