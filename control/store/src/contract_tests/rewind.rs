//! Stores that lose what they had reported.

use super::*;

/// Waits for the event that a wiped or restored store shows, and returns its leases.
async fn rewind(watch: &mut Watch) -> Vec<SubnetKey> {
    match next(watch).await {
        Event::Rewind(leases) => leases.iter().map(|lease| lease.key).collect(),
        other => panic!("a rewind was due: {other:?}"),
    }
}

#[tokio::test]
async fn a_wiped_store_is_noticed_and_followed_again() {
    for mut bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let mut own = acquire(&store, &wish(&config, ONE)).await.unwrap();
        for _ in 0..3 {
            own = renew(&store, &own).await.unwrap();
        }
        let mut watch = store.watch();
        assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 1));
        bench.wipe();
        assert_eq!(rewind(&mut watch).await, []);
        assert!(matches!(renew(&store, &own).await, Err(StoreError::Lost { .. })));
        // It is put back under the same key, and what others write is seen.
        let again = acquire(&store, &Wish { previous: Some(own.key), ..wish(&config, ONE) }).await.unwrap();
        assert_eq!(again.key, own.key);
        assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == own.key));
        let two = acquire(&bench.handle().await, &wish(&config, TWO)).await.unwrap();
        assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == two.key));
    }
}

#[tokio::test]
async fn an_older_state_is_noticed_and_followed_again() {
    for mut bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let one = acquire(&store, &wish(&config, ONE)).await.unwrap();
        let saved = bench.backup();
        let two = acquire(&store, &wish(&config, TWO)).await.unwrap();
        let mut watch = store.watch();
        assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 2));
        bench.restore(&saved);
        assert_eq!(rewind(&mut watch).await, [one.key]);
        let again = acquire(&store, &Wish { previous: Some(two.key), ..wish(&config, TWO) }).await.unwrap();
        assert_eq!(again.key, two.key);
        assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == two.key));
    }
}

/// A revision alone does not tell: others have written meanwhile.
#[tokio::test]
async fn a_restored_store_that_has_caught_up_is_noticed() {
    if !server::ready() {
        return;
    }
    let mut bench = Bench::Etcd(Box::new(Server::start(Security::None)));
    let (store, config) = (bench.handle().await, plain());
    let one = acquire(&store, &wish(&config, ONE)).await.unwrap();
    let saved = bench.backup();
    let two = acquire(&store, &wish(&config, TWO)).await.unwrap();
    let mut watch = store.watch();
    assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 2));
    let Bench::Etcd(server) = &mut bench else { panic!("another store") };
    let Saved::Directory(saved) = saved else { panic!("another store") };
    server.restore_aside(saved.path(), |server| {
        for third in 200..210 {
            server.etcdctl(&["put", &format!("/coreos.com/network/subnets/10.3.{third}.0-24"), VXLAN]);
        }
    });
    let keys = rewind(&mut watch).await;
    assert!(keys.contains(&one.key) && !keys.contains(&two.key) && keys.len() == 11, "{keys:?}");
}

/// Nor do the keys and revisions: small histories look alike.
#[tokio::test]
async fn another_history_of_the_same_length_is_noticed() {
    if !server::ready() {
        return;
    }
    let mut bench = Bench::Etcd(Box::new(Server::start(Security::None)));
    let (store, config) = (bench.handle().await, plain());
    let own = acquire(&store, &wish(&config, ONE)).await.unwrap();
    let saved = bench.backup();
    let mut watch = store.watch();
    next(&mut watch).await;
    bench.wipe();
    assert_eq!(rewind(&mut watch).await, []);
    acquire(&store, &Wish { previous: Some(own.key), ..wish(&config, ONE) }).await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(lease) if lease.key == own.key));
    bench.restore(&saved);
    assert_eq!(rewind(&mut watch).await, [own.key]);
}

#[tokio::test]
async fn the_position_of_an_earlier_run_shows_a_rewind_and_nothing_else_does() {
    for mut bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        acquire(&store, &wish(&config, ONE)).await.unwrap();
        let saved = bench.backup();
        let mut watch = store.watch();
        assert_eq!(watch.position(), None);
        next(&mut watch).await;
        acquire(&store, &wish(&config, TWO)).await.unwrap();
        next(&mut watch).await;
        // Set after the event was sent.
        let mut position = watch.position();
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
            position = watch.position();
        }
        drop(watch);
        let mut watch = bench.handle().await.watch_since(position);
        assert!(matches!(next(&mut watch).await, Event::Snapshot(leases) if leases.len() == 2));
        bench.restore(&saved);
        let mut watch = bench.handle().await.watch_since(position);
        assert_eq!(rewind(&mut watch).await.len(), 1);
        let Some(position) = position else { panic!("nothing was read") };
        let other = Position { cluster: position.cluster ^ 1, ..position };
        if other.cluster > 1 {
            let mut watch = bench.handle().await.watch_since(Some(other));
            assert!(matches!(next(&mut watch).await, Event::Snapshot(_)), "another cluster loses nothing");
        }
    }
}

#[tokio::test]
async fn a_watch_begins_with_the_first_wait() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let mut watch = store.watch();
        assert!(watch.health().lost_since().is_some());
        let lease = acquire(&bench.handle().await, &wish(&plain(), ONE)).await.unwrap();
        assert_eq!(blurred_event(next(&mut watch).await), Event::Snapshot(vec![blurred(&lease)]));
        while watch.health().lost_since().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The address has changed; what the last run knew finds the lease, unless another node has taken it over.
#[tokio::test]
async fn a_lease_at_a_former_address_is_found_and_published_anew() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let former = acquire(&store, &wish(&config, ONE)).await.unwrap();
        let moved = Wish { previous: Some(former.key), former: Some(&former), ..wish(&config, TWO) };
        let again = acquire(&bench.handle().await, &moved).await.unwrap();
        assert_eq!(again.key, former.key);
        assert_eq!(only_lease(&store).await.attrs, attrs(TWO));
        // The former address is another node's now, which has taken the lease over as its own.
        bench.put_row(&former.key.to_string(), ONE, Some(unix_now() + 80_000)).await;
        let other = acquire(&bench.handle().await, &moved).await.unwrap();
        assert_ne!(other.key, former.key);
        assert_eq!(store.leases().await.unwrap().len(), 2);
    }
}
