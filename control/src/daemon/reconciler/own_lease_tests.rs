//! The life of our own lease under a clock that is only a number.

use std::sync::LazyLock;

use super::super::testing::*;
use super::*;

const NOW: u64 = 1_000_000;

/// This second on both clocks.
fn at(unix: u64) -> Now {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let instant = *START + Duration::from_secs(unix.saturating_sub(NOW));
    Now { instant, unix }
}

#[test]
fn a_lease_is_renewed_when_the_margin_is_left() {
    let (mut lease, own) = acquired(None);
    assert_eq!(lease.poll(&own, NOW), None);
    let due = NOW + DAY - HOUR.as_secs();
    let request = lease.poll(&own, due).expect("due");
    assert_eq!(request, Request::Renew(own.clone()));
    assert_eq!(lease.poll(&own, due + 1), None, "one request at a time");
    let renewed = owned(1, None, due + DAY);
    assert_eq!(lease.answer(Answer::Renewed(Ok(renewed.clone())), &own, due), Ok(Some(renewed)));
    assert_eq!(lease.poll(&own, due + 1), None);
}

#[test]
fn the_wall_clock_is_read_at_least_once_a_minute() {
    let (mut lease, own) = acquired(None);
    let now = at(NOW);
    assert_eq!(lease.poll_timeout(now), Some(now.instant + LONGEST_SLEEP));
    let near = Now { unix: now.unix + DAY - HOUR.as_secs() - 7, ..now };
    assert_eq!(lease.poll_timeout(near), Some(now.instant + Duration::from_secs(7)));
    // A wall clock that was stepped back does not count.
    let late = now.after(Duration::from_secs(DAY) - HOUR - Duration::from_secs(7));
    let back = Now { unix: late.unix - 2 * DAY, ..late };
    assert_eq!(lease.poll_timeout(back), Some(late.instant + Duration::from_secs(7)));
    let due = now.after(Duration::from_secs(DAY));
    assert_eq!(lease.poll_timeout(due), Some(due.instant));
    assert!(lease.poll(&own, due.unix).is_some());
    assert_eq!(lease.poll_timeout(due), None, "the answer is awaited");
}

#[test]
fn a_changed_wish_is_published_and_a_failure_is_retried_only_on_demand() {
    let (mut lease, own) = acquired(None);
    let wished = wish(7);
    lease.lease.publish(&own, &wished);
    let request = Request::Publish { own: own.clone(), wished: wished.clone() };
    assert_eq!(lease.poll_wishing(&own, 7, NOW), Some(request.clone()));
    let refused = StoreError::Lost { key: "10.3.1.0-24".into(), why: "it ran out or was removed" };
    assert_eq!(lease.answer(Answer::Published(Err(refused)), &own, NOW), Ok(None));
    let why = "our lease 10.3.1.0-24 is no longer stored as ours: it ran out or was removed";
    assert_eq!(lease.lease.problem(), Some(why));
    // The store may have done it before: the lease is looked for by either wish.
    let other = Owned { published: Lease { key: key(9), ..own.published.clone() }, wished: wish(1) };
    let acquire = lease.poll_wishing(&own, 7, NOW).expect("at once");
    assert_eq!(acquire.wished(), &wish(1));
    assert_eq!(lease.answer(Answer::Acquired(Ok(other)), &own, NOW), Ok(None));
    let acquire = lease.poll_wishing(&own, 7, NOW).expect("at once");
    assert!(matches!(&acquire, Request::Acquire { give_back: Some(other), .. } if *other == key(9)));
    assert_eq!(acquire.wished(), &wished);
    let granted = owned(7, None, NOW + DAY);
    assert_eq!(lease.answer(Answer::Acquired(Ok(granted.clone())), &own, NOW), Ok(Some(granted.clone())));
    lease.lease.publish(&granted, &wished);
    assert_eq!((lease.poll_wishing(&granted, 7, NOW), lease.lease.problem()), (None, None));
}

/// An administrator has overwritten the public address: the wish is met all the same.
#[test]
fn an_overwritten_address_is_published_once_and_never_in_a_loop() {
    let (mut lease, mut own) = acquired(Some(99));
    for _ in 0..3 {
        lease.lease.publish(&own, &wish(1));
        assert_eq!(lease.poll(&own, NOW), None);
    }
    lease.lease.publish(&own, &wish(7));
    assert!(matches!(lease.poll_wishing(&own, 7, NOW), Some(Request::Publish { .. })));
    own = owned(7, Some(99), NOW + DAY);
    assert_eq!(
        lease.answer(Answer::Published(Ok(own.clone())), &owned(1, Some(99), 0), NOW),
        Ok(Some(own.clone()))
    );
    lease.lease.publish(&own, &wish(7));
    assert_eq!(lease.poll_wishing(&own, 7, NOW), None);
}

#[test]
fn an_overwritten_address_is_no_lost_lease_but_taken_over() {
    let (mut lease, own) = acquired(None);
    let overwritten = owned(1, Some(99), NOW + DAY);
    assert_eq!(lease.event(&overwritten, &own, by_node), Ok(Some(overwritten.clone())));
    assert_eq!(
        lease.event(&own, &overwritten, by_node),
        Ok(Some(own.clone())),
        "the administrator takes it back"
    );
    // A renewal asks for the wish, and peers see what the administrator says.
    let request = lease.poll(&overwritten, NOW + DAY - 1).expect("due");
    assert_eq!(request.wished(), &wish(1));
}

#[test]
fn a_lease_that_another_node_has_written_is_lost() {
    let stranger = Owned { published: Lease { key: key(1), ..peer(2, 9) }, wished: wish(1) };
    let rival = Owned { published: Lease { key: key(1), ..peer(2, 1) }, wished: wish(1) };
    for (stored, holder, why) in [
        (&stranger, by_address as fn(&_, &_) -> _, TAKEN),
        (&stranger, by_node, TAKEN),
        (&rival, by_address, "another daemon publishes the same address; give each its own --public-ip"),
    ] {
        let (mut lease, own) = acquired(None);
        assert_eq!(lease.event(stored, &own, holder), Err(format!("lost the lease 10.3.1.0-24: {why}")));
    }
}

#[test]
fn a_late_event_of_our_own_former_wish_is_no_strangers() {
    let (mut lease, own) = acquired(None);
    lease.lease.publish(&own, &wish(7));
    assert!(lease.poll_wishing(&own, 7, NOW).is_some());
    let published = owned(7, None, NOW + DAY);
    lease.answer(Answer::Published(Ok(published.clone())), &own, NOW).expect("published");
    assert_eq!(lease.event(&own, &published, by_address), Ok(Some(own.clone())));
    assert_eq!(lease.event(&published, &own, by_address), Ok(Some(published)), "the last event is right");
}

#[test]
fn what_the_store_did_before_its_answer_got_lost_is_taken_over() {
    let (mut lease, own) = acquired(None);
    lease.lease.publish(&own, &wish(7));
    assert!(lease.poll_wishing(&own, 7, NOW).is_some());
    lease.answer(Answer::Published(Err(unreachable())), &own, NOW).expect("retried");
    let published = owned(7, None, NOW + DAY);
    assert_eq!(lease.event(&published, &own, by_address), Ok(Some(published)));
}

#[test]
fn a_removed_lease_is_acquired_again_even_if_a_request_was_under_way() {
    let (mut lease, own) = acquired(None);
    lease.lease.handle_event(Own::Removed, None, &own, by_address, at(NOW)).expect("goes on");
    assert!(matches!(lease.poll(&own, NOW), Some(Request::Acquire { .. })));
    // It is removed again after the store has granted it, and before the answer.
    lease.lease.handle_event(Own::Removed, None, &own, by_address, at(NOW)).expect("goes on");
    lease.answer(Answer::Acquired(Ok(own.clone())), &own, NOW).expect("granted");
    assert!(matches!(lease.poll(&own, NOW), Some(Request::Acquire { .. })));
    lease.answer(Answer::Acquired(Ok(own.clone())), &own, NOW).expect("granted");
    assert_eq!(lease.poll(&own, NOW), None);
}

#[test]
fn another_subnet_ends_the_node_and_is_given_back() {
    let (mut lease, own) = acquired(None);
    lease.lease.handle_event(Own::Removed, None, &own, by_address, at(NOW)).expect("goes on");
    assert!(lease.poll(&own, NOW).is_some());
    let other = Owned { published: Lease { key: key(9), ..own.published.clone() }, wished: wish(1) };
    match lease.lease.handle_answer(Answer::Acquired(Ok(other)), &own, by_address, at(NOW)) {
        Err(End::Failed { error, give_back }) => {
            assert_eq!(error.to_string(), format!("lost the lease 10.3.1.0-24: {TAKEN}"));
            assert_eq!(give_back, Some(key(9)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_remembered_lease_is_confirmed_before_anything_else() {
    let own = owned(1, Some(99), NOW + DAY);
    let remembered = || Machine { lease: OwnLease::remembered(&own, HOUR, at(NOW)) };
    let mut lease = remembered();
    let request = lease.poll(&own, NOW).expect("at once");
    assert!(matches!(&request, Request::Confirm { wished, .. } if *wished == wish(1)), "{request:?}");
    assert!(!lease.lease.is_confirmed());
    assert_eq!(lease.answer(Answer::Confirmed(Ok(own.clone())), &own, NOW), Ok(Some(own.clone())));
    assert_eq!(lease.poll(&own, NOW), None);

    assert!(lease.lease.is_confirmed());

    let other = Owned { published: Lease { key: key(9), ..own.published.clone() }, wished: wish(1) };
    for answer in [Answer::Reconfigured, Answer::Confirmed(Ok(other))] {
        let mut lease = remembered();
        assert!(lease.poll(&own, NOW).is_some());
        assert!(matches!(lease.lease.handle_answer(answer, &own, by_address, at(NOW)), Err(End::Restart)));
    }
}

#[test]
fn a_store_that_cannot_be_reached_is_asked_again_in_a_minute() {
    let (mut lease, own) = acquired(None);
    let due = NOW + DAY - HOUR.as_secs();
    assert!(lease.poll(&own, due).is_some());
    lease.answer(Answer::Renewed(Err(unreachable())), &own, due).expect("retried");
    assert_eq!(lease.poll(&own, due + 59), None);
    assert!(lease.poll(&own, due + 60).is_some());
}

/// The machine, and what it says as text.
struct Machine {
    lease: OwnLease,
}

fn acquired(overwrite: Option<u8>) -> (Machine, Owned) {
    let own = owned(1, overwrite, NOW + DAY);
    (Machine { lease: OwnLease::acquired(&own, HOUR, at(NOW)) }, own)
}

impl Machine {
    fn poll(&mut self, own: &Owned, now: u64) -> Option<Request> {
        self.poll_wishing(own, 1, now)
    }

    fn poll_wishing(&mut self, own: &Owned, host: u8, now: u64) -> Option<Request> {
        let config = context(underlay(1, 1500)).config;
        self.lease.poll_request(own, &wish(host), &config, at(now))
    }

    fn poll_timeout(&self, now: Now) -> Option<Instant> {
        self.lease.poll_timeout(now)
    }

    fn answer(&mut self, answer: Answer, own: &Owned, now: u64) -> Result<Option<Owned>, String> {
        self.lease.handle_answer(answer, own, by_address, at(now)).map_err(text)
    }

    fn event(
        &mut self,
        stored: &Owned,
        own: &Owned,
        holder: impl Fn(&LeaseAttrs, &Lease) -> Holder,
    ) -> Result<Option<Owned>, String> {
        let event = self.lease.handle_event(Own::Written, Some(&stored.published), own, holder, at(NOW));
        event.map_err(text)
    }
}

fn text(end: End) -> String {
    match end {
        End::Restart => "restart".to_owned(),
        End::Failed { error, .. } => error.to_string(),
    }
}
