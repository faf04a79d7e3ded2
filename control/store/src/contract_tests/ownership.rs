//! The holder of a lease, its attributes and its life.

use super::*;

#[tokio::test]
async fn a_new_start_publishes_new_attributes_under_the_old_subnet() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, plain());
        let with_mac = |mac: &str| {
            let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
            let start = r#""PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan""#;
            format!(r#"{{{start},"BackendData":{data}}}"#)
        };
        let first = acquire(&store, &wish(&config, &with_mac("02:00:00:00:00:01"))).await.unwrap();
        let second = acquire(&store, &wish(&config, &with_mac("02:00:00:00:00:02"))).await.unwrap();
        assert_eq!(first.key, second.key);
        assert_eq!(only_lease(&store).await.attrs.to_json(), with_mac("02:00:00:00:00:02"));
    }
}

#[tokio::test]
async fn renewal_sets_the_full_life_and_changes_nothing_else() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        bench.put_row("10.3.5.0-24", VXLAN, Some(unix_now() + 100)).await;
        let lease = only_lease(&store).await;
        let before = unix_now();
        let renewed = renew(&store, &lease).await.unwrap();
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
            let updated = update(&store, &lease, &attrs(TWO)).await.unwrap();
            assert_eq!((updated.key, &updated.attrs), (lease.key, &attrs(TWO)));
            assert_eq!(updated.expires.is_none(), expires.is_none());
            assert_eq!(only_lease(&store).await, updated);
            // A caller that knows only the former attributes has lost it.
            assert!(matches!(update(&store, &lease, &attrs(ONE)).await, Err(StoreError::Lost { .. })));
        }
    }
}

#[tokio::test]
async fn a_lease_that_is_not_ours_any_more_is_not_renewed() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let lease = acquire(&store, &wish(&plain(), ONE)).await.unwrap();
        let text = lease.key.to_string();
        let lost = |why| StoreError::Lost { key: text.clone(), why };
        bench.put_row(&text, TWO, later()).await;
        assert_eq!(renew(&store, &lease).await.unwrap_err(), lost("another node wrote to it"));
        assert_eq!(only_lease(&store).await.attrs, attrs(TWO));
        bench.put_row(&text, "rubbish", later()).await;
        assert_eq!(renew(&store, &lease).await.unwrap_err(), lost("another node wrote to it"));
        bench.put_row(&text, ONE, Some(unix_now())).await;
        assert_eq!(renew(&store, &lease).await.unwrap_err(), lost("it expired or was removed"));
        assert!(!store.remove(&lease.key).await.unwrap());
        assert_eq!(renew(&store, &lease).await.unwrap_err(), lost("it expired or was removed"));
        assert_eq!(store.leases().await.unwrap(), []);
    }
}

#[tokio::test]
async fn where_nobody_overwrites_what_is_stored_says_whose_it_is() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let own = store.acquire(&wish(&plain(), ONE)).await.unwrap();
        let stored = |value| Lease { attrs: attrs(value), ..own.published.clone() };
        let rival = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#;
        for (value, holder) in [(ONE, Holder::Us), (rival, Holder::Rival), (TWO, Holder::Stranger)] {
            assert_eq!(store.holder(&own.wished, &stored(value)), holder, "{value}");
        }
    }
}
