//! The ledger's contents, and what counts as a change.

use model::lease::LeaseAttrs;
use proptest::prelude::*;

use super::*;

const QUIET: Change = Change { peers: false, own: Own::Unchanged };
const PEERS: Change = Change { peers: true, own: Own::Unchanged };

fn key(third: u8) -> SubnetKey {
    format!("10.3.{third}.0-24").parse().unwrap()
}

/// A lease whose node publishes `version`.
fn lease(third: u8, version: u8, expires: u64) -> Lease {
    let value = format!(r#"{{"PublicIP":"192.0.2.{third}","PublicIPv6":null,"BackendData":{version}}}"#);
    Lease { key: key(third), attrs: LeaseAttrs::parse(&value).unwrap(), expires: Some(expires) }
}

fn peers(ledger: &Ledger) -> Vec<SubnetKey> {
    ledger.peers().iter().map(|lease| lease.key).collect()
}

#[test]
fn our_own_lease_is_never_a_peer() {
    let mut ledger = Ledger::new(Some(key(1)));
    let change = ledger.handle(Event::Snapshot(vec![lease(1, 0, 9), lease(2, 0, 9)]));
    assert_eq!(change, Change { peers: true, own: Own::Written });
    assert_eq!(peers(&ledger), [key(2)]);
    assert_eq!(ledger.own(), Some(&lease(1, 0, 9)));
    assert_eq!(ledger.handle(Event::Put(lease(1, 0, 99))), Change { peers: false, own: Own::Written });
    assert_eq!(ledger.handle(Event::Put(lease(1, 0, 99))), QUIET);
    assert_eq!(ledger.handle(Event::Removed(key(1))), Change { peers: false, own: Own::Removed });
    assert_eq!(ledger.own(), None);
    assert_eq!(peers(&ledger), [key(2)]);
}

#[test]
fn a_peer_comes_changes_renews_and_goes() {
    let mut ledger = Ledger::new(None);
    assert_eq!(ledger.handle(Event::Put(lease(2, 0, 9))), PEERS);
    assert_eq!(ledger.handle(Event::Put(lease(2, 0, 99))), QUIET);
    assert_eq!(ledger.peers().get(&key(2)), Some(&lease(2, 0, 99)));
    assert_eq!(ledger.handle(Event::Put(lease(2, 1, 99))), PEERS);
    assert_eq!(ledger.handle(Event::Removed(key(2))), PEERS);
    assert_eq!(ledger.handle(Event::Removed(key(2))), QUIET);
    assert!(ledger.peers().is_empty());
}

#[test]
fn a_snapshot_with_other_attributes_is_a_change() {
    let mut ledger = Ledger::new(None);
    assert_eq!(ledger.handle(Event::Snapshot(vec![lease(2, 0, 9), lease(3, 0, 9)])), PEERS);
    assert_eq!(ledger.handle(Event::Snapshot(vec![lease(3, 0, 10), lease(2, 0, 10)])), QUIET);
    assert_eq!(ledger.handle(Event::Snapshot(vec![lease(2, 7, 9), lease(3, 0, 9)])), PEERS);
    assert_eq!(ledger.handle(Event::Snapshot(vec![lease(2, 7, 9)])), PEERS);
    assert_eq!(peers(&ledger), [key(2)]);
}

#[test]
fn a_snapshot_without_our_lease_says_that_it_is_gone() {
    let mut ledger = Ledger::new(Some(key(1)));
    let lost = Change { peers: true, own: Own::Removed };
    assert_eq!(ledger.handle(Event::Snapshot(vec![lease(2, 0, 9)])), lost);
    assert_eq!(Ledger::new(None).handle(Event::Snapshot(vec![])), QUIET);
}

#[test]
fn another_lease_becomes_ours() {
    let mut ledger = Ledger::new(Some(key(1)));
    ledger.handle(Event::Snapshot(vec![lease(1, 0, 9), lease(2, 0, 9), lease(3, 0, 9)]));
    assert_eq!(ledger.set_own(key(1)), QUIET);
    assert_eq!(ledger.set_own(key(2)), PEERS);
    assert_eq!(ledger.own(), Some(&lease(2, 0, 9)));
    assert_eq!(peers(&ledger), [key(1), key(3)]);
    assert_eq!(ledger.handle(Event::Removed(key(1))), PEERS);
    assert_eq!(ledger.handle(Event::Removed(key(2))), Change { peers: false, own: Own::Removed });
    assert_eq!(ledger.set_own(key(9)), QUIET);
}

fn any_event() -> impl Strategy<Value = Event> {
    let any_lease =
        || (1..6u8, 0..3u8, 0..3u64).prop_map(|(third, version, expires)| lease(third, version, expires));
    prop_oneof![
        proptest::collection::vec(any_lease(), 0..5).prop_map(Event::Snapshot),
        any_lease().prop_map(Event::Put),
        (1..6u8).prop_map(|third| Event::Removed(key(third))),
    ]
}

proptest! {
    /// The set equals a plain map's contents, and "changed" equals the result of a comparison.
    #[test]
    fn the_ledger_agrees_with_a_plain_map(events in proptest::collection::vec(any_event(), 0..30)) {
        let mut ledger = Ledger::new(Some(key(1)));
        let mut all: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
        for event in events {
            let published = |all: &BTreeMap<SubnetKey, Lease>| -> Vec<_> {
                let peers = all.values().filter(|lease| lease.key != key(1));
                peers.map(|lease| (lease.key, lease.attrs.clone())).collect()
            };
            let before = published(&all);
            match event.clone() {
                Event::Snapshot(leases) => all = leases.into_iter().map(|lease| (lease.key, lease)).collect(),
                Event::Put(lease) => drop(all.insert(lease.key, lease)),
                Event::Removed(key) => drop(all.remove(&key)),
            }
            let change = ledger.handle(event);
            prop_assert_eq!(change.peers, before != published(&all));
            let peers: LeaseSet = all.values().filter(|lease| lease.key != key(1)).cloned().collect();
            prop_assert_eq!(ledger.peers(), &peers);
            prop_assert_eq!(ledger.own(), all.get(&key(1)));
        }
    }
}
