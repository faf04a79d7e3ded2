//! Pods of containerd on two hosts with a daemon each, over each backend and in both families.

use std::fs;
use std::process::Command;

use lab::Wiring;

use crate::common::{Cluster, await_until};
use crate::containerd::{Containerd, Pod};
use crate::image;
use crate::setup::{self, Setup};
use crate::talk::{self, End, HOST_PORT};

const PROGRAMS: [&str; 9] =
    ["containerd", "ctr", "runc", "busybox", "unshare", "mount", "tar", "iptables", "ip6tables"];

#[test]
fn pods_of_two_hosts_talk_over_every_backend() {
    if !setup::ready(&PROGRAMS) {
        return;
    }
    let mut hosts = Hosts::new("ctr-all");
    let error = hosts.runtimes[0].network().expect_err("no configuration is there");
    assert!(error.contains("cni"), "{error}");
    for backend in ["vxlan", "udp", "ipip", "wireguard"] {
        hosts.talk(&format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#), &[false]);
    }
}

#[test]
fn pods_of_two_hosts_talk_in_both_families() {
    if !setup::ready(&PROGRAMS) {
        return;
    }
    let mut hosts = Hosts::new("ctr-dual");
    for backend in ["vxlan", "wireguard"] {
        let config = format!(
            r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{{"Type":"{backend}"}}}}"#
        );
        hosts.talk(&config, &[false, true]);
    }
    hosts.talk(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:245::/48","Backend":{"Type":"vxlan"}}"#,
        &[true],
    );
}

/// Two hosts with a containerd each.
struct Hosts {
    // Dropped before the cluster, whose directory holds their files.
    runtimes: [Containerd; 2],
    setups: [Setup; 2],
    cluster: Cluster,
}

impl Hosts {
    fn new(name: &str) -> Hosts {
        let cluster = Cluster::build(name, 2, Wiring::Direct, "");
        let place = cluster.file("image");
        fs::create_dir(&place).expect("a directory");
        let image = image::archive(&place);
        let setups = [1, 2].map(|number| Setup::new(&cluster, number));
        let runtimes = [1, 2].map(|number| {
            let setup = &setups[number - 1];
            Containerd::start(&cluster, number, &setup.bin, &setup.conf, &image)
        });
        Hosts { runtimes, setups, cluster }
    }

    /// Starts daemons for this configuration and a pod on each host, and checks all traffic between the pods.
    fn talk(&mut self, config: &str, families: &[bool]) {
        self.cluster.config = config.to_owned();
        let daemons = talk::daemons(&self.cluster);
        for (setup, runtime) in self.setups.iter().zip(&self.runtimes) {
            setup.install(&[]);
            await_until("the network", || runtime.network().is_ok());
        }
        let one = self.runtimes[0].run("one", &image::server("one"), Some(HOST_PORT));
        let two = self.runtimes[1].run("two", &image::server("two"), None);
        talk::check(&self.cluster, [&self.end(1, "one", &one), &self.end(2, "two", &two)], families);
        for (runtime, pod) in self.runtimes.iter_mut().zip([&one, &two]) {
            runtime.remove(&pod.sandbox).expect("a pod is removed");
            assert_eq!(runtime.list().expect("a list").len(), 0);
        }
        talk::finish(&self.cluster, daemons);
        self.clean(1);
        self.clean(2);
    }

    fn end<'a>(&'a self, number: usize, name: &'static str, pod: &'a Pod) -> End<'a> {
        let runtime = &self.runtimes[number - 1];
        let shell = |line: &str| runtime.exec(pod, line);
        End { number, name, addresses: pod.addresses.clone(), shell: Box::new(shell) }
    }

    /// Removes everything from a host, so that the next backend starts afresh.
    fn clean(&self, number: usize) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["cleanup", "--instance", &talk::instance(number), "--run-dir"]);
        command.arg(self.cluster.place.path());
        let output = self.cluster.host(number).namespace().output(&mut command).expect("loden");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.cluster.shell(number, "ip link del cni0 2>/dev/null || true");
    }
}
