//! The daemon on Kubernetes: inside the test's own process, beside an API server that the test can make fail.

use std::fs;
use std::time::Duration;

use control::daemon;
use control::settings::{Settings, UplinkSettings};
use lab::Wiring;
use store::Spec;
use store::testing::kube::Server;
use tokio::time::{sleep, timeout};

use crate::common::{self, Cluster, LIMIT, VXLAN};

/// As stock flannel has left it.
const MAC: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
const PEER: &str = r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}"#;
/// Longer than a removed peer is kept.
const LONG: Duration = Duration::from_secs(7);

#[test]
fn a_node_takes_over_from_stock_flannel_and_outlives_the_api_server() {
    if !common::ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("kube", 2, Wiring::Direct, VXLAN);
    let inside = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let server = Server::start().await;
            server.add("n1", &[]);
            server.add("n2", &["10.244.2.0/24"]);
            vxlan(&server, "n1", MAC, "192.0.2.99");
            vxlan(&server, "n2", PEER, "203.0.113.2");
            // Twice: the second start has a lost state, and the node's address is overwritten meanwhile.
            for round in 1..=2 {
                let settings = Settings {
                    store: Spec::Kube(server.config("n1", VXLAN)),
                    uplink: UplinkSettings {
                        ifaces: vec![cluster.host(1).uplink().to_owned()],
                        ..UplinkSettings::default()
                    },
                    subnet_file: cluster.file("subnet.env"),
                    run_dir: cluster.file(&format!("run{round}")),
                    ..Settings::default()
                };
                tokio::select! {
                    ended = daemon::run(&settings) => panic!("the daemon has ended: {ended:?}"),
                    () = live(&server, &cluster, round) => {}
                }
            }
        });
    };
    cluster.host(1).namespace().run(inside).expect("the host");
}

async fn live(server: &Server, cluster: &Cluster, round: u32) {
    let subnet_file = cluster.file("subnet.env");
    if round == 1 {
        // Without a podCIDR the node waits, and says so.
        until("an event", || server.events().len() == 1).await;
        assert!(!subnet_file.exists());
        server.assign("n1", &["10.244.7.0/24"]);
    }
    until("the condition", || server.conditions("n1").len() == 1).await;
    let text = fs::read_to_string(&subnet_file).expect("a subnet file");
    assert!(text.contains("FLANNEL_SUBNET=10.244.7.1/24\n"), "{text}");
    let annotations = server.annotations("n1");
    assert_eq!(annotations["backend-data"], MAC, "the link address stays");
    let routes = || cluster.shell(1, "ip route show dev flannel.1");
    until("a route", || routes().contains("10.244.2.0/24")).await;
    if round == 2 {
        assert_eq!(annotations["public-ip"], "198.51.100.1");
        return;
    }
    server.annotate("n1", &[("public-ip-overwrite", "198.51.100.1")]);
    until("the overwrite", || server.annotations("n1")["public-ip"] == "198.51.100.1").await;
    // The server answers nobody, and has forgotten what was.
    server.deny(Some(""));
    server.end_watches();
    server.compact();
    server.add("n3", &["10.244.3.0/24"]);
    vxlan(server, "n3", PEER, "203.0.113.3");
    sleep(LONG).await;
    assert!(routes().contains("10.244.2.0/24") && !routes().contains("10.244.3.0/24"), "{}", routes());
    server.deny(None);
    until("the new peer", || routes().contains("10.244.3.0/24")).await;
    server.delete("n3");
    until("its end", || !routes().contains("10.244.3.0/24")).await;
    assert!(routes().contains("10.244.2.0/24"), "{}", routes());
}

/// Annotates a node as stock flannel does.
fn vxlan(server: &Server, name: &str, data: &str, public_ip: &str) {
    server.annotate(
        name,
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", data),
            ("public-ip", public_ip),
        ],
    );
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("{what} did not come"));
}
