//! A host whose kernel has TUN and no tunnel of its own joins a cluster, and its pod talks to a pod of containerd.
//!
//! The kernel is user-mode-linux 6.1 with the modules tun, bridge and veth and what these need, and without iptables. The lease store is etcd.

use std::fs;
use std::process::{Command, Stdio};

use lab::{Process, Wiring};

use crate::common::guest::Guest;
use crate::common::{self, Cluster, VXLAN, await_until};
use crate::containerd::Containerd;
use crate::image;
use crate::setup::{self, Setup, fetch};

/// The guest on the lab's underlay, beside host 1.
const GUEST: &str = "198.18.0.200";

#[test]
fn a_host_with_nothing_but_tun_joins_and_its_pod_talks() {
    let programs = [
        "linux.uml",
        "insmod",
        "etcd",
        "etcdctl",
        "containerd",
        "ctr",
        "runc",
        "busybox",
        "unshare",
        "nsenter",
    ];
    if !setup::ready(&programs) {
        return;
    }
    let cluster = Cluster::build("old-kernel", 1, Wiring::Switch, VXLAN);
    let _etcd = start_etcd(&cluster);
    let place = cluster.file("image");
    fs::create_dir(&place).expect("a directory");
    let image = image::archive(&place);
    let (here, there) = (Setup::new(&cluster, 1), Setup::new(&cluster, 2));
    there.install(&["--subnet-file", "/run/flannel/subnet.env"]);
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_loden"));
    daemon.args([
        "run",
        "--iface",
        "eth0",
        "--ip-masq",
        "--etcd-endpoints",
        &endpoint(&cluster),
        "--subnet-file",
    ]);
    daemon.arg(cluster.file("host1.env")).arg("--run-dir").arg(cluster.file("run"));
    daemon.arg("--counters-file").arg(cluster.file("host1.json")).stdout(Stdio::null());
    let mut daemon = cluster.spawn(1, &mut daemon);
    daemon.await_ready();
    here.install(&[]);
    let mut runtime = Containerd::start(&cluster, 1, &here.bin, &here.conf, &image);
    await_until("the network", || runtime.network().is_ok());
    let pod = runtime.run("one", &image::server("one"), None);
    let address = pod.addresses[0];

    let guest = Guest::boot(
        &cluster,
        &script(&cluster, &there, &fetch(address, 80, "name"), &fetch(address, 80, "cgi-bin/who")),
    );
    let ended = || guest.said("served") || guest.said("FAILED");
    await_until("the guest's pod", ended);
    let words = guest.words();
    assert!(
        guest.said("code 1") && words.contains("/dev/net/tun is missing: load the tun module"),
        "{words}"
    );
    assert!(!guest.said("FAILED"), "{words}");
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

/// First the daemon without TUN, then with it, then a pod by the plugin as a runtime would call it.
fn script(cluster: &Cluster, setup: &Setup, name: &str, who: &str) -> String {
    let (loden, endpoint) = (env!("CARGO_BIN_EXE_loden"), endpoint(cluster));
    let busybox = common::find("busybox").expect("asked for before");
    let (busybox, bin) = (busybox.display(), setup.bin.display());
    let conf = r#"{"name":"cbr0","cniVersion":"0.3.1","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true,"ipMasq":false}}"#;
    format!(
        "mount -t sysfs s /sys; mount -t tmpfs t /var/lib
ip link set lo up; ip addr add {GUEST}/24 dev vec0; ip link set vec0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
daemon() {{ {loden} run --iface vec0 --etcd-endpoints {endpoint} --require-br-netfilter=false --iptables-forward-rules=false; }}
daemon 2>&1; echo code $?
for m in drivers/net/tun lib/crc-ccitt net/ipv6/ipv6 net/llc/llc net/802/stp net/bridge/bridge drivers/net/veth; do insmod $M/$m.ko || echo FAILED $m; done
daemon 2>&1 &
n=0; until [ -e /run/flannel/subnet.env ] || [ $n = 100 ]; do sleep 0.1; n=$((n+1)); done
ip netns add pod
echo '{conf}' | CNI_COMMAND=ADD CNI_CONTAINERID=guest CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH={bin} {bin}/flannel || echo FAILED add
echo
pod() {{ nsenter --net=/run/netns/pod \"$@\"; }}
echo pod $(pod ip -o -4 addr show dev eth0 | sed 's/.*inet //; s,/.*,,')
echo mtu $(pod ip link show dev eth0 | sed -n 's/.* mtu \\([0-9]*\\).*/\\1/p')
n=0; until pod {name} > /run/name || [ $n = 20 ]; do sleep 0.2; n=$((n+1)); done
echo fetched $(cat /run/name)
echo seen $(pod {who})
mkdir /run/www; head -c 2000000 /dev/urandom > /run/www/big
echo digest $(sha256sum < /run/www/big)
pod {busybox} httpd -p 80 -h /run/www || echo FAILED httpd
echo served"
    )
}

/// On host 1, for all.
fn start_etcd(cluster: &Cluster) -> Process {
    let mut command = Command::new("etcd");
    command.args(["--listen-client-urls", &endpoint(cluster), "--advertise-client-urls", &endpoint(cluster)]);
    command.args(["--log-level", "error", "--data-dir"]).arg(cluster.file("etcd")).stdout(Stdio::null());
    let process = Process::spawn(cluster.host(1).namespace(), &mut command).expect("etcd");
    let put = format!(
        "ETCDCTL_API=3 etcdctl --endpoints {} put /coreos.com/network/config '{VXLAN}' 2>&1 || true",
        endpoint(cluster)
    );
    await_until("etcd", || cluster.shell(1, &put) == "OK");
    process
}

fn endpoint(cluster: &Cluster) -> String {
    format!("http://{}:2379", cluster.host(1).underlay())
}
