//! A host whose kernel has TUN and no tunnels joins a cluster, and its pod reaches a pod of containerd.
//!
//! The guest's kernel has the modules tun, bridge and veth and their dependencies, and no iptables. The lease
//! store is etcd.

use std::fs;

use lab::Wiring;
use store::testing::etcd::{Security, Server};

use crate::common::guest::{self, Guest};
use crate::common::{Cluster, VXLAN, await_until};
use crate::containerd::Containerd;
use crate::image;
use crate::setup::{self, Setup, fetch};

/// The guest on the lab's underlay, beside host 1.
const GUEST: &str = "198.18.0.200";
/// The default of `--subnet-file`.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

#[test]
fn a_host_with_nothing_but_tun_joins_and_its_pod_talks() {
    let programs =
        ["etcd", "etcdctl", "setpriv", "bash", "containerd", "ctr", "runc", "busybox", "unshare", "nsenter"];
    if !guest::needs(setup::needs(&programs)).are_met() {
        return;
    }
    let cluster = Cluster::build("old-kernel", 1, Wiring::Switch, VXLAN);
    let host = cluster.host(1);
    let etcd = Server::start_in(Security::None, host.namespace().path(), host.underlay());
    etcd.etcdctl(&["put", "/coreos.com/network/config", VXLAN]);
    let place = cluster.file("image");
    fs::create_dir(&place).expect("a directory");
    let image = image::archive(&place);
    let here = Setup::new(&cluster, 1);
    let mut daemon = cluster.etcd_command(1, &etcd.endpoint());
    daemon.arg("--ip-masq");
    let mut daemon = cluster.spawn(1, &mut daemon);
    daemon.await_ready();
    here.install(&[]);
    let mut runtime = Containerd::start(&cluster, 1, &here.bin, &here.conf, &image);
    await_until("the network", || runtime.network().is_ok());
    let pod = runtime.run("one", &image::server("one"), None);
    let address = pod.addresses[0];

    let mut guest = Guest::boot(&cluster, &[], &["tun", "bridge", "veth"]);
    let there = Setup::at(&guest.shared.join("cni"), SUBNET_FILE.into());
    there.install(&[]);
    guest.shell(&format!(
        "ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up && echo 1 > /proc/sys/net/ipv4/ip_forward"
    ));
    for kind in ["vxlan id 1 dstport 8472", "ipip local 198.18.0.200", "wireguard"] {
        let (code, words) = guest.run(&format!("ip link add tunnel type {kind}"));
        assert!(code != "0" && words.contains("Unknown device type"), "{kind}: {words}");
    }
    let joins = format!(
        "/programs/loden run --iface eth0 --etcd-endpoints {} --require-br-netfilter=false \
         --iptables-forward-rules=false",
        etcd.endpoint()
    );
    let (code, words) = guest.run(&joins);
    assert!(code == "1" && words.contains("/dev/net/tun is missing: load the tun module"), "{words}");
    guest.load_spare();
    guest.shell(&format!(
        "{joins} > /shared/daemon.log 2>&1 &
         until [ -e {SUBNET_FILE} ]; do
             kill -0 $! && sleep 0.1 || {{ cat /shared/daemon.log; exit 1; }}
         done"
    ));
    let words = guest.shell(&make_pod(&fetch(address, 80, "name"), &fetch(address, 80, "cgi-bin/who")));
    let value = |name: &str| {
        let found = words.lines().find_map(|line| line.trim_end().strip_prefix(name));
        found.unwrap_or_else(|| panic!("no {name}:\n{words}"))
    };
    assert_eq!(value("fetched "), "one", "{words}");
    let other = value("pod ").parse().expect("an address");
    assert_eq!(
        value("seen ").trim_matches(['[', ']']).trim_start_matches("::ffff:"),
        value("pod "),
        "{words}"
    );
    assert_eq!(value("mtu "), "1450", "{words}");

    runtime.exec(&pod, &format!("ping -c 2 -W 10 -s 4000 {other}"));
    let big = runtime.exec(&pod, &format!("{} | sha256sum", fetch(other, 80, "big")));
    assert_eq!(big.split(' ').next(), value("digest ").split(' ').next(), "{words}");
    runtime.remove(&pod.sandbox).expect("a pod is removed");
    let drops = daemon.finish().remove(0);
    assert!(drops.unexplained_drops().is_empty(), "{:?}", drops.drops());
}

/// Returns a script that creates a pod through the plugin, runs `name` and `who` in it, and serves a file
/// from it.
fn make_pod(name: &str, who: &str) -> String {
    let conf = r#"{"name":"cbr0","cniVersion":"0.3.1","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true,"ipMasq":false}}"#;
    format!(
        "set -e
export CNI_COMMAND=ADD CNI_CONTAINERID=guest CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH=/shared/cni/bin
ip netns add pod
echo '{conf}' | /shared/cni/bin/flannel
echo
pod() {{ nsenter --net=/run/netns/pod \"$@\"; }}
echo pod $(pod ip -o -4 addr show dev eth0 | sed 's/.*inet //; s,/.*,,')
echo mtu $(pod ip link show dev eth0 | sed -n 's/.* mtu \\([0-9]*\\).*/\\1/p')
n=0; until pod {name} > /run/name || [ $n = 20 ]; do sleep 0.2; n=$((n+1)); done
echo fetched $(cat /run/name)
echo seen $(pod {who})
mkdir /run/www; head -c 2000000 /dev/urandom > /run/www/big
echo digest $(sha256sum < /run/www/big)
pod busybox httpd -p 80 -h /run/www"
    )
}
