//! Nothing is published that ends or blinds another node. Stock flannel up to v0.28.7 ends at an address of
//! the wrong family, and with wireguard at an unspecified IPv6 address; up to v0.28.9 it forgets all peers at
//! a key or a value that it cannot read.

use super::*;
use crate::error::Cause;

fn dual() -> NetConfig {
    config(r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48""#)
}

/// Texts of the wrong family do not even become attributes, so no caller can wish them.
#[test]
fn an_address_of_the_wrong_family_cannot_be_wished() {
    for (ip, ipv6) in [
        (r#""2001:db8::1""#, "null"),
        (r#""::ffff:192.0.2.1""#, "null"),
        (r#""192.0.2.1""#, r#""192.0.2.1""#),
    ] {
        let text = format!(r#"{{"PublicIP":{ip},"PublicIPv6":{ipv6}}}"#);
        assert!(LeaseAttrs::parse(&text).is_err(), "{text}");
    }
}

#[tokio::test]
async fn an_address_that_no_node_can_use_is_refused_before_it_is_published() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, dual());
        let mut watch = bench.handle().await.watch();
        assert_eq!(next(&mut watch).await, Event::Snapshot(Vec::new()));
        let bad = [
            ("0.0.0.0", "fd00::1"),
            ("224.0.0.1", "fd00::1"),
            ("192.0.2.1", "::"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
        ];
        let values = bad.map(|(ip, ipv6)| format!(r#"{{"PublicIP":"{ip}","PublicIPv6":"{ipv6}"}}"#));
        let is_refused = |answer: Result<Owned, StoreError>, value: &str| {
            let error = answer.expect_err(value);
            assert!(matches!(error, StoreError::Fatal(Cause::Unpublishable(_))), "{value}: {error}");
        };
        for value in &values {
            is_refused(store.acquire(&wish(&config, value)).await, value);
        }
        let good = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}"#;
        let own = store.acquire(&wish(&config, good)).await.unwrap();
        for value in &values {
            is_refused(store.update(&own, &attrs(value)).await, value);
            is_refused(store.renew(&Owned { wished: attrs(value), ..own.clone() }).await, value);
        }
        assert_eq!(only_lease(&store).await.attrs.to_json(), good);
        // The lease is the first that others hear of.
        assert_eq!(blurred_event(next(&mut watch).await), blurred_event(Event::Put(own.published)));
    }
}

/// What others wrote and stock flannel cannot read is nothing that a node of ours writes again.
#[tokio::test]
async fn a_value_of_the_wrong_family_under_our_subnet_is_not_taken_over() {
    for bench in Bench::all() {
        let (store, config) = (bench.handle().await, single());
        let wrong = r#"{"PublicIP":"2001:db8::1","PublicIPv6":null}"#;
        bench.put_row("10.3.7.0-24", wrong, later()).await;
        let own = store.acquire(&wish(&config, ONE)).await;
        assert!(matches!(own, Err(StoreError::OutOfSubnets(_))), "{own:?}");
        assert_eq!(store.leases().await.unwrap(), []);
    }
}

/// flannel's expression for keys has no room for a /32, a /128 and an IPv6 address with dots.
#[test]
fn a_key_that_flannel_cannot_read_cannot_be_built() {
    let v4 = |text: &str| Some(text.parse().unwrap());
    let v6 = |text: &str| Some(text.parse().unwrap());
    assert!(SubnetKey::new(v4("10.3.7.1/32"), None).is_none());
    assert!(SubnetKey::new(v4("10.3.7.0/24"), v6("fd00::1/128")).is_none());
    assert!(SubnetKey::new(v4("10.3.7.0/24"), v6("::ffff:10.3.7.0/120")).is_none());
    assert!(!SubnetKey::new(None, v6("fd00::/64")).unwrap().is_readable_by_flannel());
}
