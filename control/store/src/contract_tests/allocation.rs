//! The choice of a node's subnet, for stores that choose one.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::*;

#[tokio::test]
async fn acquire_gives_a_free_subnet_and_the_same_one_again() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let before = unix_now();
        let lease = acquire(&store, &wish(&config, ONE)).await.unwrap();
        let expires = lease.expires.unwrap();
        assert!((before + 86_400..=unix_now() + 86_400).contains(&expires));
        assert!(config.ipv4.unwrap().allows(lease.subnet().unwrap()));
        assert_eq!(lease.attrs.to_json(), ONE);
        assert_eq!(only_lease(&store).await, lease);
        let again = acquire(&bench.handle().await, &wish(&config, ONE)).await.unwrap();
        assert_eq!(again.key, lease.key);
        assert_eq!(blurred(&only_lease(&store).await), blurred(&again));
    }
}

#[tokio::test]
async fn the_previous_subnet_is_honoured_unless_outside_or_held() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let previous = |text| Wish { previous: Some(key(text)), ..wish(&config, ONE) };
        let outside = acquire(&store, &previous("10.9.9.0-24")).await.unwrap();
        assert!(config.ipv4.unwrap().allows(outside.subnet().unwrap()));
        assert!(store.remove(&outside.key).await.unwrap());
        assert_eq!(acquire(&store, &previous("10.3.77.0-24")).await.unwrap().key, key("10.3.77.0-24"));
        let taken = Wish { attrs: attrs(TWO), ..previous("10.3.77.0-24") };
        assert_ne!(acquire(&store, &taken).await.unwrap().key, key("10.3.77.0-24"));
    }
}

#[tokio::test]
async fn a_changed_network_moves_the_node() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let old = acquire(&store, &wish(&plain(), ONE)).await.unwrap();
        let moved = config(r#""Network":"10.4.0.0/16""#);
        let new = acquire(&store, &Wish { previous: Some(old.key), ..wish(&moved, ONE) }).await.unwrap();
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
        let lease = acquire(&store, &wish(&dual, VXLAN)).await.unwrap();
        assert!(lease.subnet().is_some() && lease.ipv6_subnet().is_some());
        assert_eq!(only_lease(&store).await.attrs.to_json(), VXLAN);
        if let Bench::Etcd(_) = bench {
            // One key of that form and stock nodes forget all their peers.
            let refused = acquire(&store, &wish(&v6, only_v6)).await.unwrap_err();
            assert_eq!(refused, StoreError::Fatal(Cause::Etcd(etcd::EtcdError::Ipv6Only)));
            continue;
        }
        let other = acquire(&store, &wish(&v6, only_v6)).await.unwrap();
        assert!(other.subnet().is_none() && !other.key.overlaps(&lease.key));
        assert_eq!(acquire(&store, &wish(&v6, only_v6)).await.unwrap().key, other.key);
        assert_eq!(store.leases().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_reservation_is_used_and_stays_one() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, single());
        bench.put_row("10.3.7.0-24", ONE, None).await;
        let refused = acquire(&store, &wish(&config, TWO)).await.unwrap_err();
        assert!(matches!(refused, StoreError::OutOfSubnets(_)), "{refused}");
        let lease = acquire(&store, &wish(&config, ONE)).await.unwrap();
        assert_eq!((lease.key, lease.expires), (key("10.3.7.0-24"), None));
        assert_eq!(renew(&store, &lease).await.unwrap(), lease);
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
        let lease = acquire(&store, &wish(&single(), TWO)).await.unwrap();
        assert_eq!(only_lease(&store).await, lease);
        assert_eq!(lease.attrs, attrs(TWO));
    }
}

#[tokio::test]
async fn two_nodes_that_want_one_subnet() {
    for bench in Bench::all() {
        let (one, two, config) = (bench.handle().await, bench.handle().await, single());
        let (wish_one, wish_two) = (wish(&config, ONE), wish(&config, TWO));
        let (first, second) = tokio::join!(acquire(&one, &wish_one), acquire(&two, &wish_two));
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
            async move { acquire(store, &wish).await.unwrap() }
        }))
        .await;
        let distinct: BTreeSet<SubnetKey> = leases.iter().map(|lease| lease.key).collect();
        assert_eq!(distinct.len(), 50);
        assert_eq!(handles[0].leases().await.unwrap().len(), 50);
    }
}
