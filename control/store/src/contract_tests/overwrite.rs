//! An administrator publishes another address than the node wishes, and the lease is still the node's.

use super::*;

const THERE: &str = "198.51.100.1";
const ELSEWHERE: &str = "198.51.100.2";

/// `value` with another public address.
fn at(address: &str, value: &str) -> LeaseAttrs {
    LeaseAttrs { public_ip: address.parse().unwrap(), ..attrs(value) }
}

/// A lease whose address is overwritten.
async fn overwritten(bench: &Bench, store: &Store, value: &str) -> Owned {
    let own = store.acquire(&wish(&plain(), value)).await.unwrap();
    bench.overwrite_public_ip(&own.key(), Some(THERE));
    own
}

#[tokio::test]
async fn everybody_sees_the_overwritten_address() {
    for bench in Bench::with_overwrites() {
        let store = bench.handle().await;
        let mut watch = bench.handle().await.watch();
        next(&mut watch).await;
        let own = store.acquire(&wish(&plain(), VXLAN)).await.unwrap();
        assert_eq!(next(&mut watch).await, Event::Put(own.published.clone()));
        bench.overwrite_public_ip(&own.key(), Some(THERE));
        let Event::Put(seen) = next(&mut watch).await else { panic!("a put was due") };
        assert_eq!(seen, Lease { attrs: at(THERE, VXLAN), ..own.published.clone() });
        assert_eq!(only_lease(&store).await, seen);
        bench.overwrite_public_ip(&own.key(), None);
        assert_eq!(next(&mut watch).await, Event::Put(own.published));
    }
}

#[tokio::test]
async fn a_node_knows_its_lease_whatever_address_is_published() {
    for bench in Bench::with_overwrites() {
        let store = bench.handle().await;
        let own = overwritten(&bench, &store, VXLAN).await;
        let wished = attrs(VXLAN);
        // Whichever event of the change arrives, and however late.
        let published = |attrs| Lease { attrs, ..own.published.clone() };
        for seen in [at(THERE, VXLAN), wished.clone()] {
            assert_eq!(store.holder(&wished, &published(seen)), Holder::Us);
        }
        bench.overwrite_public_ip(&own.key(), Some(ELSEWHERE));
        for seen in [at(THERE, VXLAN), at(ELSEWHERE, VXLAN), wished.clone()] {
            assert_eq!(store.holder(&wished, &published(seen)), Holder::Us);
        }
        bench.overwrite_public_ip(&own.key(), None);
        assert_eq!(store.holder(&wished, &published(at(ELSEWHERE, VXLAN))), Holder::Us);
        // Another daemon of this node, and another node.
        assert_eq!(store.holder(&wished, &published(at("192.0.2.3", ONE))), Holder::Rival);
        assert_eq!(store.holder(&wished, &published(attrs(TWO))), Holder::Stranger);
    }
}

#[tokio::test]
async fn a_new_start_takes_the_lease_back() {
    for bench in Bench::with_overwrites() {
        let store = bench.handle().await;
        let own = overwritten(&bench, &store, VXLAN).await;
        let again = bench.handle().await.acquire(&wish(&plain(), VXLAN)).await.unwrap();
        assert_eq!((again.key(), &again.wished), (own.key(), &attrs(VXLAN)));
        assert_eq!(again.published.attrs, at(THERE, VXLAN));
        assert_eq!(only_lease(&store).await, again.published);
        // Wishing the published address does not make another node the holder.
        let other = bench.handle().await.acquire(&wish(&plain(), &at(THERE, ONE).to_json())).await.unwrap();
        assert_ne!(other.key(), own.key());
    }
}

#[tokio::test]
async fn a_renewal_keeps_the_overwritten_address() {
    for bench in Bench::with_overwrites() {
        let store = bench.handle().await;
        let mut own = overwritten(&bench, &store, VXLAN).await;
        // Before and after the node has learned of it.
        for _ in 0..2 {
            own = store.renew(&own).await.unwrap();
            assert_eq!((&own.wished, &own.published.attrs), (&attrs(VXLAN), &at(THERE, VXLAN)));
            assert_eq!(only_lease(&store).await, own.published);
        }
        bench.overwrite_public_ip(&own.key(), None);
        own = store.renew(&own).await.unwrap();
        assert_eq!(own, Owned::as_wished(own.published.clone()));
    }
}

#[tokio::test]
async fn an_update_is_done_once_and_keeps_the_overwritten_address() {
    for bench in Bench::with_overwrites() {
        let store = bench.handle().await;
        let mut own = overwritten(&bench, &store, ONE).await;
        let wanted = at("192.0.2.1", VXLAN);
        let mut updates = 0;
        while own.wished != wanted {
            own = store.update(&own, &wanted).await.unwrap();
            updates += 1;
            assert_eq!(own.published.attrs, at(THERE, VXLAN));
        }
        assert_eq!(updates, 1);
        assert_eq!(only_lease(&store).await, own.published);
        // A caller that knows only the former wish has lost it.
        let former = Owned { wished: attrs(ONE), ..own };
        assert!(matches!(store.update(&former, &attrs(ONE)).await, Err(StoreError::Lost { .. })));
    }
}
