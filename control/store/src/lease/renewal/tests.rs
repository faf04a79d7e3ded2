//! The life of a lease on a clock that is only a number.

use model::lease::LeaseAttrs;
use proptest::prelude::*;

use super::*;

const DAY: u64 = 86_400;
const HOUR: Duration = Duration::from_secs(3_600);

fn lease(expires: Option<u64>) -> Lease {
    Lease {
        key: "10.3.1.0-24".parse().unwrap(),
        attrs: LeaseAttrs::parse(r#"{"PublicIP":"192.0.2.7","PublicIPv6":null}"#).unwrap(),
        expires,
    }
}

#[test]
fn renewed_when_the_margin_is_left() {
    let mut renewal = Renewal::new(&lease(Some(DAY)), HOUR, 0);
    assert_eq!(renewal.poll(0), Step::Sleep(Some(DAY - 3_600)));
    assert_eq!(renewal.poll(DAY - 3_601), Step::Sleep(Some(DAY - 3_600)));
    assert_eq!(renewal.poll(DAY - 3_600), Step::Renew);
    renewal.handle_renewed(&lease(Some(2 * DAY - 3_600)), DAY - 3_600);
    assert_eq!(renewal.poll(DAY - 3_600), Step::Sleep(Some(2 * DAY - 7_200)));
}

#[test]
fn a_failure_is_retried_each_minute_until_the_end_and_beyond() {
    let mut renewal = Renewal::new(&lease(Some(DAY)), HOUR, 0);
    renewal.handle_failure(DAY - 3_600);
    assert_eq!(renewal.poll(DAY - 3_600), Step::Sleep(Some(DAY - 3_540)));
    assert_eq!(renewal.poll(DAY - 3_540), Step::Renew);
    renewal.handle_failure(DAY - 20);
    // The expiry comes before the next attempt.
    assert_eq!(renewal.poll(DAY - 20), Step::Sleep(Some(DAY)));
    assert_eq!(renewal.poll(DAY), Step::Acquire);
    renewal.handle_failure(DAY);
    assert_eq!(renewal.poll(DAY), Step::Sleep(Some(DAY + 60)));
    assert_eq!(renewal.poll(DAY + 60), Step::Acquire);
    renewal.handle_renewed(&lease(Some(2 * DAY + 60)), DAY + 60);
    assert_eq!(renewal.poll(DAY + 60), Step::Sleep(Some(2 * DAY + 60 - 3_600)));
}

#[test]
fn a_lost_lease_is_acquired_again_at_once() {
    let mut renewal = Renewal::new(&lease(Some(DAY)), HOUR, 0);
    renewal.handle_lost();
    assert_eq!(renewal.poll(10), Step::Acquire);
    renewal.handle_failure(10);
    assert_eq!(renewal.poll(10), Step::Sleep(Some(70)));
    assert_eq!(renewal.poll(70), Step::Acquire);
    renewal.handle_renewed(&lease(Some(DAY + 70)), 70);
    assert_eq!(renewal.poll(70), Step::Sleep(Some(DAY + 70 - 3_600)));
}

#[test]
fn a_machine_that_slept_through_the_end() {
    let renewal = Renewal::new(&lease(Some(DAY)), HOUR, 0);
    assert_eq!(renewal.poll(3 * DAY), Step::Acquire);
}

#[test]
fn a_reservation_needs_no_renewal_but_can_be_lost() {
    let mut renewal = Renewal::new(&lease(None), HOUR, 0);
    assert_eq!(renewal.poll(100 * DAY), Step::Sleep(None));
    renewal.handle_lost();
    assert_eq!(renewal.poll(100 * DAY), Step::Acquire);
    renewal.handle_failure(100 * DAY);
    assert_eq!(renewal.poll(100 * DAY), Step::Sleep(Some(100 * DAY + 60)));
}

#[test]
fn the_widest_margin_renews_a_minute_after_each_grant() {
    let margin = Duration::from_secs(1_439 * 60);
    assert_eq!(Renewal::new(&lease(Some(DAY)), margin, 0).poll(0), Step::Sleep(Some(60)));
}

#[test]
fn a_lease_shorter_than_the_margin_is_not_renewed_without_pause() {
    let renewal = Renewal::new(&lease(Some(30)), HOUR, 0);
    assert_eq!(renewal.poll(0), Step::Sleep(Some(15)));
    assert_eq!(renewal.poll(15), Step::Renew);
    let renewal = Renewal::new(&lease(Some(1)), HOUR, 0);
    assert_eq!(renewal.poll(0), Step::Sleep(Some(1)));
}

proptest! {
    /// Driven by its own deadlines, it never sleeps past the end and never asks twice in one second.
    #[test]
    fn deadlines_lie_ahead(
        margin in 0..100_000u64, outcomes in proptest::collection::vec((0..4u8, 0..100_000u64), 1..40),
    ) {
        let mut now = 1_000_000;
        let mut expires = now + DAY;
        let mut renewal = Renewal::new(&lease(Some(expires)), Duration::from_secs(margin), now);
        for (outcome, late) in outcomes {
            match renewal.poll(now) {
                Step::Sleep(until) => {
                    let until = until.expect("only a reservation sleeps without an end");
                    prop_assert!(until > now);
                    now = until + if outcome == 3 { late } else { 0 };
                }
                Step::Renew => {
                    prop_assert!(now < expires);
                    match outcome {
                        0 => renewal.handle_failure(now),
                        1 => renewal.handle_lost(),
                        _ => {
                            expires = now + 1 + late;
                            renewal.handle_renewed(&lease(Some(expires)), now);
                        }
                    }
                    if outcome != 1 {
                        prop_assert_ne!(renewal.poll(now), Step::Renew);
                    }
                }
                Step::Acquire => {
                    match outcome {
                        0 => renewal.handle_failure(now),
                        _ => {
                            expires = now + 1 + late;
                            renewal.handle_renewed(&lease(Some(expires)), now);
                        }
                    }
                    prop_assert!(matches!(renewal.poll(now), Step::Sleep(_)));
                }
            }
        }
    }
}
