//! The network configuration: kept as text, and waited for while it can still come.

use super::*;

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
async fn a_configuration_that_can_still_come_is_waited_for() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        assert_eq!(store.network(None).await, Err(StoreError::Passing(Cause::Unconfigured)));
        store.set_net_config("not even JSON").await.unwrap();
        let error = store.network(None).await.unwrap_err();
        // Others of the cluster may correct it; in a store of this machine nobody else will.
        assert_eq!(error.is_passing(), matches!(bench, Bench::Etcd(_)));
        assert!(matches!(error, StoreError::Passing(Cause::Config(_)) | StoreError::Fatal(Cause::Config(_))));
        let text = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
        store.set_net_config(text).await.unwrap();
        let network = store.network(None).await.unwrap();
        assert_eq!((network.text.as_str(), network.config), (text, plain()));
    }
}

#[tokio::test]
async fn a_given_configuration_takes_the_place_of_the_stored_one_unless_it_is_broken() {
    for bench in Bench::all() {
        let store = bench.handle().await;
        let (first, second) = (r#"{"Network":"10.3.0.0/16"}"#, r#"{"Network":"10.4.0.0/16"}"#);
        assert_eq!(store.network(Some(first)).await.unwrap().text, first);
        let error = store.network(Some("{")).await.unwrap_err();
        assert!(matches!(error, StoreError::Fatal(Cause::Config(_))), "{error}");
        assert_eq!(bench.handle().await.network(None).await.unwrap().text, first);
        assert_eq!(store.network(Some(second)).await.unwrap().text, second);
        assert_eq!(bench.handle().await.net_config().await.unwrap().as_deref(), Some(second));
    }
}
