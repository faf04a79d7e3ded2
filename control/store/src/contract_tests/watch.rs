//! What a watch delivers.

use std::collections::BTreeSet;

use futures::FutureExt;

use super::*;

#[tokio::test]
async fn a_watch_sees_what_other_handles_do() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let one = acquire(&store, &wish(&config, ONE)).await.unwrap();
        let mut watch = bench.handle().await.watch();
        assert_eq!(blurred_event(next(&mut watch).await), Event::Snapshot(vec![blurred(&one)]));

        let two = acquire(&store, &wish(&config, TWO)).await.unwrap();
        assert_eq!(blurred_event(next(&mut watch).await), Event::Put(blurred(&two)));
        bench.put_row(&two.key.to_string(), TWO, later()).await;
        let Event::Put(shortened) = next(&mut watch).await else { panic!("a put was due") };
        let renewed = renew(&store, &shortened).await.unwrap();
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
        let mut watch = store.watch();
        assert_eq!(next(&mut watch).await, Event::Snapshot(vec![]));
        store.set_net_config("{}").await.unwrap();
        let lease = acquire(&store, &wish(&plain(), ONE)).await.unwrap();
        // The configuration is not the watch's business, so this is the first event.
        assert_eq!(next(&mut watch).await, Event::Put(lease));
    }
}

#[tokio::test]
async fn a_watch_sees_leases_run_out() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let mut watch = store.watch();
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
        let mut watch = store.watch();
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
                Event::Rewind(leases) => panic!("nothing was lost: {leases:?}"),
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
        let mut watch = store.watch();
        assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 1));
        for (key, value) in rubbish {
            bench.put_row(key, value, later()).await;
        }
        // Six of the rows still name a subnet, and nobody else may have it.
        let seven = config(r#""Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.7.0""#);
        let lease = acquire(&store, &wish(&seven, ONE)).await.unwrap();
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
        let own = acquire(&store, &wish(&config, ONE)).await.unwrap();
        let mut watch = store.watch();
        let mut ledger = Ledger::new(Some(own.key));
        let change = ledger.handle(next(&mut watch).await, now());
        assert_eq!((change.peers, change.own), (false, Own::Written));
        assert_eq!(ledger.own(), Some(&own));
        let peer = acquire(&bench.handle().await, &wish(&config, TWO)).await.unwrap();
        assert!(ledger.handle(next(&mut watch).await, now()).peers);
        assert_eq!(ledger.peers().iter().map(blurred).collect::<Vec<_>>(), [blurred(&peer)]);
        assert!(store.remove(&own.key).await.unwrap());
        let change = ledger.handle(next(&mut watch).await, now());
        assert_eq!((change.peers, change.own), (false, Own::Removed));
    }
}
