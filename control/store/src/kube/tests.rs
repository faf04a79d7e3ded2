//! Cases of Kubernetes alone, against an API server that fails as real ones do.

use std::collections::BTreeSet;

use model::net_config;
use tokio::time::sleep;

use super::*;
use crate::contract_tests::next;
use crate::testing::etcd::ready;
use crate::testing::kube::{Fault, Server};
use crate::{Cause, Event, Spec, Store};

const V4: &str = r#"{"Network":"10.244.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/56","Backend":{"Type":"vxlan"}}"#;
const VXLAN: &str = concat!(
    r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","#,
    r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"#,
    r#""BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#
);
/// Longer than the store takes for what it does at once; nothing may have come by then.
const A_WHILE: Duration = Duration::from_millis(700);

fn attrs(text: &str) -> LeaseAttrs {
    LeaseAttrs::parse(text).expect("attributes")
}

fn config(text: &str) -> NetConfig {
    net_config::parse_assigned(text).expect(text).0
}

async fn open(server: &Server, node: &str, network: &str) -> Store {
    let store = Store::open(Spec::Kube(server.config(node, network))).await.expect("options");
    store.network(None).await.expect("a network configuration");
    store
}

async fn acquire(store: &Store, network: &str, wished: &str) -> Result<Owned, StoreError> {
    let config = config(network);
    store.acquire(&Wish { config: &config, attrs: attrs(wished), previous: None, former: None }).await
}

/// A cluster of `n1`, ours, and `n2`, a stock node, with our lease and its watch after the snapshot.
async fn joined(network: &str) -> (Server, Store, Owned, Watch) {
    let server = Server::start().await;
    server.add("n1", &["10.244.1.0/24", "fd00:1::/64"]);
    server.add("n2", &["10.244.2.0/24"]);
    server.join("n2", "192.0.2.2");
    let store = open(&server, "n1", network).await;
    let own = acquire(&store, network, VXLAN).await.expect("a lease");
    let mut watch = store.watch();
    assert_eq!(keys(&next(&mut watch).await), expected(&own, &["10.244.2.0-24"]));
    (server, store, own, watch)
}

fn expected(own: &Owned, others: &[&str]) -> BTreeSet<String> {
    others.iter().map(|&key| key.to_owned()).chain([own.key().to_string()]).collect()
}

fn keys(event: &Event) -> BTreeSet<String> {
    let (Event::Snapshot(leases) | Event::Rewind(leases)) = event else { panic!("no list: {event:?}") };
    leases.iter().map(|lease| lease.key.to_string()).collect()
}

fn put(event: Event) -> Lease {
    let Event::Put(lease) = event else { panic!("a put was due: {event:?}") };
    lease
}

async fn assert_quiet(watch: &mut Watch) {
    let more = timeout(A_WHILE, watch.next()).await;
    assert!(more.is_err(), "{more:?}");
}

fn kube(error: &StoreError) -> &KubeError {
    let (StoreError::Passing(Cause::Kube(error)) | StoreError::Fatal(Cause::Kube(error))) = error else {
        panic!("another kind: {error:?}")
    };
    error
}

fn count(server: &Server, beginning: &str) -> usize {
    server.requests().iter().filter(|line| line.starts_with(beginning)).count()
}

#[tokio::test]
async fn a_node_publishes_its_annotations_and_its_condition() {
    let server = Server::start().await;
    server.add("n1", &["10.244.1.0/24", "fd00:1::/64"]);
    let store = open(&server, "n1", DUAL).await;
    let own = acquire(&store, DUAL, VXLAN).await.expect("a lease");
    assert_eq!((own.key().to_string().as_str(), own.published.expires), ("10.244.1.0-24&fd00:1::-64", None));
    assert_eq!((&own.published.attrs, &own.wished), (&attrs(VXLAN), &attrs(VXLAN)));
    let written = server.annotations("n1");
    let expected = [
        ("backend-data", r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
        ("backend-type", "vxlan"),
        ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}"#),
        ("kube-subnet-manager", "true"),
        ("public-ip", "192.0.2.1"),
        ("public-ipv6", "2001:db8::1"),
    ];
    assert_eq!(written, expected.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
    // A second start has nothing to write, and a renewal neither.
    let again = open(&server, "n1", DUAL).await;
    let own = acquire(&again, DUAL, VXLAN).await.expect("a lease");
    assert_eq!(again.renew(&own).await.expect("a lease"), own);
    assert_eq!(count(&server, "PATCH "), 1);
    assert_eq!(again.published(&attrs(VXLAN), None).await.expect("a node"), Some(attrs(VXLAN)));
    again.announce_ready().await.expect("a condition");
    let condition = &server.conditions("n1")[0];
    assert_eq!((&condition["type"], &condition["status"]), (&"NetworkUnavailable".into(), &"False".into()));
    assert_eq!(
        (&condition["reason"], condition["lastTransitionTime"].is_string()),
        (&"FlannelIsUp".into(), true)
    );
    // What flannel's role allows, and nothing else.
    let allowed = ["GET /api/v1/nodes/n1", "PATCH /api/v1/nodes/n1/status"];
    assert!(server.requests().iter().all(|line| allowed.contains(&line.as_str())), "{:?}", server.requests());
    let quiet = Config { set_network_unavailable: false, ..server.config("n1", DUAL) };
    Store::open(Spec::Kube(quiet)).await.expect("options").announce_ready().await.expect("nothing");
    assert_eq!(count(&server, "PATCH "), 2);
}

#[tokio::test]
async fn a_pod_tells_its_node() {
    let server = Server::start().await;
    server.add("n1", &["10.244.1.0/24"]);
    let identity = Identity::Pod { namespace: "kube-flannel".into(), name: "p".into() };
    let options = Config { node: identity, ..server.config("", V4) };
    let store = Store::open(Spec::Kube(options)).await.expect("options");
    let missing = acquire(&store, V4, VXLAN).await.expect_err("no pod");
    assert!(missing.is_passing() && missing.to_string().contains("pods \"p\" not found"), "{missing}");
    server.add_pod("kube-flannel", "p", "");
    let unscheduled = acquire(&store, V4, VXLAN).await.expect_err("no node");
    assert!(matches!(kube(&unscheduled), KubeError::Unscheduled { .. }), "{unscheduled}");
    server.add_pod("kube-flannel", "p", "n1");
    let own = acquire(&store, V4, VXLAN).await.expect("a lease");
    assert_eq!(own.key().to_string(), "10.244.1.0-24");
}

#[tokio::test]
async fn changes_of_the_peers_are_followed_and_status_events_cost_nothing() {
    let (server, store, own, mut watch) = joined(V4).await;
    server.add("n3", &["10.244.3.0/24"]);
    assert_quiet(&mut watch).await;
    server.join("n3", "192.0.2.3");
    let lease = put(next(&mut watch).await);
    assert_eq!(
        (lease.key.to_string().as_str(), lease.attrs.public_ip),
        ("10.244.3.0-24", [192, 0, 2, 3].into())
    );
    for _ in 0..500 {
        server.touch("n1");
        server.touch("n2");
    }
    server.annotate("n2", &[("node.alpha.kubernetes.io/ttl", "0")]);
    server.annotate("n2", &[("public-ip", "192.0.2.22")]);
    assert_eq!(put(next(&mut watch).await).attrs.public_ip.octets(), [192, 0, 2, 22]);
    server.delete("n3");
    assert_eq!(next(&mut watch).await, Event::Removed(lease.key));
    // The regular end of a watch is no failure, and nothing is lost meanwhile.
    server.end_watches();
    server.annotate("n2", &[("public-ip", "192.0.2.23")]);
    assert_eq!(put(next(&mut watch).await).attrs.public_ip.octets(), [192, 0, 2, 23]);
    assert_eq!((count(&server, "GET /api/v1/nodes?limit"), watch.health().lost_since()), (1, None));
    let leases = store.leases().await.expect("leases");
    assert_eq!(
        leases.iter().map(|lease| lease.key.to_string()).collect::<BTreeSet<_>>(),
        expected(&own, &["10.244.2.0-24"])
    );
}

#[tokio::test]
async fn each_failure_of_the_server_is_outlived() {
    let (server, _store, own, mut watch) = joined(V4).await;
    let watching = "GET /api/v1/nodes?watch";
    let status = |code| Fault::Status(code, "x".into(), None);
    let gone = Fault::Status(410, r#"{"message":"too old resource version"}"#.into(), None);
    for (number, fault, relists) in [
        (1, status(500), false),
        (2, Fault::Status(429, String::new(), Some(1)), false),
        (3, Fault::Half, false),
        (4, Fault::Cut, false),
        (5, Fault::Page, false),
        (6, status(401), false),
        (7, status(403), false),
        (8, gone, true),
    ] {
        server.fail(watching, fault.clone());
        let lists = count(&server, "GET /api/v1/nodes?limit=250");
        server.end_watches();
        let address = format!("192.0.2.{}", 100 + number);
        server.annotate("n2", &[("public-ip", &address)]);
        let address = address.parse::<Ipv4Addr>().expect("an address");
        match next(&mut watch).await {
            Event::Put(lease) => {
                assert!(!relists && lease.attrs.public_ip == address, "{fault:?}: {lease:?}")
            }
            Event::Snapshot(leases) => {
                assert!(relists && leases.iter().any(|lease| lease.attrs.public_ip == address), "{fault:?}");
                assert_eq!(leases.len(), expected(&own, &["x"]).len());
            }
            other => panic!("{fault:?}: {other:?}"),
        }
        assert_eq!(count(&server, "GET /api/v1/nodes?limit=250") > lists, relists, "{fault:?}");
        assert_eq!(watch.health().lost_since(), None, "{fault:?}");
    }
}

#[tokio::test]
async fn a_list_is_read_page_by_page_and_again_if_its_rest_is_gone() {
    let server = Server::start().await;
    for number in 0..600 {
        let name = format!("n{number:03}");
        server.add(&name, &[&format!("10.244.{}.{}/28", number / 16, number % 16 * 16)]);
        server.join(&name, &format!("10.0.{}.{}", number / 250, number % 250 + 1));
    }
    let store = open(&server, "n000", V4).await;
    assert_eq!(store.leases().await.expect("leases").len(), 600);
    assert_eq!(count(&server, "GET /api/v1/nodes?limit=250"), 3);
    let rest = "GET /api/v1/nodes?limit=250&continue";
    server.fail(rest, Fault::Status(410, String::new(), None));
    let mut watch = store.watch();
    assert_eq!(keys(&next(&mut watch).await).len(), 600);
    assert_eq!(count(&server, "GET /api/v1/nodes?limit=250"), 3 + 5);
    // One broken page is no short list.
    for fault in [Fault::Half, Fault::Status(500, String::new(), None)] {
        server.fail(rest, fault);
        let mut watch = store.watch();
        assert_eq!(keys(&next(&mut watch).await).len(), 600);
    }
}

#[tokio::test]
async fn a_node_that_goes_while_a_list_is_read_again_is_gone() {
    let (server, store, own, mut watch) = joined(V4).await;
    let prefix = "flannel.alpha.coreos.com";
    let annotations = [("kube-subnet-manager", "true"), ("backend-data", "null"), ("public-ip", "192.0.2.7")];
    let meta = messages::ObjectMeta {
        name: "n7".into(),
        annotations: annotations.map(|(name, text)| (format!("{prefix}/{name}"), text.to_owned())).into(),
        ..Default::default()
    };
    let spec = messages::NodeSpec { pod_cidrs: vec!["10.244.7.0/24".into()], ..Default::default() };
    let items = vec![messages::Node { meta: Some(meta), spec: Some(spec) }];
    let meta = messages::ListMeta { version: "7".into(), rest: "7=x".into() };
    let body = messages::encode("v1", "NodeList", &messages::NodeList { meta: Some(meta), items });
    // Its page is read, then the rest is gone, and so is the node.
    let break_off = || {
        server.fail("GET /api/v1/nodes?limit", Fault::Body(body.clone()));
        server.fail("GET /api/v1/nodes?limit=250&continue", Fault::Status(410, String::new(), None));
    };
    break_off();
    let leases = store.leases().await.expect("leases");
    let found: BTreeSet<String> = leases.iter().map(|lease| lease.key.to_string()).collect();
    assert_eq!(found, expected(&own, &["10.244.2.0-24"]));
    break_off();
    server.fail("GET /api/v1/nodes?watch", Fault::Status(410, String::new(), None));
    server.end_watches();
    assert_eq!(keys(&next(&mut watch).await), expected(&own, &["10.244.2.0-24"]));
}

#[tokio::test]
async fn a_list_without_end_or_of_empty_nodes_is_refused() {
    let server = Server::start().await;
    server.add("n1", &["10.244.1.0/24"]);
    let store = open(&server, "n1", V4).await;
    let meta = |rest: &str| Some(messages::ListMeta { version: "7".into(), rest: rest.into() });
    let empty = messages::NodeList { meta: meta("7=x"), items: vec![] };
    let crowd = messages::NodeList { meta: meta(""), items: vec![messages::Node::default(); 1001] };
    for (list, problem) in [(empty, "empty, and more"), (crowd, "a page of 1001 nodes")] {
        let body = messages::encode("v1", "NodeList", &list);
        server.fail("GET /api/v1/nodes?limit", Fault::Body(body));
        let error = store.leases().await.expect_err(problem);
        assert!(error.is_passing() && error.to_string().contains(problem), "{error}");
    }
    // A page that leads to itself again and again.
    let name =
        |number: usize| Some(messages::ObjectMeta { name: format!("n{number}"), ..Default::default() });
    let items = (0..1000).map(|number| messages::Node { meta: name(number), spec: None }).collect();
    let body = messages::encode("v1", "NodeList", &messages::NodeList { meta: meta("7=x"), items });
    for _ in 0..101 {
        server.fail("GET /api/v1/nodes?limit", Fault::Body(body.clone()));
    }
    let before = count(&server, "GET /api/v1/nodes?limit");
    let error = store.leases().await.expect_err("no end").to_string();
    assert!(error.contains("more than 100000 nodes"), "{error}");
    assert_eq!(count(&server, "GET /api/v1/nodes?limit") - before, 101);
    assert!(store.leases().await.expect("a list").is_empty());
}

#[tokio::test]
async fn a_history_that_is_gone_or_rewound_is_listed_again() {
    let (server, _store, own, mut watch) = joined(V4).await;
    // While no watch stands.
    server.fail("GET /api/v1/nodes?watch", Fault::Cut);
    server.end_watches();
    server.add("n3", &["10.244.3.0/24"]);
    server.join("n3", "192.0.2.3");
    server.compact();
    let event = next(&mut watch).await;
    assert_eq!(keys(&event), expected(&own, &["10.244.2.0-24", "10.244.3.0-24"]));
    assert!(matches!(event, Event::Snapshot(_)));
    // Restored from an older state, in which n3 was not there.
    server.fail("GET /api/v1/nodes?watch", Fault::Cut);
    server.rewind(&["n3"]);
    server.end_watches();
    let event = next(&mut watch).await;
    assert!(matches!(event, Event::Rewind(_)), "{event:?}");
    assert_eq!(keys(&event), expected(&own, &["10.244.2.0-24"]));
    // A later run notices by the position that this one has read.
    let position = watch.position().expect("a position");
    drop(watch);
    server.rewind(&[]);
    let store = open(&server, "n1", V4).await;
    acquire(&store, V4, VXLAN).await.expect("a lease");
    assert!(matches!(next(&mut store.watch_since(Some(position))).await, Event::Rewind(_)));
    // Another cluster is no older state of this one.
    let other = Position { cluster: !position.cluster, ..position };
    assert!(matches!(next(&mut store.watch_since(Some(other))).await, Event::Snapshot(_)));
}

#[tokio::test]
async fn a_missing_pod_cidr_is_waited_for_and_an_event_says_so_once() {
    let server = Server::start().await;
    server.add("n1", &[]);
    let store = open(&server, "n1", V4).await;
    for _ in 0..3 {
        let error = acquire(&store, V4, VXLAN).await.expect_err("no podCIDR");
        assert!(error.is_passing() && matches!(kube(&error), KubeError::Unassigned { .. }), "{error}");
    }
    let events = server.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["type"], &events[0]["involvedObject"]["name"]), (&"Warning".into(), &"n1".into()));
    assert!(events[0]["message"].as_str().expect("a message").contains("no podCIDR yet"), "{events:?}");
    assert_eq!(server.annotations("n1").len(), 0, "nothing is published before");
    server.assign("n1", &["10.244.7.0/24"]);
    let own = acquire(&store, V4, VXLAN).await.expect("a lease");
    assert_eq!(own.key().to_string(), "10.244.7.0-24");
    // flannel's own role allows no events, and then there is none.
    let silent = Server::start().await;
    silent.add("n1", &[]);
    silent.deny(Some("POST "));
    let store = open(&silent, "n1", V4).await;
    for _ in 0..3 {
        let error = acquire(&store, V4, VXLAN).await.expect_err("no podCIDR");
        assert!(matches!(kube(&error), KubeError::Unassigned { .. }), "{error}");
    }
    assert_eq!(count(&silent, "POST "), 1);
}

#[tokio::test]
async fn pod_cidrs_that_cannot_be_used_publish_nothing_until_they_can() {
    for (cidrs, problem) in [
        (&["10.245.1.0/24"][..], "is not within Network"),
        (&["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"], "more than one for each family"),
        (&["rubbish"], "is no subnet"),
    ] {
        let server = Server::start().await;
        server.add("n1", cidrs);
        let store = open(&server, "n1", V4).await;
        let error = acquire(&store, V4, VXLAN).await.expect_err(problem);
        assert!(error.is_passing() && error.to_string().contains(problem), "{error}");
        assert_eq!(count(&server, "PATCH "), 0);
        server.delete("n1");
        let missing = acquire(&store, V4, VXLAN).await.expect_err("no node");
        assert!(matches!(kube(&missing), KubeError::Missing { .. }), "{missing}");
        server.add("n1", &["10.244.1.0/24"]);
        acquire(&store, V4, VXLAN).await.expect("a lease");
    }
}

#[tokio::test]
async fn a_denied_call_names_what_to_allow() {
    let server = Server::start().await;
    server.add("n1", &["10.244.1.0/24"]);
    let store = open(&server, "n1", V4).await;
    for (beginning, verb, resource) in
        [("GET /api/v1/nodes/", "verb get", "on nodes in"), ("PATCH ", "verb patch", "on nodes/status in")]
    {
        server.deny(Some(beginning));
        let error = acquire(&store, V4, VXLAN).await.expect_err("denied").to_string();
        assert!(
            error.contains(verb) && error.contains(resource) && error.contains("no RBAC policy"),
            "{error}"
        );
    }
    server.deny(Some("GET /api/v1/nodes?limit"));
    let error = store.leases().await.expect_err("denied").to_string();
    assert!(error.contains("verb list on nodes in"), "{error}");
    // A watch waits for the role, and begins when it is there.
    server.deny(None);
    acquire(&store, V4, VXLAN).await.expect("a lease");
    server.deny(Some("GET /api/v1/nodes?"));
    let mut watch = store.watch();
    assert_quiet(&mut watch).await;
    assert!(watch.health().lost_since().is_some());
    server.deny(None);
    assert_eq!(keys(&next(&mut watch).await).len(), 1);
}

#[tokio::test]
async fn an_overwrite_is_followed_live_and_never_of_the_wrong_family() {
    let (server, store, own, mut watch) = joined(DUAL).await;
    let published = |name: &str| server.annotations("n1").get(name).cloned().unwrap_or_default();
    server.annotate("n1", &[("public-ip-overwrite", "198.51.100.1")]);
    let lease = put(next(&mut watch).await);
    assert_eq!(lease.key, own.key());
    let lease =
        if lease.attrs.public_ip == own.wished.public_ip { put(next(&mut watch).await) } else { lease };
    assert_eq!(lease.attrs.public_ip.octets(), [198, 51, 100, 1]);
    assert_eq!(store.holder(&own.wished, &lease), Holder::Us);
    // Stock peers drop an update of one family, so the other one's text has changed as well.
    assert_eq!(published("backend-v6-data"), r#"{"VNI": 1,"VtepMAC":"0a:11:22:33:44:55"}"#);
    let again = store.renew(&own).await.expect("a lease");
    assert_eq!((again.wished, again.published.attrs.public_ip), (attrs(VXLAN), [198, 51, 100, 1].into()));
    // A literal of the other family crashes stock nodes, so the detected address comes back.
    server
        .annotate("n1", &[("public-ip-overwrite", "2001:db8::66"), ("public-ipv6-overwrite", "192.0.2.66")]);
    while published("public-ip") != "192.0.2.1" {
        next(&mut watch).await;
    }
    assert_eq!(published("public-ipv6"), "2001:db8::1");
    // A fresh start reads the same.
    let fresh = open(&server, "n1", DUAL).await;
    let own = acquire(&fresh, DUAL, VXLAN).await.expect("a lease");
    assert_eq!(own.published.attrs, attrs(VXLAN));
    server.annotate("n1", &[("node-public-ip", "203.0.113.7"), ("node-public-ipv6", "rubbish")]);
    fresh.look_at_node().await.expect("a node");
    assert_eq!(fresh.node_addresses(), NodeAddresses { ipv4: Some([203, 0, 113, 7].into()), ipv6: None });
}

#[tokio::test]
async fn what_others_do_to_our_annotations_is_written_again() {
    let (server, _store, own, mut watch) = joined(V4).await;
    let before = server.annotations("n1");
    for (round, change) in [
        (|server: &Server| server.annotate("n1", &[("public-ip", "2001:db8::1")])) as fn(&Server),
        |server| server.remove_annotation("n1", "kube-subnet-manager"),
        |server| server.annotate("n1", &[("backend-data", "rubbish")]),
    ]
    .into_iter()
    .enumerate()
    {
        change(&server);
        let restored = async {
            while server.annotations("n1") != before {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(60), restored).await.unwrap_or_else(|_| panic!("round {round}"));
    }
    // Nothing of it has taken the lease away.
    while let Ok(event) = timeout(A_WHILE, watch.next()).await {
        assert_eq!(put(event).key, own.key());
    }
    server.delete("n1");
    assert_eq!(next(&mut watch).await, Event::Removed(own.key()));
}

#[tokio::test]
async fn another_daemon_of_our_name_is_reported_once_for_each_text() {
    let server = Server::start().await;
    server.add("n1", &["10.244.1.0/24", "fd00:1::/64"]);
    let kube = Kube::lazy(server.config("n1", DUAL)).expect("options");
    let (config, wished) = (config(DUAL), attrs(VXLAN));
    let wish = Wish { config: &config, attrs: wished.clone(), previous: None, former: None };
    let own = kube.acquire(&wish).await.expect("a lease");
    let report = async || {
        let node = kube.read_node().await.expect("a node");
        let warning = kube.intrusion(&node, own.key(), &wished);
        kube.write(node, own.key(), &wished).await.expect("a patch");
        warning
    };
    assert_eq!(report().await, None);
    for address in ["192.0.2.8", "192.0.2.9"] {
        let text = [("public-ip", address), ("kube-subnet-manager", "")];
        server.annotate("n1", &text);
        let warning = report().await.expect(address);
        let said = format!("flannel.alpha.coreos.com/public-ip = \"{address}\"");
        assert!(warning.contains(&said) && warning.contains("NODE_NAME"), "{warning}");
        assert_eq!(server.annotations("n1")["public-ip"], "192.0.2.1");
        // It writes the same again and again.
        for _ in 0..3 {
            server.annotate("n1", &text);
            assert_eq!(report().await, None, "{address}");
            assert_eq!(report().await, None, "{address}");
        }
    }
    server.remove_annotation("n1", "backend-type");
    let warning = report().await.expect("a text is gone");
    assert!(warning.contains("our node n1: flannel.alpha.coreos.com/backend-type removed; "), "{warning}");
    // What an administrator asks for changes our own text, which is nobody else's.
    server.annotate("n1", &[("public-ip-overwrite", "198.51.100.1")]);
    assert_eq!(report().await, None);
    assert_eq!(server.annotations("n1")["public-ip"], "198.51.100.1");
    server.annotate("n1", &[("public-ip", "x\ny")]);
    let warning = report().await.expect("rubbish");
    assert!(!warning.contains('\n'), "{warning}");
}

#[tokio::test]
async fn what_a_peer_has_published_counts_while_its_annotations_are_broken() {
    let (server, _store, own, mut watch) = joined(V4).await;
    server.annotate("n2", &[("backend-data", "{rubbish")]);
    server.annotate("n2", &[("public-ip", "2001:db8::1")]);
    server.remove_annotation("n2", "kube-subnet-manager");
    assert_quiet(&mut watch).await;
    // Nor does a new list take it away.
    server.fail("GET /api/v1/nodes?watch", Fault::Status(410, String::new(), None));
    server.end_watches();
    assert_eq!(keys(&next(&mut watch).await), expected(&own, &["10.244.2.0-24"]));
    server.join("n2", "192.0.2.99");
    assert_eq!(put(next(&mut watch).await).attrs.public_ip.octets(), [192, 0, 2, 99]);
    // A node that was made again is another one.
    server.delete("n2");
    assert!(matches!(next(&mut watch).await, Event::Removed(_)));
    server.add("n2", &["10.244.2.0/24"]);
    assert_quiet(&mut watch).await;
}

#[tokio::test]
async fn of_two_nodes_with_one_pod_cidr_the_first_has_it() {
    let (server, _store, own, mut watch) = joined(V4).await;
    server.add("n9", &["10.244.2.0/24"]);
    server.join("n9", "192.0.2.9");
    server.add("thief", &["10.244.1.0/24"]);
    server.join("thief", "192.0.2.66");
    assert_quiet(&mut watch).await;
    server.fail("GET /api/v1/nodes?watch", Fault::Status(410, String::new(), None));
    server.end_watches();
    let Event::Snapshot(leases) = next(&mut watch).await else { panic!("a list was due") };
    let addresses: Vec<Ipv4Addr> = leases.iter().map(|lease| lease.attrs.public_ip).collect();
    assert_eq!(addresses, [own.published.attrs.public_ip, [192, 0, 2, 2].into()]);
    server.delete("n2");
    assert!(matches!(next(&mut watch).await, Event::Removed(_)));
    assert_eq!(put(next(&mut watch).await).attrs.public_ip.octets(), [192, 0, 2, 9]);
}

#[tokio::test]
async fn a_deleted_node_that_comes_back_with_another_subnet_gets_that_one() {
    let (server, store, own, mut watch) = joined(V4).await;
    server.delete("n1");
    assert_eq!(next(&mut watch).await, Event::Removed(own.key()));
    assert!(matches!(store.renew(&own).await, Err(StoreError::Lost { .. })));
    server.add("n1", &["10.244.8.0/24"]);
    assert!(matches!(store.renew(&own).await, Err(StoreError::Lost { .. })));
    let own = acquire(&store, V4, VXLAN).await.expect("a lease");
    assert_eq!(own.key().to_string(), "10.244.8.0-24");
    let event = put(next(&mut watch).await);
    assert_eq!((event.key, store.holder(&own.wished, &event)), (own.key(), Holder::Us));
}

#[tokio::test]
async fn credentials_are_read_again_and_other_clusters_are_not_trusted() {
    if !ready() {
        return;
    }
    let server = Server::start_tls().await;
    server.add("n1", &["10.244.1.0/24"]);
    let pod = server.file("pod");
    std::fs::create_dir(&pod).expect("a directory");
    let write = |name: &str, text: &[u8]| std::fs::write(pod.join(name), text).expect("a file");
    let authority = |name: &str| std::fs::read(server.file(name)).expect("a certificate");
    let (host, port) = server
        .url()
        .trim_start_matches("https://")
        .split_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .expect("a port");
    let options = Config {
        api_url: String::new(),
        service: Some((host, port)),
        service_account: pod.clone(),
        ..server.config("n1", V4)
    };
    let store = Store::open(Spec::Kube(options)).await.expect("options");
    let error = acquire(&store, V4, VXLAN).await.expect_err("no files");
    assert!(error.is_passing() && error.to_string().contains("ca.crt"), "{error}");
    write("ca.crt", &authority("stranger.pem"));
    write("token", b"old\n");
    let error = acquire(&store, V4, VXLAN).await.expect_err("another cluster's");
    assert!(error.is_passing() && error.to_string().contains("check the certificate authority"), "{error}");
    // Both are rotated under a running daemon.
    write("ca.crt", &authority("ca.pem"));
    server.demand("new");
    let error = acquire(&store, V4, VXLAN).await.expect_err("an old token");
    assert!(error.to_string().contains("rejected our credentials (Unauthorized)"), "{error}");
    assert!(!error.to_string().contains("old"), "{error}");
    write("token", b"new");
    acquire(&store, V4, VXLAN).await.expect("a lease");
    let mut watch = store.watch();
    next(&mut watch).await;
    server.demand("newest");
    server.end_watches();
    while watch.health().lost_since().is_none() {
        sleep(Duration::from_millis(20)).await;
    }
    write("token", b"newest");
    server.add("n2", &["10.244.2.0/24"]);
    server.join("n2", "192.0.2.2");
    put(next(&mut watch).await);
}

#[tokio::test]
async fn a_kubeconfig_with_certificates_is_used() {
    if !ready() {
        return;
    }
    let server = Server::start_tls().await;
    server.add("n1", &["10.244.1.0/24"]);
    let kubeconfig = server.file("kubeconfig");
    let write = |cluster: &str, user: &str| {
        let text = format!(
            "current-context: a\ncontexts: [{{name: a, context: {{cluster: b, user: c}}}}]\n\
             clusters: [{{name: b, cluster: {{server: 'https://127.0.0.1:1', {cluster}}}}}]\n\
             users: [{{name: c, user: {{{user}}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).expect("a file");
    };
    // As in flannel, the flag counts before the server in the file.
    let options = Config { kubeconfig: Some(kubeconfig.clone()), ..server.config("n1", V4) };
    let certificate = "client-certificate: client.pem, client-key: client.key";
    for (cluster, user, error) in [
        ("certificate-authority: ca.pem", certificate, None),
        ("insecure-skip-tls-verify: true", certificate, None),
        ("certificate-authority: stranger.pem", certificate, Some("check the certificate authority")),
        (
            "tls-server-name: other, certificate-authority: ca.pem",
            certificate,
            Some("check the certificate authority"),
        ),
        (
            "certificate-authority: ca.pem",
            "client-certificate: client.pem, client-key: ca.key",
            Some("does not fit the certificate"),
        ),
        ("certificate-authority: client.key", certificate, Some("no certificate; it must be PEM")),
        (
            "certificate-authority: ca.pem",
            "client-certificate: client.pem, client-key: client.pem",
            Some("no private key"),
        ),
        ("certificate-authority: ca.pem", "exec: {command: aws}", Some("exec is not supported")),
    ] {
        write(cluster, user);
        let store = Store::open(Spec::Kube(options.clone())).await.expect("options");
        match (acquire(&store, V4, VXLAN).await, error) {
            (Ok(_), None) => {}
            (Err(found), Some(error)) if found.to_string().contains(error) => {}
            (outcome, error) => panic!("{cluster}, {user}: {outcome:?}, expected {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_passing_and_options_that_are_wrong_are_not() {
    let server = Server::start().await;
    let options = server.config("n1", V4);
    drop(server);
    let closed = Config { api_url: "http://127.0.0.1:1".into(), ..options.clone() };
    let store = Store::open(Spec::Kube(closed)).await.expect("options");
    let error = acquire(&store, V4, VXLAN).await.expect_err("closed");
    assert!(error.is_passing() && error.is_unreachable(), "{error}");
    assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
    let prefix = Config { annotation_prefix: "Org".into(), ..options.clone() };
    let error = Store::open(Spec::Kube(prefix)).await.expect_err("a wrong prefix");
    assert!(!error.is_passing() && error.to_string().contains("--kube-annotation-prefix \"Org\""), "{error}");
    let nothing = Config { api_url: String::new(), ..options };
    let store = Store::open(Spec::Kube(nothing)).await.expect("read later");
    let error = acquire(&store, V4, VXLAN).await.expect_err("no address");
    assert!(!error.is_passing() && error.to_string().contains("--kubeconfig-file"), "{error}");
    let error = store.network(None).await.expect_err("the directory is gone");
    assert!(error.is_passing() && error.to_string().contains("--net-config-path"), "{error}");
    assert!(store.set_net_config(V4).await.is_err());
}
