//! The life of a lease on clocks that are only numbers.

use std::sync::LazyLock;
use std::time::Instant;

use model::lease::LeaseAttrs;
use proptest::prelude::*;

use super::*;

const DAY: u64 = 86_400;
const HOUR: Duration = Duration::from_secs(3_600);

/// This second on both clocks.
fn at(second: u64) -> Now {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Now { instant: *START + Duration::from_secs(second), unix: second }
}

fn lease(expires: Option<u64>) -> Lease {
    Lease {
        key: "10.3.1.0-24".parse().unwrap(),
        attrs: LeaseAttrs::parse(r#"{"PublicIP":"192.0.2.7","PublicIPv6":null}"#).unwrap(),
        expires,
    }
}

#[test]
fn renewed_when_the_margin_is_left() {
    let mut renewal = Renewal::new(&lease(Some(DAY)), HOUR, at(0));
    assert_eq!(renewal.poll(at(0)), Step::Sleep(Some(DAY - 3_600)));
    assert_eq!(renewal.poll(at(DAY - 3_601)), Step::Sleep(Some(DAY - 3_600)));
    assert_eq!(renewal.poll(at(DAY - 3_600)), Step::Renew);
    renewal.handle_renewed(&lease(Some(2 * DAY - 3_600)), at(DAY - 3_600));
    assert_eq!(renewal.poll(at(DAY - 3_600)), Step::Sleep(Some(2 * DAY - 7_200)));
}

#[test]
fn a_failure_is_retried_each_minute_until_the_end_and_beyond() {
    let mut renewal = Renewal::new(&lease(Some(DAY)), HOUR, at(0));
    renewal.handle_failure(at(DAY - 3_600));
    assert_eq!(renewal.poll(at(DAY - 3_600)), Step::Sleep(Some(DAY - 3_540)));
    assert_eq!(renewal.poll(at(DAY - 3_540)), Step::Renew);
    renewal.handle_failure(at(DAY - 20));
    // The expiry comes before the next attempt.
    assert_eq!(renewal.poll(at(DAY - 20)), Step::Sleep(Some(DAY)));
    assert_eq!(renewal.poll(at(DAY)), Step::Acquire);
    renewal.handle_failure(at(DAY));
    assert_eq!(renewal.poll(at(DAY)), Step::Sleep(Some(DAY + 2)));
    assert_eq!(renewal.poll(at(DAY + 60)), Step::Acquire);
    renewal.handle_renewed(&lease(Some(2 * DAY + 60)), at(DAY + 60));
    assert_eq!(renewal.poll(at(DAY + 60)), Step::Sleep(Some(2 * DAY + 60 - 3_600)));
}

#[test]
fn a_lost_lease_is_acquired_again_at_once() {
    let mut renewal = Renewal::new(&lease(Some(DAY)), HOUR, at(0));
    renewal.handle_lost();
    assert_eq!(renewal.poll(at(10)), Step::Acquire);
    let mut now = 10;
    for pause in [2, 4, 8, 16, 32, 60, 60] {
        renewal.handle_failure(at(now));
        assert_eq!(renewal.poll(at(now)), Step::Sleep(Some(now + pause)));
        now += pause;
        assert_eq!(renewal.poll(at(now)), Step::Acquire);
    }
    renewal.handle_renewed(&lease(Some(DAY + now)), at(now));
    assert_eq!(renewal.poll(at(now)), Step::Sleep(Some(DAY + now - 3_600)));
    renewal.handle_lost();
    renewal.handle_failure(at(now));
    assert_eq!(renewal.poll(at(now)), Step::Sleep(Some(now + 2)), "the pause begins again");
}

/// The store counts the life of the lease on, whatever this host's clock says.
#[test]
fn a_wall_clock_that_is_stepped_puts_no_renewal_off() {
    for (step, margin) in [(-7_200, HOUR), (-3 * DAY as i64, HOUR), (-30, HOUR), (7_200, HOUR)] {
        let start = 10 * DAY;
        let mut renewal = Renewal::new(&lease(Some(start + DAY)), margin, at(start));
        // Stepped after an hour, and read right on the monotonic clock.
        let stepped = |second| Now { unix: (second as i64 + step) as u64, ..at(second) };
        let due = start + DAY - margin.as_secs();
        assert_eq!(renewal.poll(stepped(start + 3_600)), Step::Sleep(Some(due)), "{step}");
        let ahead = u64::try_from(step).unwrap_or(0);
        assert!(matches!(renewal.poll(stepped(due - ahead - 1)), Step::Sleep(_)), "{step}");
        assert_eq!(renewal.poll(stepped(due - ahead)), Step::Renew, "{step}");
        renewal.handle_failure(stepped(due - ahead));
        assert_eq!(renewal.poll(stepped(due - ahead + 60)), Step::Renew, "{step}");
        let now = stepped(start + DAY - ahead);
        assert_eq!(renewal.poll(now), Step::Acquire, "{step}");
        // What the store gives now is judged by the clock as it is now.
        renewal.handle_renewed(&lease(Some(now.unix + DAY)), now);
        assert_eq!(renewal.poll(now), Step::Sleep(Some(now.unix + DAY - margin.as_secs())), "{step}");
    }
}

#[test]
fn a_machine_that_slept_through_the_end() {
    let renewal = Renewal::new(&lease(Some(DAY)), HOUR, at(0));
    assert_eq!(renewal.poll(at(3 * DAY)), Step::Acquire);
}

#[test]
fn a_reservation_needs_no_renewal_but_can_be_lost() {
    let mut renewal = Renewal::new(&lease(None), HOUR, at(0));
    assert_eq!(renewal.poll(at(100 * DAY)), Step::Sleep(None));
    renewal.handle_lost();
    assert_eq!(renewal.poll(at(100 * DAY)), Step::Acquire);
    renewal.handle_failure(at(100 * DAY));
    assert_eq!(renewal.poll(at(100 * DAY)), Step::Sleep(Some(100 * DAY + 2)));
}

#[test]
fn the_widest_margin_renews_a_minute_after_each_grant() {
    let margin = Duration::from_secs(1_439 * 60);
    assert_eq!(Renewal::new(&lease(Some(DAY)), margin, at(0)).poll(at(0)), Step::Sleep(Some(60)));
}

#[test]
fn a_lease_shorter_than_the_margin_is_not_renewed_without_pause() {
    let renewal = Renewal::new(&lease(Some(30)), HOUR, at(0));
    assert_eq!(renewal.poll(at(0)), Step::Sleep(Some(15)));
    assert_eq!(renewal.poll(at(15)), Step::Renew);
    let renewal = Renewal::new(&lease(Some(1)), HOUR, at(0));
    assert_eq!(renewal.poll(at(0)), Step::Sleep(Some(1)));
}

proptest! {
    /// Driven by its own deadlines, it never sleeps past the end and never asks twice in one second.
    #[test]
    fn deadlines_lie_ahead(
        margin in 0..100_000u64, outcomes in proptest::collection::vec((0..4u8, 0..100_000u64), 1..40),
    ) {
        let mut now = 1_000_000;
        let mut expires = now + DAY;
        let mut renewal = Renewal::new(&lease(Some(expires)), Duration::from_secs(margin), at(now));
        for (outcome, late) in outcomes {
            match renewal.poll(at(now)) {
                Step::Sleep(until) => {
                    let until = until.expect("only a reservation sleeps without an end");
                    prop_assert!(until > now);
                    now = until + if outcome == 3 { late } else { 0 };
                }
                Step::Renew => {
                    prop_assert!(now < expires);
                    match outcome {
                        0 => renewal.handle_failure(at(now)),
                        1 => renewal.handle_lost(),
                        _ => {
                            expires = now + 1 + late;
                            renewal.handle_renewed(&lease(Some(expires)), at(now));
                        }
                    }
                    if outcome != 1 {
                        prop_assert_ne!(renewal.poll(at(now)), Step::Renew);
                    }
                }
                Step::Acquire => {
                    match outcome {
                        0 => renewal.handle_failure(at(now)),
                        _ => {
                            expires = now + 1 + late;
                            renewal.handle_renewed(&lease(Some(expires)), at(now));
                        }
                    }
                    prop_assert!(matches!(renewal.poll(at(now)), Step::Sleep(_)));
                }
            }
        }
    }
}
