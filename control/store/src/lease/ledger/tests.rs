//! The ledger's contents, and what counts as a change.

use std::sync::LazyLock;

use model::lease::LeaseAttrs;
use proptest::prelude::*;

use super::*;

const QUIET: Change = Change { peers: false, own: Own::Unchanged };
const PEERS: Change = Change { peers: true, own: Own::Unchanged };

/// This second on both clocks.
fn at(second: u64) -> Now {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Now { instant: *START + Duration::from_secs(second), unix: second }
}

impl Ledger {
    /// Takes in an event at the beginning of time.
    fn take(&mut self, event: Event) -> Change {
        self.handle(event, at(0))
    }

    /// Takes in an event, and lets what is gone go at once.
    fn take_whole(&mut self, event: Event) -> Change {
        let change = self.take(event);
        let gone = self.expire(at(10 * 86_400).instant);
        Change { peers: change.peers || gone, ..change }
    }
}

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
    let change = ledger.take_whole(Event::Snapshot(vec![lease(1, 0, 9), lease(2, 0, 9)]));
    assert_eq!(change, Change { peers: true, own: Own::Written });
    assert_eq!(peers(&ledger), [key(2)]);
    assert_eq!(ledger.own(), Some(&lease(1, 0, 9)));
    assert_eq!(ledger.take_whole(Event::Put(lease(1, 0, 99))), Change { peers: false, own: Own::Written });
    assert_eq!(ledger.take_whole(Event::Put(lease(1, 0, 99))), QUIET);
    assert_eq!(ledger.take_whole(Event::Removed(key(1))), Change { peers: false, own: Own::Removed });
    assert_eq!(ledger.own(), None);
    assert_eq!(peers(&ledger), [key(2)]);
}

#[test]
fn a_peer_comes_changes_renews_and_goes() {
    let mut ledger = Ledger::new(None);
    assert_eq!(ledger.take_whole(Event::Put(lease(2, 0, 9))), PEERS);
    assert_eq!(ledger.take_whole(Event::Put(lease(2, 0, 99))), QUIET);
    assert_eq!(ledger.peers().get(&key(2)), Some(&lease(2, 0, 99)));
    assert_eq!(ledger.take_whole(Event::Put(lease(2, 1, 99))), PEERS);
    assert_eq!(ledger.take_whole(Event::Removed(key(2))), PEERS);
    assert_eq!(ledger.take_whole(Event::Removed(key(2))), QUIET);
    assert!(ledger.peers().is_empty());
}

#[test]
fn a_snapshot_with_other_attributes_is_a_change() {
    let mut ledger = Ledger::new(None);
    assert_eq!(ledger.take_whole(Event::Snapshot(vec![lease(2, 0, 9), lease(3, 0, 9)])), PEERS);
    assert_eq!(ledger.take_whole(Event::Snapshot(vec![lease(3, 0, 10), lease(2, 0, 10)])), QUIET);
    assert_eq!(ledger.take_whole(Event::Snapshot(vec![lease(2, 7, 9), lease(3, 0, 9)])), PEERS);
    assert_eq!(ledger.take_whole(Event::Snapshot(vec![lease(2, 7, 9)])), PEERS);
    assert_eq!(peers(&ledger), [key(2)]);
}

#[test]
fn a_snapshot_without_our_lease_says_that_it_is_gone() {
    let mut ledger = Ledger::new(Some(key(1)));
    let lost = Change { peers: true, own: Own::Removed };
    assert_eq!(ledger.take_whole(Event::Snapshot(vec![lease(2, 0, 9)])), lost);
    assert_eq!(Ledger::new(None).take_whole(Event::Snapshot(vec![])), QUIET);
}

#[test]
fn another_lease_becomes_ours() {
    let mut ledger = Ledger::new(Some(key(1)));
    ledger.take_whole(Event::Snapshot(vec![lease(1, 0, 9), lease(2, 0, 9), lease(3, 0, 9)]));
    assert_eq!(ledger.set_own(key(1)), QUIET);
    assert_eq!(ledger.set_own(key(2)), PEERS);
    assert_eq!(ledger.own(), Some(&lease(2, 0, 9)));
    assert_eq!(peers(&ledger), [key(1), key(3)]);
    assert_eq!(ledger.take_whole(Event::Removed(key(1))), PEERS);
    assert_eq!(ledger.take_whole(Event::Removed(key(2))), Change { peers: false, own: Own::Removed });
    assert_eq!(ledger.set_own(key(9)), QUIET);
}

#[test]
fn a_lease_that_is_put_back_soon_was_never_away() {
    let mut ledger = Ledger::new(Some(key(1)));
    let both = || vec![lease(2, 0, 9), lease(3, 0, 9)];
    ledger.take(Event::Snapshot(both()));
    for gone in [
        vec![Event::Removed(key(2)), Event::Removed(key(3))],
        vec![Event::Snapshot(vec![])],
        vec![Event::Rewind(vec![])],
        vec![Event::Snapshot(vec![lease(3, 0, 9)]), Event::Removed(key(3)), Event::Removed(key(2))],
    ] {
        for event in gone {
            assert!(!ledger.take(event).peers);
        }
        assert!(!ledger.expire(at(4).instant));
        assert_eq!(peers(&ledger), [key(2), key(3)]);
        for back in both() {
            assert!(!ledger.take(Event::Put(back)).peers);
        }
        assert_eq!(ledger.next_expiry(), None);
    }
}

#[test]
fn a_lease_that_is_not_put_back_goes_after_a_while() {
    let mut ledger = Ledger::new(None);
    ledger.take(Event::Snapshot(vec![lease(2, 0, 9)]));
    ledger.handle(Event::Removed(key(2)), at(100));
    ledger.handle(Event::Removed(key(2)), at(103));
    let end = at(100).instant + LINGER;
    assert_eq!(ledger.next_expiry(), Some(end));
    assert!(!ledger.expire(end - Duration::from_millis(1)) && ledger.expire(end) && !ledger.expire(end));
    assert_eq!((peers(&ledger).len(), ledger.next_expiry()), (0, None));
}

/// The nodes of a store that was wiped live: stock flannel puts its lease back only at its next renewal.
#[test]
fn what_a_restored_store_does_not_have_stays_for_the_rest_of_its_life() {
    let mut ledger = Ledger::new(Some(key(1)));
    let reserved = Lease { expires: None, ..lease(4, 0, 0) };
    let own = lease(1, 0, 1_000);
    ledger.take(Event::Snapshot(vec![own.clone(), lease(2, 0, 1_000), lease(3, 0, 2_000), reserved]));
    let change = ledger.handle(Event::Rewind(vec![lease(3, 1, 5_000)]), at(400));
    assert_eq!(change, Change { peers: true, own: Own::Removed });
    assert_eq!(ledger.peers().get(&key(3)), Some(&lease(3, 1, 5_000)), "what the store says counts");
    // A later list, and a second wipe, do not lengthen a stay.
    assert!(!ledger.handle(Event::Rewind(vec![own, lease(3, 1, 5_000)]), at(500)).peers);
    assert!(!ledger.expire(at(999).instant) && ledger.expire(at(1_000).instant));
    assert_eq!(peers(&ledger), [key(3), key(4)]);
    assert!(ledger.expire(at(400 + 86_400).instant));
    assert_eq!(peers(&ledger), [key(3)]);
}

#[test]
fn a_lease_that_is_only_kept_gives_way_to_what_is_stored() {
    let mut ledger = Ledger::new(Some(key(1)));
    let wipe = |ledger: &mut Ledger| {
        ledger.take(Event::Snapshot((2..6).map(|third| lease(third, 0, 900)).collect()));
        assert!(!ledger.take(Event::Rewind(vec![])).peers);
    };
    wipe(&mut ledger);
    // The node has another subnet, another node has the subnet, or one that overlaps.
    let moved = Lease { key: key(12), ..lease(2, 0, 900) };
    let taken = Lease { key: key(3), ..lease(13, 0, 900) };
    let wider = Lease { key: "10.3.4.0-23".parse().unwrap(), ..lease(14, 0, 900) };
    for stored in [&moved, &taken, &wider] {
        assert!(ledger.take(Event::Put(stored.clone())).peers);
    }
    assert_eq!(peers(&ledger), [key(3), wider.key, key(12)]);
    assert_eq!(ledger.next_expiry(), None);
    wipe(&mut ledger);
    let restored = vec![moved, taken, wider];
    assert!(ledger.take(Event::Rewind(restored.clone())).peers);
    assert_eq!(ledger.peers().iter().cloned().collect::<Vec<_>>().len(), restored.len());
}

#[test]
fn our_lease_in_a_restored_store_is_ours_only_as_it_was() {
    for (stored, own) in [
        (Some(lease(1, 0, 9)), Own::Unchanged),
        (Some(lease(1, 0, 99)), Own::Written),
        (Some(lease(1, 7, 9)), Own::Removed),
        (None, Own::Removed),
    ] {
        let mut ledger = Ledger::new(Some(key(1)));
        ledger.take(Event::Put(lease(1, 0, 9)));
        let change = ledger.take(Event::Rewind(stored.clone().into_iter().collect()));
        assert_eq!((change.own, ledger.own()), (own, stored.as_ref()));
    }
}

#[test]
fn a_kept_lease_that_becomes_ours_is_not_stored_yet() {
    let mut ledger = Ledger::new(None);
    ledger.take(Event::Put(lease(2, 0, 9)));
    ledger.take(Event::Removed(key(2)));
    assert_eq!(ledger.set_own(key(2)), PEERS);
    assert_eq!((ledger.own(), ledger.next_expiry()), (None, None));
}

fn any_event() -> impl Strategy<Value = Event> {
    let any_lease =
        || (1..6u8, 0..3u8, 0..3u64).prop_map(|(third, version, expires)| lease(third, version, expires));
    prop_oneof![
        proptest::collection::vec(any_lease(), 0..5).prop_map(Event::Snapshot),
        proptest::collection::vec(any_lease(), 0..5).prop_map(Event::Rewind),
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
                Event::Snapshot(leases) | Event::Rewind(leases) => {
                    all = leases.into_iter().map(|lease| (lease.key, lease)).collect();
                }
                Event::Put(lease) => drop(all.insert(lease.key, lease)),
                Event::Removed(key) => drop(all.remove(&key)),
            }
            let change = ledger.take_whole(event);
            prop_assert_eq!(change.peers, before != published(&all));
            let peers: LeaseSet = all.values().filter(|lease| lease.key != key(1)).cloned().collect();
            prop_assert_eq!(ledger.peers(), &peers);
            prop_assert_eq!(ledger.own(), all.get(&key(1)));
        }
    }
}
