//! One suite, every store.
//!
//! Each case runs over all stores and speaks to them through handles as separate daemons would. The
//! fixture writes rows as an administrator would, so that a case can start from any state.

use std::collections::BTreeSet;

use futures::FutureExt;
use futures::future::join_all;
use model::lease::LeaseAttrs;
use model::net_config::{self, NetConfig};
use tempfile::TempDir;

use super::testing::etcd::{self as server, Security, Server};
use super::*;

const ONE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;
const TWO: &str = r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#;
const VXLAN: &str = r#"{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#;
/// Far beyond what a step takes; a case that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store's data and a way in beside its handles.
pub(super) enum Bench {
    Sqlite(TempDir),
    Memory(Memory),
    Etcd(Box<Server>),
}

impl Bench {
    fn all() -> Vec<Bench> {
        let mut all = vec![Bench::sqlite(), Bench::Memory(Memory::new())];
        if server::ready() {
            all.push(Bench::Etcd(Box::new(Server::start(Security::None))));
        }
        all
    }

    pub(super) fn sqlite() -> Bench {
        Bench::Sqlite(TempDir::new().unwrap())
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        match self {
            Bench::Sqlite(directory) => directory.path().join("leases.db"),
            Bench::Memory(_) | Bench::Etcd(_) => panic!("no file"),
        }
    }

    /// A new handle, as another daemon would open.
    pub(super) async fn handle(&self) -> Store {
        match self {
            Bench::Sqlite(_) => Store::open(&format!("sqlite:{}", self.path().display())).await.unwrap(),
            Bench::Memory(store) => Store::Memory(store.clone()),
            Bench::Etcd(server) => Store::etcd(etcd::tests::config(server)).unwrap(),
        }
    }

    async fn put_row(&self, key: &str, value: &str, expires: Option<u64>) {
        match self {
            Bench::Sqlite(_) => {
                let connection = rusqlite::Connection::open(self.path()).unwrap();
                connection.busy_timeout(PATIENCE).unwrap();
                let insert = "INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3)";
                connection
                    .execute(insert, rusqlite::params![key, value, expires.map(|at| at as i64)])
                    .unwrap();
            }
            Bench::Memory(store) => store.put_row(key, value, expires),
            Bench::Etcd(server) => etcd::tests::put_row(server, key, value, expires).await,
        }
    }
}

fn config(members: &str) -> NetConfig {
    net_config::parse(&format!(r#"{{{members},"Backend":{{"Type":"vxlan"}}}}"#)).unwrap().0
}

fn plain() -> NetConfig {
    config(r#""Network":"10.3.0.0/16""#)
}

/// Exactly one subnet to give away.
fn single() -> NetConfig {
    config(r#""Network":"10.3.0.0/16","SubnetMin":"10.3.7.0","SubnetMax":"10.3.7.0""#)
}

fn attrs(value: &str) -> LeaseAttrs {
    LeaseAttrs::parse(value).unwrap()
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn wish<'a>(config: &'a NetConfig, value: &str) -> Wish<'a> {
    Wish { config, attrs: attrs(value), previous: None }
}

fn later() -> Option<u64> {
    Some(unix_now() + 1_000)
}

pub(super) async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("no event came")
}

/// For comparisons between handles: etcd counts what is left of a life in whole seconds, and a watch takes
/// another's life for a full one. A full life becomes the same for all.
fn blurred(lease: &Lease) -> Lease {
    let full = unix_now() + LEASE_TTL.as_secs();
    let expires = lease.expires.map(|end| if end.abs_diff(full) < 60 { u64::MAX } else { end });
    Lease { expires, ..lease.clone() }
}

fn blurred_event(event: Event) -> Event {
    match event {
        Event::Snapshot(leases) => Event::Snapshot(leases.iter().map(blurred).collect()),
        Event::Put(lease) => Event::Put(blurred(&lease)),
        Event::Removed(key) => Event::Removed(key),
    }
}

async fn only_lease(store: &Store) -> Lease {
    let mut leases = store.leases().await.unwrap();
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}

#[tokio::test]
async fn the_configuration_is_kept_as_text() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        assert_eq!(store.net_config().await.unwrap(), None);
        for text in [r#"{"Network":"10.3.0.0/16"}"#, "not even JSON", ""] {
            store.set_net_config(text).await.unwrap();
            assert_eq!(bench.handle().await.net_config().await.unwrap().as_deref(), Some(text));
        }
    }
}

#[tokio::test]
async fn acquire_gives_a_free_subnet_and_the_same_one_again() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let before = unix_now();
        let lease = store.acquire(&wish(&config, ONE)).await.unwrap();
        let expires = lease.expires.unwrap();
        assert!((before + 86_400..=unix_now() + 86_400).contains(&expires));
        assert!(config.ipv4.unwrap().allows(lease.subnet().unwrap()));
        assert_eq!(lease.attrs.to_json(), ONE);
        assert_eq!(only_lease(&store).await, lease);
        let again = bench.handle().await.acquire(&wish(&config, ONE)).await.unwrap();
        assert_eq!(again.key, lease.key);
        assert_eq!(blurred(&only_lease(&store).await), blurred(&again));
    }
}

#[tokio::test]
async fn a_new_start_publishes_new_attributes_under_the_old_subnet() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let with_mac = |mac: &str| {
            format!(
                r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            )
        };
        let first = store.acquire(&wish(&config, &with_mac("02:00:00:00:00:01"))).await.unwrap();
        let second = store.acquire(&wish(&config, &with_mac("02:00:00:00:00:02"))).await.unwrap();
        assert_eq!(first.key, second.key);
        assert_eq!(only_lease(&store).await.attrs.to_json(), with_mac("02:00:00:00:00:02"));
    }
}

#[tokio::test]
async fn the_previous_subnet_is_honoured_unless_outside_or_held() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let previous = |text| Wish { previous: Some(key(text)), ..wish(&config, ONE) };
        let outside = store.acquire(&previous("10.9.9.0-24")).await.unwrap();
        assert!(config.ipv4.unwrap().allows(outside.subnet().unwrap()));
        assert!(store.remove(&outside.key).await.unwrap());
        assert_eq!(store.acquire(&previous("10.3.77.0-24")).await.unwrap().key, key("10.3.77.0-24"));
        let taken = Wish { attrs: attrs(TWO), ..previous("10.3.77.0-24") };
        assert_ne!(store.acquire(&taken).await.unwrap().key, key("10.3.77.0-24"));
    }
}

#[tokio::test]
async fn a_changed_network_moves_the_node() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let old = store.acquire(&wish(&plain(), ONE)).await.unwrap();
        let moved = config(r#""Network":"10.4.0.0/16""#);
        let new = store.acquire(&Wish { previous: Some(old.key), ..wish(&moved, ONE) }).await.unwrap();
        assert!(moved.ipv4.unwrap().allows(new.subnet().unwrap()));
        assert_eq!(only_lease(&store).await, new);
    }
}

#[tokio::test]
async fn dual_stack_and_ipv6_only() {
    let dual = config(r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48""#);
    let v6 = config(r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48""#);
    let only_v6 = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::9"}"#;
    for bench in Bench::all() {
        let store = bench.handle().await;
        let lease = store.acquire(&wish(&dual, VXLAN)).await.unwrap();
        assert!(lease.subnet().is_some() && lease.ipv6_subnet().is_some());
        assert_eq!(only_lease(&store).await.attrs.to_json(), VXLAN);
        if let Bench::Etcd(_) = bench {
            // One key of that form and stock nodes forget all their peers.
            let refused = store.acquire(&wish(&v6, only_v6)).await.unwrap_err();
            assert_eq!(refused, StoreError::Etcd(etcd::EtcdError::Ipv6Only));
            continue;
        }
        let other = store.acquire(&wish(&v6, only_v6)).await.unwrap();
        assert!(other.subnet().is_none() && !other.key.overlaps(&lease.key));
        assert_eq!(store.acquire(&wish(&v6, only_v6)).await.unwrap().key, other.key);
        assert_eq!(store.leases().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn renewal_sets_the_full_life_and_changes_nothing_else() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        bench.put_row("10.3.5.0-24", VXLAN, Some(unix_now() + 100)).await;
        let lease = only_lease(&store).await;
        let before = unix_now();
        let renewed = store.renew(&lease).await.unwrap();
        assert!((before + 86_400..=unix_now() + 86_400).contains(&renewed.expires.unwrap()));
        assert_eq!(only_lease(&store).await, renewed);
        assert_eq!(Lease { expires: lease.expires, ..renewed }, lease);
    }
}

#[tokio::test]
async fn an_update_changes_what_the_lease_says_and_keeps_a_reservation_one() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        for expires in [Some(unix_now() + 100), None] {
            bench.put_row("10.3.5.0-24", ONE, expires).await;
            let lease = only_lease(&store).await;
            let updated = store.update(&lease, &attrs(TWO)).await.unwrap();
            assert_eq!((updated.key, &updated.attrs), (lease.key, &attrs(TWO)));
            assert_eq!(updated.expires.is_none(), expires.is_none());
            assert_eq!(only_lease(&store).await, updated);
            // Who knows only what it said before has lost it.
            assert!(matches!(store.update(&lease, &attrs(ONE)).await, Err(StoreError::Lost { .. })));
        }
    }
}

#[tokio::test]
async fn a_lease_that_is_not_ours_any_more_is_not_renewed() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
        let text = lease.key.to_string();
        let lost = |why| StoreError::Lost { key: text.clone(), why };
        bench.put_row(&text, TWO, later()).await;
        assert_eq!(store.renew(&lease).await.unwrap_err(), lost("another node wrote to it"));
        assert_eq!(only_lease(&store).await.attrs, attrs(TWO));
        bench.put_row(&text, "rubbish", later()).await;
        assert_eq!(store.renew(&lease).await.unwrap_err(), lost("another node wrote to it"));
        bench.put_row(&text, ONE, Some(unix_now())).await;
        assert_eq!(store.renew(&lease).await.unwrap_err(), lost("it ran out or was removed"));
        assert!(!store.remove(&lease.key).await.unwrap());
        assert_eq!(store.renew(&lease).await.unwrap_err(), lost("it ran out or was removed"));
        assert_eq!(store.leases().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_reservation_is_used_and_stays_one() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, single());
        bench.put_row("10.3.7.0-24", ONE, None).await;
        let refused = store.acquire(&wish(&config, TWO)).await.unwrap_err();
        assert!(matches!(refused, StoreError::OutOfSubnets(_)), "{refused}");
        let lease = store.acquire(&wish(&config, ONE)).await.unwrap();
        assert_eq!((lease.key, lease.expires), (key("10.3.7.0-24"), None));
        assert_eq!(store.renew(&lease).await.unwrap(), lease);
        assert_eq!(only_lease(&store).await, lease);
    }
}

#[tokio::test]
async fn a_void_lease_is_as_good_as_absent() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        bench.put_row("10.3.7.0-24", ONE, Some(unix_now())).await;
        assert_eq!(store.leases().await.unwrap(), []);
        bench.put_row("10.3.7.0-24", ONE, Some(0)).await;
        let lease = store.acquire(&wish(&single(), TWO)).await.unwrap();
        assert_eq!(only_lease(&store).await, lease);
        assert_eq!(lease.attrs, attrs(TWO));
    }
}

#[tokio::test]
async fn two_nodes_that_want_one_subnet() {
    for bench in Bench::all() {
        let (one, two, config) = (bench.handle().await, bench.handle().await, single());
        let (wish_one, wish_two) = (wish(&config, ONE), wish(&config, TWO));
        let (first, second) = tokio::join!(one.acquire(&wish_one), two.acquire(&wish_two));
        let refused = match (first, second) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            both => panic!("one must win: {both:?}"),
        };
        assert!(matches!(refused, StoreError::OutOfSubnets(_)), "{refused}");
        assert_eq!(one.leases().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn fifty_nodes_at_once() {
    for bench in Bench::all() {
        let config = plain();
        let handles = join_all((0..50).map(|_| bench.handle())).await;
        let leases = join_all(handles.iter().enumerate().map(|(node, store)| {
            let value = format!(r#"{{"PublicIP":"192.0.2.{node}","PublicIPv6":null}}"#);
            let wish = wish(&config, &value);
            async move { store.acquire(&wish).await.unwrap() }
        }))
        .await;
        let distinct: BTreeSet<SubnetKey> = leases.iter().map(|lease| lease.key).collect();
        assert_eq!(distinct.len(), 50);
        assert_eq!(handles[0].leases().await.unwrap().len(), 50);
    }
}

#[tokio::test]
async fn a_watch_sees_what_other_handles_do() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let one = store.acquire(&wish(&config, ONE)).await.unwrap();
        let mut watch = bench.handle().await.watch().await.unwrap();
        assert_eq!(blurred_event(next(&mut watch).await), Event::Snapshot(vec![blurred(&one)]));

        let two = store.acquire(&wish(&config, TWO)).await.unwrap();
        assert_eq!(blurred_event(next(&mut watch).await), Event::Put(blurred(&two)));
        bench.put_row(&two.key.to_string(), TWO, later()).await;
        let Event::Put(shortened) = next(&mut watch).await else { panic!("a put was due") };
        let renewed = store.renew(&shortened).await.unwrap();
        assert_eq!(blurred_event(next(&mut watch).await), Event::Put(blurred(&renewed)));
        bench.put_row(&two.key.to_string(), VXLAN, later()).await;
        let Event::Put(rewritten) = next(&mut watch).await else { panic!("a put was due") };
        assert_eq!(rewritten.attrs, attrs(VXLAN));

        assert!(store.remove(&one.key).await.unwrap());
        assert_eq!(next(&mut watch).await, Event::Removed(one.key));
    }
}

#[tokio::test]
async fn a_watch_of_nothing_begins_with_an_empty_snapshot() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let mut watch = store.watch().await.unwrap();
        assert_eq!(next(&mut watch).await, Event::Snapshot(vec![]));
        store.set_net_config("{}").await.unwrap();
        let lease = store.acquire(&wish(&plain(), ONE)).await.unwrap();
        // The configuration is not the watch's business, so this is the first event.
        assert_eq!(next(&mut watch).await, Event::Put(lease));
    }
}

#[tokio::test]
async fn a_watch_sees_leases_run_out() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let mut watch = store.watch().await.unwrap();
        assert_eq!(next(&mut watch).await, Event::Snapshot(vec![]));
        bench.put_row("10.3.9.0-24", TWO, None).await;
        assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == key("10.3.9.0-24")));
        bench.put_row("10.3.5.0-24", ONE, Some(unix_now() + 2)).await;
        assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == key("10.3.5.0-24")));
        assert_eq!(next(&mut watch).await, Event::Removed(key("10.3.5.0-24")));
        assert_eq!(only_lease(&store).await.key, key("10.3.9.0-24"));
    }
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let mut watch = store.watch().await.unwrap();
        let mut events = Vec::new();
        for node in 1..=20 {
            let value = format!(r#"{{"PublicIP":"192.0.2.{node}","PublicIPv6":null}}"#);
            bench.put_row(&format!("10.3.{node}.0-24"), &value, later()).await;
            // Polled once and dropped, at whatever point it then is.
            events.extend(watch.next().now_or_never());
            tokio::task::yield_now().await;
            events.extend(watch.next().now_or_never());
        }
        let mut seen = BTreeSet::new();
        while seen.len() < 20 {
            let event = if events.is_empty() { next(&mut watch).await } else { events.remove(0) };
            match event {
                Event::Snapshot(leases) => seen.extend(leases.into_iter().map(|lease| lease.key)),
                Event::Put(lease) => assert!(seen.insert(lease.key), "twice: {}", lease.key),
                Event::Removed(key) => panic!("{key} was not removed"),
            }
        }
    }
}

#[tokio::test]
async fn rubbish_is_skipped_row_by_row() {
    let rubbish = [
        ("10.3.1.0-24", "not JSON"),
        ("10.3.2.0-24", "{}x"),
        ("10.3.3.0-24", r#"{"PublicIP":"1.2.3"}"#),
        ("10.3.4.0-24", r#"{"PublicIP":7}"#),
        ("10.3.5.7-24", ONE),
        ("subnets/10.3.6.0-24", ONE),
        ("10.3.8.0-32", ONE),
        ("config", ONE),
        ("", ""),
        ("\u{0}\u{1}\u{fffd}", "\u{0}"),
    ];
    for bench in Bench::all() {
        let store = bench.handle().await;
        bench.put_row("10.3.200.0-24", TWO, later()).await;
        let mut watch = store.watch().await.unwrap();
        assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 1));
        for (key, value) in rubbish {
            bench.put_row(key, value, later()).await;
        }
        // Six of the rows still name a subnet, and nobody else may have it.
        let seven = config(r#""Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.7.0""#);
        let lease = store.acquire(&wish(&seven, ONE)).await.unwrap();
        assert_eq!(lease.key, key("10.3.7.0-24"));
        assert_eq!(next(&mut watch).await, Event::Put(lease.clone()));
        assert_eq!(store.leases().await.unwrap().len(), 2);
        // A row that becomes readable is a lease; one that stops being readable is gone.
        bench.put_row("10.3.1.0-24", VXLAN, later()).await;
        assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == key("10.3.1.0-24")));
        bench.put_row("10.3.200.0-24", "{", later()).await;
        assert_eq!(next(&mut watch).await, Event::Removed(key("10.3.200.0-24")));
    }
}

#[tokio::test]
async fn the_ledger_behind_a_watch_leaves_our_own_lease_out() {
    use crate::lease::ledger::{Ledger, Own};
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let own = store.acquire(&wish(&config, ONE)).await.unwrap();
        let mut watch = store.watch().await.unwrap();
        let mut ledger = Ledger::new(Some(own.key));
        let change = ledger.handle(next(&mut watch).await);
        assert_eq!((change.peers, change.own), (false, Own::Written));
        assert_eq!(ledger.own(), Some(&own));
        let peer = bench.handle().await.acquire(&wish(&config, TWO)).await.unwrap();
        assert!(ledger.handle(next(&mut watch).await).peers);
        assert_eq!(ledger.peers().iter().map(blurred).collect::<Vec<_>>(), [blurred(&peer)]);
        assert!(store.remove(&own.key).await.unwrap());
        let change = ledger.handle(next(&mut watch).await);
        assert_eq!((change.peers, change.own), (false, Own::Removed));
    }
}

#[tokio::test]
async fn stores_that_do_not_exist() {
    for spec in ["", "sqlite", "sqlite:", "memory", "memory:x", "etcd:", "/var/lib/leases.db"] {
        let error = Store::open(spec).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("store {spec:?}: unknown kind; write etcd, sqlite:PATH or memory:")
        );
    }
    assert!(matches!(Store::open("memory:").await, Ok(Store::Memory(_))));
}
