//! The backends that need no kernel tunnel as a reference: loden nodes among themselves.

use lab::Wiring;

use crate::common::{self, Cluster, Daemon, await_until};

const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}"#;

#[test]
fn host_gw_routes_both_families_and_repairs_them() {
    let Some((cluster, mut daemons)) = cluster("be-hgw", 3, HOST_GW) else { return };
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        for ipv6 in [false, true] {
            common::ping(&cluster, from, to, ipv6);
        }
    }
    let two = cluster.lease(2);
    let subnet = two.subnet().expect("IPv4");
    let route = format!("{subnet} via {} dev eth0", cluster.host(2).underlay());
    let shown = |number| cluster.shell(number, &format!("ip route show {subnet}"));
    assert_eq!(shown(1), route);
    assert_eq!(cluster.shell(1, "ip -o link | grep -c flannel || true"), "0", "no device");
    let env = std::fs::read_to_string(&daemons[0].subnet_file).expect("a subnet file");
    assert!(env.contains("FLANNEL_MTU=1500"), "{env}");

    // The kernel removes routes with the link, and with the address of the other family.
    cluster.shell(1, &format!("ip route del {subnet}; ip -6 route flush proto boot dev eth0"));
    await_until("the deleted routes", || shown(1) == route);
    let ipv6 = two.ipv6_subnet().expect("IPv6");
    await_until("the IPv6 route", || !cluster.shell(1, &format!("ip -6 route show {ipv6}")).is_empty());
    cluster.shell(1, "ip link set eth0 down; ip link set eth0 up");
    await_until("the routes after a flap", || shown(1) == route);

    // A node without a lease has no route. A stopped node still forwards, because its kernel does that alone.
    assert!(daemons.remove(1).end(nix::sys::signal::Signal::SIGTERM).success());
    common::ping(&cluster, 1, 2, false);
    cluster.in_store(async |store| store.remove(&two.key).await.expect("removed"));
    await_until("the route to go", || shown(1).is_empty() && shown(3).is_empty());
    common::ping(&cluster, 1, 3, false);
}

#[test]
fn host_gw_refuses_a_nat() {
    if !common::ready(&[]) {
        return;
    }
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let cluster = Cluster::build("be-nat", 1, Wiring::Switch, config);
    let mut daemon = cluster.spawn(1, cluster.command(1).args(["--public-ip", "203.0.113.9"]));
    assert_eq!(daemon.await_end().code(), Some(1));
    assert!(daemon.logged("NAT"), "{}", daemon.log_text());
    assert!(cluster.leases().is_empty(), "it took a subnet");
}

#[test]
fn vxlan_routes_to_neighbours_directly_and_back_into_the_tunnel() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let Some((cluster, daemons)) = cluster("be-dir", 2, config) else { return };
    let lease = cluster.lease(2);
    let (v4, v6) = (lease.subnet().expect("IPv4"), lease.ipv6_subnet().expect("IPv6"));
    let shown = || cluster.shell(1, &format!("ip route show {v4}; ip -6 route show {v6}"));
    let far = cluster.host(2).underlay();
    assert!(shown().starts_with(&format!("{v4} via {far} dev eth0\n")), "{}", shown());
    await_until("the IPv6 route", || shown().matches("dev eth0").count() == 2);
    for ipv6 in [false, true] {
        common::ping(&cluster, 1, 2, ipv6);
    }
    await_until("the log", || daemons[0].logged("reached without the tunnel"));

    // Host 1 now sees a router between the two: only its direction changes.
    cluster.shell(1, &format!("ip route add {far}/32 via 198.18.0.77"));
    await_until("the tunnel's route", || shown().contains("dev flannel.1"));
    await_until("the log", || daemons[0].logged("leads through the gateway 198.18.0.77"));
    assert!(shown().contains("dev eth0"), "IPv6 stays: {}", shown());
    cluster.shell(1, &format!("ip route del {far}/32"));
    await_until("the direct route", || !shown().contains("flannel.1"));
    common::ping(&cluster, 1, 2, false);
}

#[test]
fn ipip_carries_everything_between_two_lodens() {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#;
    let Some((cluster, daemons)) = cluster("be-ipip", 2, config) else { return };
    let far = cluster.host(2).underlay();
    let subnet = cluster.lease(2).subnet().expect("IPv4");
    let shown = cluster.shell(1, &format!("ip route show {subnet}"));
    assert_eq!(shown, format!("{subnet} via {far} dev flannel.ipip onlink"));
    common::ping(&cluster, 1, 2, false);
    assert!(common::unfragmented(&cluster, 1, 2, false, 1480));
    common::every_size(&cluster, 1, 2, false, 0..=3000);
    for (from, to) in [(1, 2), (2, 1)] {
        common::verified(&cluster, from, to, false, 64 << 20);
    }
    for daemon in daemons {
        for tunnel in daemon.finish() {
            assert!(tunnel.unexplained_drops().is_empty(), "{:#?}", tunnel.nonzero());
        }
    }
}

#[test]
fn a_changed_uplink_is_followed_by_vxlan() {
    changed_uplink("be-upv", "vxlan", 1350);
}

#[test]
fn a_changed_uplink_is_followed_by_udp() {
    changed_uplink("be-upu", "udp", 1372);
}

#[test]
fn a_changed_uplink_is_followed_by_ipip() {
    changed_uplink("be-upi", "ipip", 1380);
}

#[test]
fn a_changed_uplink_is_followed_by_host_gw() {
    changed_uplink("be-uph", "host-gw", 1400);
}

#[test]
fn alloc_takes_a_subnet_and_makes_nothing() {
    if !common::ready(&[]) {
        return;
    }
    let config = HOST_GW.replace("host-gw", "alloc");
    let cluster = Cluster::build("be-alloc", 1, Wiring::Switch, &config);
    assert!(
        cluster.shell(1, "ip -6 -o addr show dev eth0 scope global").contains("fd00:"),
        "a second address"
    );
    let before = cluster.shell(1, "ip -o link | cut -d: -f2; ip route");
    let daemon = cluster.start(1, &[]);
    assert_eq!(cluster.shell(1, "ip -o link | cut -d: -f2; ip route"), before);
    let env = std::fs::read_to_string(&daemon.subnet_file).expect("a subnet file");
    let gateway = cluster.lease(1).subnet().expect("IPv4").nth(1).expect("an address");
    assert!(
        env.contains(&format!("FLANNEL_SUBNET={gateway}/24")) && env.contains("FLANNEL_MTU=1500"),
        "{env}"
    );
    let public = cluster.host(1).underlay();
    assert_eq!(cluster.lease(1).attrs.to_json(), format!(r#"{{"PublicIP":"{public}","PublicIPv6":null}}"#));
    assert!(daemon.finish().is_empty());
}

/// Two nodes whose commands add the routes, as in flannel's own host-gw sample, without a shell.
#[test]
fn extension_runs_the_commands_that_make_the_paths() {
    if !common::ready(&["ip"]) {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let script = place.path().join("hook");
    std::fs::write(
        &script,
        "#!/bin/sh\necho \"$1 SUBNET=$SUBNET PUBLIC_IP=$PUBLIC_IP NETWORK=$NETWORK stdin=$(cat)\" >> $2\n\
         [ $1 = add ] && exec ip route replace $SUBNET via $PUBLIC_IP\n\
         [ $1 = remove ] && exec ip route del $SUBNET\ntrue\n",
    )
    .expect("a script");
    let (script, log) = (script.display(), place.path().join("log"));
    let hook = |event: &str| format!("sh {script} {event} {}", log.display());
    let config = serde_json::json!({ "Network": "10.244.0.0/16", "Backend": {
        "Type": "extension", "PreStartupCommand": "echo  my <data>", "PostStartupCommand": hook("post"),
        "SubnetAddCommand": hook("add"), "SubnetRemoveCommand": hook("remove"),
    }});
    let mut cluster = Cluster::build("be-ext", 2, Wiring::Switch, &config.to_string());
    let [_one, mut other] = [1, 2].map(|number| cluster.start(number, &[]));
    [1, 2].into_iter().for_each(|number| cluster.connect_pod(number));
    let two = cluster.lease(2);
    assert_eq!(two.attrs.backend_data.as_ref().expect("data").as_str(), r#""my \u003cdata\u003e""#);
    let (subnet, public) = (two.subnet().expect("IPv4"), two.attrs.public_ip);
    let said = |words: &str| std::fs::read_to_string(&log).unwrap_or_default().contains(words);
    await_until("the command for host 2", || {
        said(&format!("add SUBNET={subnet} PUBLIC_IP={public} NETWORK= stdin=my <data>"))
    });
    assert!(said(&format!("post SUBNET={subnet} PUBLIC_IP={public} NETWORK=10.244.0.0/16 stdin=")));
    await_until("the other's route", || {
        !cluster.shell(2, "ip route show proto boot | grep 10.244 || true").is_empty()
    });
    common::ping(&cluster, 1, 2, false);
    assert!(other.end(nix::sys::signal::Signal::SIGTERM).success());
    cluster.in_store(async |store| store.remove(&two.key).await.expect("removed"));
    await_until("the removal", || said(&format!("remove SUBNET={subnet}")));
}

/// A restart finds a configuration in the store that differs from its state file.
#[test]
fn an_extension_that_restarts_runs_its_start_commands_once() {
    if !common::ready(&[]) {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let (script, log) = (place.path().join("hook"), place.path().join("log"));
    std::fs::write(&script, format!("echo $1 | tee -a {}\n", log.display())).expect("a script");
    let config = |name: &str| {
        let hook = |event: &str| format!("sh {} {event}-{name}", script.display());
        let backend = serde_json::json!({ "Type": "extension", "PreStartupCommand": hook("pre"),
            "PostStartupCommand": hook("post") });
        serde_json::json!({ "Network": "10.244.0.0/16", "Backend": backend }).to_string()
    };
    let cluster = Cluster::build("be-exr", 1, Wiring::Switch, &config("unused"));
    // With the configuration in the store, and none on the command line.
    let mut command = cluster.command(1);
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let given = arguments.iter().position(|argument| argument == "--net-config-json").expect("it is given");
    let kept = arguments.iter().enumerate().filter(|(at, _)| !(given..given + 2).contains(at));
    let program = command.get_program().to_owned();
    command = std::process::Command::new(program);
    command.args(kept.map(|(_, argument)| argument));
    for name in ["one", "one", "two"] {
        let text = config(name);
        cluster.in_store(async |store| store.set_net_config(&text).await.expect("the store"));
        let mut daemon = cluster.spawn(1, &mut command);
        daemon.await_ready();
        let data = cluster.lease(1).attrs.backend_data.expect("what the command printed");
        assert_eq!(data.as_str(), format!(r#""pre-{name}""#));
        assert!(daemon.end(nix::sys::signal::Signal::SIGTERM).success());
    }
    let ran = std::fs::read_to_string(&log).expect("the commands' log");
    assert_eq!(ran, "pre-one\npost-one\npre-one\npost-one\npre-two\npost-two\n");
}

#[test]
fn an_extension_that_cannot_start_says_which_command() {
    if !common::ready(&[]) {
        return;
    }
    for (key, left) in [("PreStartupCommand", 0), ("PostStartupCommand", 1)] {
        let config = format!(
            r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"extension","{key}":"ls /no-such-place"}}}}"#
        );
        let cluster = Cluster::build("be-exf", 1, Wiring::Switch, &config);
        let mut daemon = cluster.spawn(1, &mut cluster.command(1));
        assert_eq!(daemon.await_end().code(), Some(1));
        assert!(daemon.logged("ls /no-such-place"), "{}", daemon.log_text());
        assert_eq!(cluster.leases().len(), left);
        assert!(!daemon.subnet_file.exists());
    }
}

/// Changes host 1's address, then its MTU to 1400, then takes its link down and up.
fn changed_uplink(name: &str, backend: &str, mtu: u16) {
    let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
    let Some((cluster, mut daemons)) = cluster(name, 2, &config) else { return };
    let before = cluster.lease(1);
    let old = before.attrs.public_ip;
    let reached = |from: usize, to| {
        let pod = cluster.host(from).pod();
        pod.ping(cluster.pod(to, false), 56, std::time::Duration::from_secs(1)).is_ok()
    };
    cluster.shell(1, &format!("ip addr del {old}/24 dev eth0; ip addr add 198.18.0.101/24 dev eth0"));
    let own = || cluster.leases().into_iter().find(|lease| lease.key == before.key).expect("our lease");
    await_until("the new address", || own().attrs.public_ip.octets() == [198, 18, 0, 101]);
    assert_eq!(own().attrs.backend_data, before.attrs.backend_data, "{backend}: only the address is new");
    await_until("the path", || reached(1, 2) && reached(2, 1));

    cluster.shell(1, "ip link set eth0 mtu 1400");
    let env = || std::fs::read_to_string(&daemons[0].subnet_file).unwrap_or_default();
    await_until("the new MTU", || env().contains(&format!("FLANNEL_MTU={mtu}")));
    await_until("the path", || reached(1, 2) && reached(2, 1));

    cluster.shell(1, "ip link set eth0 down; ip link set eth0 up");
    await_until("the path after a flap", || reached(1, 2) && reached(2, 1));
    assert!(daemons.iter_mut().all(Daemon::is_running), "{backend}");
}

/// Builds hosts on a switch, with a daemon and a pod on each.
fn cluster(name: &str, hosts: usize, config: &str) -> Option<(Cluster, Vec<Daemon>)> {
    if !common::ready(&[]) {
        return None;
    }
    let mut cluster = Cluster::build(name, hosts, Wiring::Switch, config);
    let daemons: Vec<Daemon> = (1..=hosts).map(|number| cluster.start(number, &[])).collect();
    (1..=hosts).for_each(|number| cluster.connect_pod(number));
    let peers = || {
        (1..=hosts).all(|number| {
            let routes = cluster.shell(number, "ip route");
            // The udp backend has one route for all peers.
            let single = routes.contains("10.244.0.0/16 dev flannel0");
            let has = |routes: &str, kind: &str| routes.matches(kind).count() == hosts - 1;
            let dual = config.contains("EnableIPv6");
            (single || has(&routes, "/24 via "))
                && (!dual || has(&cluster.shell(number, "ip -6 route"), "/64 via fd00:"))
        })
    };
    await_until("all peers", peers);
    Some((cluster, daemons))
}
