//! Subjects without daemons in real namespaces: packets cross, and nothing is left behind.

// clippy.toml allows unwrap only in test functions, not in their helpers.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use bench::ethtool;
use bench::interrupt::Interrupt;
use bench::scenario::{Subject, Testbed};
use bench::subject::{Context, Standing};
use lab::{Namespace, Needs};

fn can_run() -> bool {
    Needs::root().programs(&["ethtool"]).are_met()
}

fn context() -> Context {
    Context {
        loden: PathBuf::from("/nonexistent/loden"),
        loden_args: vec![],
        interrupt: Interrupt::default(),
    }
}

fn names(slot: usize) -> Vec<String> {
    Namespace::names(&format!("bench{slot}-{}-", std::process::id()))
}

fn assert_pods_meet(subject: Subject, testbed: Testbed, slot: usize, largest: usize) {
    let standing = Standing::start(subject, testbed, slot, &context()).unwrap();
    let (_, address) = standing.server().unwrap();
    for payload in [0, largest] {
        standing.client().ping(address, payload, Duration::from_secs(5)).unwrap();
    }
    assert_eq!(names(slot).len(), 4);
    drop(standing);
    assert_eq!(names(slot), [""; 0]);
}

#[test]
fn pods_meet_over_plain_routes() {
    if can_run() {
        assert_pods_meet(Subject::NoneRoutes, Testbed::Ideal, 10, 1472);
        assert_pods_meet(Subject::NoneRoutes, Testbed::WireLike, 11, 1472);
    }
}

#[test]
fn pods_meet_over_kernel_vxlan() {
    if can_run() {
        assert_pods_meet(Subject::KernelVxlan, Testbed::Ideal, 12, 1422);
        assert_pods_meet(Subject::KernelVxlan, Testbed::WireLike, 13, 1422);
    }
}

#[test]
fn the_wire_like_underlay_segments_and_finishes_checksums() {
    if !can_run() {
        return;
    }
    let standing = Standing::start(Subject::NoneRoutes, Testbed::WireLike, 14, &context()).unwrap();
    let host = names(14).into_iter().find(|name| name.ends_with("-h1")).unwrap();
    let mut show = std::process::Command::new(ethtool::find().unwrap());
    let output = Namespace::open(&host).unwrap().output(show.args(["-k", "eth0"])).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "tcp-segmentation-offload: off",
        "generic-segmentation-offload: off",
        "generic-receive-offload: on",
        "tx-checksum-ip-generic: off",
        "tx-udp-segmentation: off",
        "tx-udp_tnl-segmentation: off",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
    drop(standing);
}

#[test]
fn a_subject_that_cannot_start_leaves_nothing() {
    if can_run() {
        let error = Standing::start(Subject::LodenVxlan, Testbed::Ideal, 15, &context()).err().unwrap();
        assert!(format!("{error:#}").contains("--loden"), "{error:#}");
        assert_eq!(names(15), [""; 0]);
    }
}
