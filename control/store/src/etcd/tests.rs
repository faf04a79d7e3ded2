//! Cases of a cluster alone, against a real etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use model::backend::Secret;
use model::net_config::{self, NetConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::contract_tests::next;
use crate::testing::etcd::{Security, Server, ready};
use crate::{Cause, Event, Watch};

const PREFIX: &str = "/coreos.com/network";
const ONE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;
const TWO: &str = r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#;
const VXLAN: &str = concat!(
    r#"{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan","#,
    r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"#,
    r#""BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#
);
const WIREGUARD: &str = concat!(
    r#"{"PublicIP":"192.0.2.8","PublicIPv6":null,"BackendType":"wireguard","#,
    r#""BackendData":{"PublicKey":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=","Port":51820}}"#
);

/// Writes a row as an administrator would, for the contract's cases: below the default prefix, with an
/// etcd lease that ends at `expires`; one that has ended leaves no row.
pub(crate) async fn put_row(server: &Server, key: &str, value: &str, expires: Option<u64>) {
    put(server, format!("{PREFIX}/subnets/{key}").as_bytes(), value.as_bytes(), expires).await;
}

async fn put(server: &Server, key: &[u8], value: &[u8], expires: Option<u64>) {
    let left = expires.map(|end| i64::try_from(end.saturating_sub(unix_now())).unwrap());
    let client = Client::new(config(server)).unwrap();
    if left == Some(0) {
        let request = DeleteRangeRequest { key: key.to_vec(), prev_kv: false };
        let DeleteRangeResponse { .. } = client.call("test", DELETE_RANGE, &request).await.unwrap();
        return;
    }
    let mut lease = 0;
    if let Some(ttl) = left {
        let granted: LeaseGrantResponse =
            client.call("test", GRANT, &LeaseGrantRequest { ttl, id: 0 }).await.unwrap();
        lease = granted.id;
    }
    let request = PutRequest { key: key.to_vec(), value: value.to_vec(), lease };
    let Done {} = client.call("test", PUT, &request).await.unwrap();
}

/// How to reach the server.
pub(crate) fn config(server: &Server) -> Config {
    Config { endpoints: vec![server.endpoint()], ..Config::default() }
}

fn open(server: &Server) -> Etcd {
    Etcd::open(config(server)).unwrap()
}

fn network(members: &str) -> NetConfig {
    net_config::parse(&format!(r#"{{{members},"Backend":{{"Type":"vxlan"}}}}"#)).unwrap().0
}

fn plain() -> NetConfig {
    network(r#""Network":"10.3.0.0/16""#)
}

fn wish<'a>(config: &'a NetConfig, value: &str) -> Wish<'a> {
    Wish { config, attrs: LeaseAttrs::parse(value).unwrap(), previous: None, former: None }
}

fn node(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!(r#"{{"PublicIP":"192.168.{high}.{low}","PublicIPv6":null}}"#)
}

fn watch(server: &Server) -> Watch {
    open(server).watch(None)
}

/// The keys and values as `etcdctl` prints them.
fn stored(server: &Server, prefix: &str) -> Vec<(String, String)> {
    let text = server.etcdctl(&["get", "--prefix", prefix]);
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

/// Ids of all etcd leases.
fn grants(server: &Server) -> BTreeSet<String> {
    server.etcdctl(&["lease", "list"]).lines().skip(1).map(str::to_owned).collect()
}

fn revision(server: &Server) -> String {
    let status = server.etcdctl(&["endpoint", "status", "-w", "json"]);
    let revision = status.split("\"revision\":").nth(1).unwrap();
    revision.chars().take_while(char::is_ascii_digit).collect()
}

/// One line that says what to do and holds no secret.
fn assert_clear(error: &impl std::fmt::Display) {
    let line = error.to_string();
    assert!(!line.contains('\n') && line.starts_with("etcd") && !line.contains("s3cret"), "{line}");
}

#[tokio::test]
async fn keys_and_values_are_flannels_to_the_byte() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let store = open(&server);
    let dual = network(r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48""#);
    let first = store.acquire(&wish(&dual, VXLAN)).await.unwrap();
    let second = store.acquire(&wish(&plain(), WIREGUARD)).await.unwrap();
    let third = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    store.set_net_config(r#"{"Network":"10.3.0.0/16"}"#).await.unwrap();
    assert_eq!(first.key.to_string().matches('&').count(), 1);
    let mut expected = vec![(format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#.to_owned())];
    for (lease, value) in [(&first, VXLAN), (&second, WIREGUARD), (&third, ONE)] {
        expected.push((format!("{PREFIX}/subnets/{}", lease.key), value.to_owned()));
    }
    expected.sort();
    assert_eq!(stored(&server, ""), expected);
    // Each has its own lease of a day.
    let grants = grants(&server);
    assert_eq!(grants.len(), 3);
    for id in grants {
        let text = server.etcdctl(&["lease", "timetolive", "--keys", &id]);
        assert!(text.contains("granted with TTL(86400s)") && text.contains("subnets/10.3."), "{text}");
    }
}

#[tokio::test]
async fn what_a_stock_node_wrote_is_read() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    server.etcdctl(&["put", &format!("{PREFIX}/config"), text]);
    let id = server.etcdctl(&["lease", "grant", "3600"]).split(' ').nth(1).unwrap().to_owned();
    let key = format!("{PREFIX}/subnets/10.5.34.0-24&fd00:12:13::-56");
    server.etcdctl(&["put", "--lease", &id, &key, VXLAN]);
    let store = open(&server);
    assert_eq!(store.net_config().await.unwrap().as_deref(), Some(text));
    let leases = store.leases().await.unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].attrs.to_json(), VXLAN);
    assert!(leases[0].expires.unwrap().abs_diff(unix_now() + 3600) < 60);
}

#[tokio::test]
async fn every_prefix_is_a_network_of_its_own() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    for (prefix, root) in [("", ""), ("/", "/"), ("//a///b/", "/a/b/"), ("a", "a/"), ("/a/x/..", "/a/")] {
        let store = Etcd::open(Config { prefix: prefix.into(), ..config(&server) }).unwrap();
        assert_eq!((store.net_config().await.unwrap(), store.leases().await.unwrap()), (None, vec![]));
        store.set_net_config("{}").await.unwrap();
        let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
        assert_eq!(store.leases().await.unwrap(), std::slice::from_ref(&lease));
        let keys: BTreeMap<String, String> = stored(&server, "").into_iter().collect();
        assert_eq!(keys[&format!("{root}config")], "{}");
        assert_eq!(keys[&format!("{root}subnets/{}", lease.key)], ONE);
    }
}

#[tokio::test]
async fn a_renewal_gives_the_old_etcd_lease_back() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let store = open(&server);
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    let first = grants(&server);
    let renewed = store.update(&lease, &lease.attrs).await.unwrap();
    let second = grants(&server);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first, second);
    // A new start under the same address, and the end of the lease.
    open(&server).acquire(&wish(&plain(), ONE)).await.unwrap();
    let third = grants(&server);
    assert!(third.len() == 1 && third != second);
    assert!(store.remove(&renewed.key).await.unwrap());
    assert_eq!(grants(&server).len(), 0);
    assert_eq!(stored(&server, ""), []);
}

#[tokio::test]
async fn an_etcd_lease_that_holds_other_keys_is_left_alone() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let id = server.etcdctl(&["lease", "grant", "3600"]).split(' ').nth(1).unwrap().to_owned();
    server.etcdctl(&["put", "--lease", &id, "/other/key", "dear"]);
    server.etcdctl(&["put", "--lease", &id, &format!("{PREFIX}/subnets/10.3.7.0-24"), ONE]);
    let store = open(&server);
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    assert_eq!(lease.key.to_string(), "10.3.7.0-24");
    store.update(&lease, &lease.attrs).await.unwrap();
    assert!(grants(&server).contains(&id));
    assert_eq!(server.etcdctl(&["get", "/other/key", "--print-value-only"]), "dear\n");
}

#[tokio::test]
async fn a_reservation_has_no_etcd_lease_whoever_uses_it() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    server.etcdctl(&["put", &format!("{PREFIX}/subnets/10.3.7.0-24"), ONE]);
    let store = open(&server);
    let with_type = ONE.replace('}', r#","BackendType":"host-gw"}"#);
    let lease = store.acquire(&wish(&plain(), &with_type)).await.unwrap();
    assert_eq!((lease.key.to_string().as_str(), lease.expires), ("10.3.7.0-24", None));
    assert_eq!(store.update(&lease, &lease.attrs).await.unwrap(), lease);
    assert_eq!(stored(&server, ""), [(format!("{PREFIX}/subnets/10.3.7.0-24"), with_type)]);
    assert_eq!(grants(&server).len(), 0);
}

#[tokio::test]
async fn a_lost_etcd_lease_is_seen_and_the_subnet_taken_again() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let store = open(&server);
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    let mut watch = store.watch(None);
    assert_eq!(next(&mut watch).await, Event::Snapshot(vec![lease.clone()]));
    server.etcdctl(&["lease", "revoke", grants(&server).first().unwrap()]);
    assert_eq!(next(&mut watch).await, Event::Removed(lease.key));
    assert!(matches!(store.update(&lease, &lease.attrs).await, Err(StoreError::Lost { .. })));
    let again = store.acquire(&Wish { previous: Some(lease.key), ..wish(&plain(), ONE) }).await.unwrap();
    assert_eq!(again.key, lease.key);
    assert_eq!(next(&mut watch).await, Event::Put(again));
}

#[tokio::test]
async fn our_key_in_the_watch_has_its_true_end() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let store = open(&server);
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    let mut watch = store.watch(None);
    next(&mut watch).await;
    put_row(&server, &lease.key.to_string(), ONE, Some(unix_now() + 1_000)).await;
    let Event::Put(written) = next(&mut watch).await else { panic!("a put was due") };
    assert!(written.expires.unwrap().abs_diff(unix_now() + 1_000) < 60);
    put_row(&server, &lease.key.to_string(), ONE, None).await;
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.expires.is_none()));
}

#[tokio::test]
async fn nodes_of_both_kinds_that_race_for_few_subnets() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    // Keys of the two kinds differ even for one IPv4 subnet, so no guard on a key keeps them apart.
    let range = r#""Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.24.0""#;
    let (single, dual) =
        (network(range), network(&format!(r#"{range},"EnableIPv6":true,"IPv6Network":"fc00::/48""#)));
    let stores: Vec<Etcd> = (0..24).map(|_| open(&server)).collect();
    let leases = join_all(stores.iter().zip(1..).map(async |(store, number)| {
        let config = if number % 2 == 0 { &single } else { &dual };
        store.acquire(&wish(config, &node(number))).await.unwrap()
    }))
    .await;
    for (index, lease) in leases.iter().enumerate() {
        assert!(leases[..index].iter().all(|other| !other.key.overlaps(&lease.key)), "{}", lease.key);
    }
    assert_eq!(stored(&server, PREFIX).len(), 24);
    // Grants for a lost race were revoked.
    assert_eq!(grants(&server).len(), 24);
}

#[tokio::test]
async fn the_younger_of_two_overlapping_keys_gives_way() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let store = open(&server);
    let lease = |key: &str, value| Lease {
        key: key.parse().unwrap(),
        attrs: LeaseAttrs::parse(value).unwrap(),
        expires: None,
    };
    let (older, younger) = (lease("10.3.7.0-24", ONE), lease("10.3.6.0-23&fc00::-64", TWO));
    let (_, first) = store.write("test", &older, None).await.unwrap().unwrap();
    let (_, second) = store.write("test", &younger, None).await.unwrap().unwrap();
    assert!(!store.is_late(&older.key, first.modified).await.unwrap());
    assert!(store.is_late(&younger.key, second.modified).await.unwrap());
    // And a write under an existing key is rejected.
    assert_eq!(store.write("test", &older, None).await.unwrap(), None);
    assert_eq!(grants(&server).len(), 2);
}

#[tokio::test]
async fn a_watch_goes_on_over_a_crash() {
    if !ready() {
        return;
    }
    let mut server = Server::start(Security::None);
    let store = open(&server);
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    let mut watch = watch(&server);
    assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 1));
    server.kill();
    assert_clear(&store.update(&lease, &lease.attrs).await.unwrap_err());
    server.aside(|server| {
        let subnets = format!("{PREFIX}/subnets");
        server.etcdctl(&["put", &format!("{subnets}/10.3.200.0-24"), TWO]);
        server.etcdctl(&["put", &format!("{subnets}/10.3.201.0-24"), VXLAN]);
        server.etcdctl(&["del", &format!("{subnets}/10.3.201.0-24")]);
    });
    // Each change in between, in order.
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.attrs.to_json() == TWO));
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.attrs.to_json() == VXLAN));
    assert_eq!(next(&mut watch).await, Event::Removed("10.3.201.0-24".parse().unwrap()));
    let renewed = store.update(&lease, &lease.attrs).await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == renewed.key));
}

#[tokio::test]
async fn a_watch_whose_revision_was_compacted_takes_a_snapshot() {
    if !ready() {
        return;
    }
    let mut server = Server::start(Security::None);
    let subnets = format!("{PREFIX}/subnets");
    server.etcdctl(&["put", &format!("{subnets}/10.3.1.0-24"), ONE]);
    server.etcdctl(&["put", &format!("{subnets}/10.3.2.0-24"), TWO]);
    let mut watch = watch(&server);
    assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 2));
    server.aside(|server| {
        server.etcdctl(&["del", &format!("{subnets}/10.3.1.0-24")]);
        server.etcdctl(&["put", &format!("{subnets}/10.3.2.0-24"), VXLAN]);
        server.etcdctl(&["compact", &revision(server)]);
    });
    let Event::Snapshot(leases) = next(&mut watch).await else { panic!("a snapshot was due") };
    assert_eq!(leases.iter().map(|lease| lease.attrs.to_json()).collect::<Vec<_>>(), [VXLAN]);
    server.etcdctl(&["put", &format!("{subnets}/10.3.3.0-24"), ONE]);
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.attrs.to_json() == ONE));
}

/// The last thing that happened before the compaction is a removal, which an older etcd then forgets.
#[tokio::test]
async fn a_removal_at_the_compacted_revision_is_seen() {
    if !ready() {
        return;
    }
    let mut server = Server::start(Security::None);
    let key = format!("{PREFIX}/subnets/10.3.1.0-24");
    server.etcdctl(&["put", &key, ONE]);
    let mut watch = watch(&server);
    assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 1));
    server.aside(|server| {
        server.etcdctl(&["del", &key]);
        server.etcdctl(&["compact", &revision(server)]);
    });
    assert_eq!(next(&mut watch).await, Event::Snapshot(Vec::new()));
}

#[tokio::test]
async fn rubbish_spoils_only_itself() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    put_row(&server, "10.3.1.0-24", ONE, None).await;
    let mut watch = watch(&server);
    assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 1));
    let large = format!(r#"{{"PublicIP":"192.0.2.9","BackendData":"{}"}}"#, "x".repeat(1 << 20));
    let long_key = "k".repeat(1 << 20);
    for (key, value) in [
        ("subnets/10.3.2.0-24", large.as_bytes()),
        ("subnets/10.3.3.0-24", b"\xff\xfe\x00"),
        ("subnets/10.3.4.0-24", b""),
        ("subnets/fc00::-64", ONE.as_bytes()),
        ("subnets", ONE.as_bytes()),
        ("subnets/", ONE.as_bytes()),
        ("subnets-old/10.3.5.0-24", ONE.as_bytes()),
        ("subnets/10.3.6.0-24/more", ONE.as_bytes()),
        (&format!("subnets/{long_key}"), ONE.as_bytes()),
    ] {
        put(&server, format!("{PREFIX}/{key}").as_bytes(), value, None).await;
    }
    put(&server, &[PREFIX.as_bytes(), b"/subnets/\xff\xfe10.3.8.0-24"].concat(), ONE.as_bytes(), None).await;
    put_row(&server, "10.3.9.0-24", TWO, None).await;
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.attrs.to_json() == TWO));
    let store = open(&server);
    assert_eq!(store.leases().await.unwrap().len(), 2);
    // Rubbish holds the subnet it names, so that none is given away twice.
    let few = network(r#""Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.9.0""#);
    let mut free = BTreeSet::new();
    for number in 0..2 {
        free.insert(store.acquire(&wish(&few, &node(number))).await.unwrap().key.to_string());
    }
    assert_eq!(free, BTreeSet::from(["10.3.6.0-24".to_owned(), "10.3.7.0-24".to_owned()]));
    assert!(matches!(store.acquire(&wish(&few, &node(9))).await.unwrap_err(), StoreError::OutOfSubnets(_)));
}

#[tokio::test]
async fn a_certificate_for_the_client_and_one_for_the_server() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::ClientCertificate);
    let ours = Config {
        ca_file: Some(server.file("ca.pem")),
        cert_file: Some(server.file("client.pem")),
        key_file: Some(server.file("client.key")),
        ..config(&server)
    };
    let store = Etcd::open(ours.clone()).unwrap();
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    let mut watch = store.watch(None);
    assert_eq!(next(&mut watch).await, Event::Snapshot(vec![lease]));
    // Without a scheme the files ask for TLS.
    let bare = server.endpoint().strip_prefix("https://").unwrap().to_owned();
    let store = Etcd::open(Config { endpoints: vec![bare], ..ours.clone() }).unwrap();
    assert_eq!(store.leases().await.unwrap().len(), 1);
    for refused in [
        Config { cert_file: None, key_file: None, ..ours.clone() },
        Config { key_file: None, ..ours.clone() },
        Config { ca_file: Some(server.file("stranger.pem")), ..ours.clone() },
        Config { endpoints: vec![server.endpoint().replace("https", "http")], ..ours },
    ] {
        let error = Etcd::open(refused).unwrap().net_config().await.unwrap_err();
        assert!(matches!(&error, EtcdError::Unreachable { .. }), "{error}");
        assert_clear(&error);
    }
}

#[tokio::test]
async fn an_authority_alone_is_enough() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::Tls);
    let store = Etcd::open(Config { ca_file: Some(server.file("ca.pem")), ..config(&server) }).unwrap();
    store.acquire(&wish(&plain(), ONE)).await.unwrap();
    assert_eq!(stored(&server, PREFIX).len(), 1);
    // The system's authorities do not know it; and where there are none, that is said.
    let error = Etcd::open(config(&server)).unwrap().net_config().await.unwrap_err();
    assert_clear(&error);
}

#[tokio::test]
async fn unusable_tls_files_are_named_by_the_first_call() {
    let directory = tempfile::TempDir::new().unwrap();
    let broken = directory.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let missing = directory.path().join("missing.pem");
    let secure = Config { endpoints: vec!["https://127.0.0.1:1".into()], ..Config::default() };
    for config in [
        Config { ca_file: Some(missing.clone()), ..secure.clone() },
        Config { cert_file: Some(missing.clone()), key_file: Some(broken.clone()), ..secure.clone() },
        Config {
            cert_file: Some(broken.clone()),
            key_file: Some(broken.clone()),
            ca_file: Some(broken),
            ..secure
        },
    ] {
        let error = Etcd::open(config).unwrap().net_config().await.unwrap_err();
        assert_clear(&error);
        assert!(error.to_string().contains(".pem") && !error.is_passing(), "{error}");
    }
}

#[tokio::test]
async fn users_and_passwords() {
    if !ready() {
        return;
    }
    let mut server = Server::start(Security::None);
    server.enable_users(PREFIX);
    let user = |name: &str, password: &str| {
        let (username, password) = (name.to_owned(), Some(Secret::new(password)));
        Etcd::open(Config { username, password, ..config(&server) }).unwrap()
    };
    let store = user("flannel", "flannel");
    store.set_net_config("{}").await.unwrap();
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    let mut watch = store.watch(None);
    assert_eq!(next(&mut watch).await, Event::Snapshot(vec![lease.clone()]));
    for denied in [user("flannel", "s3cret"), user("nobody", "s3cret"), user("", "s3cret"), open(&server)] {
        let error = denied.net_config().await.unwrap_err();
        assert!(matches!(&error, EtcdError::Denied { .. }), "{error}");
        assert_clear(&error);
        assert!(error.is_passing() && error.to_string().contains("/coreos.com/network/config"), "{error}");
        assert!(matches!(
            denied.update(&lease, &lease.attrs).await,
            Err(StoreError::Passing(Cause::Etcd(EtcdError::Denied { .. })))
        ));
    }
    let other = Config { prefix: "/other".into(), username: "flannel".into(), ..config(&server) };
    let other = Etcd::open(Config { password: Some(Secret::new("flannel")), ..other }).unwrap();
    let error = other.acquire(&wish(&plain(), ONE)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Passing(Cause::Etcd(EtcdError::Denied { .. }))), "{error}");
    assert!(!format!("{store:?}").contains("Some(\"flannel\")"));

    // etcd forgets its tokens when it ends; calls and watch get themselves new ones.
    server.kill();
    server.restart();
    let renewed = store.update(&lease, &lease.attrs).await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == renewed.key));
    // A user where authentication is off is no error.
    let open_to_all = Server::start(Security::None);
    let (username, password) = ("flannel".to_owned(), Some(Secret::new("flannel")));
    let store = Etcd::open(Config { username, password, ..config(&open_to_all) }).unwrap();
    assert_eq!(store.net_config().await.unwrap(), None);
}

#[tokio::test]
async fn authentication_turned_on_under_us() {
    if !ready() {
        return;
    }
    let mut server = Server::start(Security::None);
    let (username, password) = ("flannel".to_owned(), Some(Secret::new("flannel")));
    let store = Etcd::open(Config { username, password, ..config(&server) }).unwrap();
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    server.enable_users(PREFIX);
    store.update(&lease, &lease.attrs).await.unwrap();
    server.etcdctl(&["auth", "disable"]);
    store.update(&lease, &lease.attrs).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_passed_over() {
    if !ready() {
        return;
    }
    let mut one = Server::start(Security::None);
    let two = Server::start(Security::None);
    two.etcdctl(&["put", &format!("{PREFIX}/config"), "two"]);
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", dead.local_addr().unwrap());
    drop(dead);
    // Two clusters, so that the answer shows who gave it.
    let endpoints = vec![address, one.endpoint(), two.endpoint()];
    let store = Etcd::open(Config { endpoints, ..Config::default() }).unwrap();
    store.set_net_config("one").await.unwrap();
    assert_eq!(store.net_config().await.unwrap().as_deref(), Some("one"));
    one.kill();
    assert_eq!(store.net_config().await.unwrap().as_deref(), Some("two"));
    one.restart();
    drop(two);
    assert_eq!(store.net_config().await.unwrap().as_deref(), Some("one"));
    one.kill();
    let error = store.net_config().await.unwrap_err();
    assert!(matches!(&error, EtcdError::Unreachable { .. }) && error.is_passing());
    assert_clear(&error);
}

/// A proxy of a server, which holds each answer back.
struct Slow {
    endpoint: String,
    delay: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Slow {
    async fn start(server: &Server) -> Slow {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (delay, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let target = server.endpoint().strip_prefix("http://").unwrap().to_owned();
        let (held, count) = (Arc::clone(&delay), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let (sender, mut answers) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
                let held = Arc::clone(&held);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                        let due = Instant::now() + Duration::from_millis(held.load(Ordering::Relaxed));
                        let _ = sender.send((due, buffer[..length].to_vec()));
                    }
                });
                tokio::spawn(async move {
                    while let Some((due, bytes)) = answers.recv().await {
                        tokio::time::sleep_until(due).await;
                        if to_client.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Slow { endpoint, delay, connections }
    }

    fn set_delay(&self, milliseconds: u64) {
        self.delay.store(milliseconds, Ordering::Relaxed);
    }
}

/// Each answer takes longer than a call waits at first.
#[tokio::test]
async fn a_slow_cluster_is_joined_with_one_grant_over_one_connection() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let slow = Slow::start(&server).await;
    slow.set_delay(3_000);
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", dead.local_addr().unwrap());
    drop(dead);
    // As with the default endpoints, of which one is usually dead.
    let endpoints = vec![address, slow.endpoint.clone()];
    let store = Etcd::open(Config { endpoints, ..Config::default() }).unwrap();
    let mut failures = 0;
    let lease = loop {
        match store.acquire(&wish(&plain(), ONE)).await {
            Ok(lease) => break lease,
            Err(error) => {
                failures += 1;
                assert!(matches!(&error, StoreError::Passing(_)) && failures < 4, "{error}");
            }
        }
    };
    assert_eq!((grants(&server).len(), stored(&server, PREFIX).len()), (1, 1));
    assert_eq!(slow.connections.load(Ordering::Relaxed), 1);
    assert_eq!(only(&store).await.key, lease.key);
}

async fn only(store: &Etcd) -> Lease {
    let mut leases = store.leases().await.unwrap();
    assert_eq!(leases.len(), 1);
    leases.remove(0)
}

/// The answer to a grant is late; the cluster must not fill up with grants that nobody uses.
#[tokio::test]
async fn a_grant_whose_answer_was_lost_is_used_again() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let slow = Slow::start(&server).await;
    let store = Etcd::open(Config { endpoints: vec![slow.endpoint.clone()], ..Config::default() }).unwrap();
    store.leases().await.unwrap();
    slow.set_delay(6_000);
    store.grant("test").await.unwrap_err();
    slow.set_delay(0);
    let before = grants(&server);
    assert_eq!(before.len(), 1);
    let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
    assert_eq!(grants(&server), before);
    assert_eq!(slow.connections.load(Ordering::Relaxed), 1);
    // It is used once: the next write has one of its own, and gives this one back.
    store.update(&lease, &lease.attrs).await.unwrap();
    assert!(grants(&server).len() == 1 && grants(&server) != before);
}

#[test]
fn patience_grows_with_each_call_without_an_answer_and_has_an_end() {
    let endpoints = ["http://a:1", "http://b:1"].map(str::to_owned).to_vec();
    let client = Client::new(Config { endpoints, ..Config::default() }).unwrap();
    let milliseconds = [0, 1, 2, 3, 4, 5, 60, u32::MAX].map(|delays| client.patience(delays).as_millis());
    assert_eq!(milliseconds, [2_500, 5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000]);
}

#[tokio::test]
async fn nonsense_and_silence_are_errors() {
    for answer in [Some(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]), Some(&[0xff; 4096]), Some(b""), None] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = vec![format!("http://{}", listener.local_addr().unwrap())];
        let server = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                if let Some(answer) = answer {
                    let _ = stream.write_all(answer).await;
                } else {
                    kept.push(stream);
                }
            }
        });
        let store = Etcd::open(Config { endpoints, ..Config::default() }).unwrap();
        let error = store.net_config().await.unwrap_err();
        assert!(matches!(&error, EtcdError::Unreachable { .. }), "{error}");
        assert_clear(&error);
        server.abort();
    }
}

#[tokio::test]
async fn ten_thousand_leases_and_a_thousand_changes() {
    if !ready() {
        return;
    }
    let server = Server::start(Security::None);
    let store = open(&server);
    let all: Vec<(Vec<u8>, String)> = (0..10_000u32)
        .map(|number| {
            let [_, _, high, low] = (number * 4).to_be_bytes();
            (format!("{PREFIX}/subnets/10.3.{high}.{low}-30").into_bytes(), node(number))
        })
        .collect();
    let write = async |rows: &[(Vec<u8>, String)], change: &str| {
        for rows in rows.chunks(100) {
            let put = |(key, value): &(Vec<u8>, String)| {
                let value = value.replace("null", change).into_bytes();
                Op::Put(PutRequest { key: key.clone(), value, lease: 0 }).into()
            };
            let request = TxnRequest { compare: vec![], success: rows.iter().map(put).collect() };
            let answer: TxnResponse = store.client.call("test", TXN, &request).await.unwrap();
            assert!(answer.succeeded);
        }
    };
    write(&all, "null").await;
    let mut watch = watch(&server);
    assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 10_000));
    write(&all[..1_000], r#""2001:db8::1""#).await;
    let mut changed = BTreeSet::new();
    for _ in 0..1_000 {
        let Event::Put(lease) = next(&mut watch).await else { panic!("a put was due") };
        assert!(lease.attrs.public_ipv6.is_some());
        changed.insert(lease.key);
    }
    assert_eq!(changed.len(), 1_000);
    assert_eq!(store.leases().await.unwrap().len(), 10_000);
    // One more lease fits among them.
    let tight = network(r#""Network":"10.3.0.0/16","SubnetLen":30"#);
    let lease = store.acquire(&wish(&tight, VXLAN)).await.unwrap();
    assert!(lease.subnet().unwrap().ip().octets()[2] >= 156, "{}", lease.key);
}
