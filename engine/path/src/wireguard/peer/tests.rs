use super::*;
use crate::wireguard::session::REKEY_AFTER;
use wire::wireguard::INITIATION_LEN;

const LEFT: SecretKey = SecretKey([1; 32]);
const RIGHT: SecretKey = SecretKey([2; 32]);

/// Two nodes that are each other's peer, and a clock.
struct Pair {
    left: Peer,
    right: Peer,
    now: Millis,
    index: u32,
}

impl Pair {
    fn new() -> Pair {
        let mut left = Peer::new(PeerId(0), RIGHT.public());
        left.endpoint = Some(at(2));
        Pair { left, right: Peer::new(PeerId(0), LEFT.public()), now: 1_000, index: 100 }
    }

    fn moment(&mut self) -> Moment {
        self.index += 1;
        let mut stamp = [0; 12];
        stamp[4..].copy_from_slice(&self.now.to_be_bytes());
        Moment { now: self.now, stamp, index: SessionIndex(self.index), jitter: 0 }
    }

    fn begin(&mut self) -> Vec<Action> {
        let (moment, mut actions) = (self.moment(), Vec::new());
        self.left.begin(&LEFT, &moment, &mut actions);
        actions
    }

    fn time_out(&mut self) -> Vec<Action> {
        let (moment, mut actions) = (self.moment(), Vec::new());
        self.left.handle_timeout(&LEFT, &moment, &mut actions);
        actions
    }

    /// Returns the right side's actions for an initiation, or `None` if it is ignored.
    fn respond(&mut self, message: &[u8; INITIATION_LEN]) -> Option<Vec<Action>> {
        let (moment, mut actions) = (self.moment(), Vec::new());
        let initiation = noise::receive(&RIGHT, message).expect("authentic");
        self.right.handle_initiation(initiation, at(1), &moment, &mut actions).then_some(actions)
    }

    /// Completes a handshake that the left side begins, and returns the indices of its session.
    fn shake(&mut self) -> (SessionIndex, SessionIndex) {
        let first = message(&self.begin());
        let actions = self.respond(&first).expect("taken");
        let (Action::Send(_, second), Action::Await(awaited)) = (&actions[0], &actions[1]) else {
            panic!("{actions:?}")
        };
        let mut actions = Vec::new();
        let second = second.as_slice().try_into().unwrap();
        assert!(self.left.handle_response(&second, at(2), self.now, &mut actions));
        let used = actions
            .iter()
            .find_map(|action| if let Action::Use(session) = action { Some(session) } else { None });
        let used = used.expect("a session");
        assert_eq!((used.local, used.remote), (awaited.remote, awaited.local));
        (used.local, awaited.local)
    }
}

fn at(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], 51820))
}

fn message<const LEN: usize>(actions: &[Action]) -> [u8; LEN] {
    let sent = actions
        .iter()
        .find_map(|action| if let Action::Send(_, bytes) = action { Some(bytes) } else { None });
    sent.expect("a message").as_slice().try_into().expect("its length")
}

#[test]
fn both_sides_get_a_session_and_the_first_record_confirms_it() {
    let mut pair = Pair::new();
    let (_, right) = pair.shake();
    assert!(
        pair.left.current().is_some() && pair.right.current().is_none(),
        "the responder waits for a record"
    );
    let mut actions = Vec::new();
    pair.right.confirm(SessionIndex(right.0 + 1), &mut actions);
    assert!(actions.is_empty());
    pair.right.confirm(right, &mut actions);
    assert!(matches!(&actions[..], [Action::Use(session)] if session.local == right));
    assert_eq!(pair.right.endpoint, Some(at(1)), "the source of the initiation");
}

/// Both sides begin at once. Each must know the session that the other one sends with.
#[test]
fn after_crossing_handshakes_each_side_knows_the_others_session() {
    let mut pair = Pair::new();
    pair.right.endpoint = Some(at(1));
    // Both sides keep sending with an older session meanwhile.
    let in_use = pair.shake();
    pair.right.confirm(in_use.1, &mut Vec::new());
    pair.now += REKEY_AFTER;
    let ours = message(&pair.begin());
    let (moment, mut actions) = (pair.moment(), Vec::new());
    pair.right.begin(&RIGHT, &moment, &mut actions);
    let theirs = message(&actions);
    let right_answers = pair.respond(&ours).expect("taken");
    let (moment, mut left_answers) = (pair.moment(), Vec::new());
    let initiation = noise::receive(&LEFT, &theirs).expect("authentic");
    assert!(pair.left.handle_initiation(initiation, at(2), &moment, &mut left_answers));
    let mut done = Vec::new();
    assert!(pair.left.handle_response(&message(&right_answers), at(2), pair.now, &mut done));
    assert!(pair.right.handle_response(&message(&left_answers), at(1), pair.now, &mut done));
    let known = |peer: &Peer, index| peer.indices().any(|own| own == index);
    let (left, right) = (pair.left.current().expect("one"), pair.right.current().expect("one"));
    assert!(known(&pair.right, left.remote) && known(&pair.left, right.remote));
    assert!(known(&pair.left, in_use.0) && known(&pair.right, in_use.1));
    assert!(!done.iter().any(|action| matches!(action, Action::Forget(_))));
}

#[test]
fn the_current_and_two_previous_sessions_are_kept() {
    let mut pair = Pair::new();
    let mut indices = Vec::new();
    for _ in 0..4 {
        indices.push(pair.shake());
        pair.right.confirm(indices[indices.len() - 1].1, &mut Vec::new());
        pair.now += 6_000;
    }
    let kept: Vec<SessionIndex> = pair.left.indices().collect();
    assert_eq!(kept, [indices[3].0, indices[2].0, indices[1].0]);
    assert_eq!(pair.right.indices().collect::<Vec<_>>(), [indices[3].1, indices[2].1, indices[1].1]);
}

#[test]
fn every_attempt_without_a_response_is_forgotten() {
    let mut pair = Pair::new();
    pair.begin();
    let mut forgotten = Vec::new();
    let mut tried = vec![pair.left.attempting().expect("a try")];
    while let Some(at) = pair.left.poll_timeout() {
        pair.now = at;
        let actions = pair.time_out();
        forgotten.extend(
            actions
                .iter()
                .filter_map(|action| if let Action::Forget(index) = action { Some(*index) } else { None }),
        );
        tried.extend(pair.left.attempting().filter(|index| !tried.contains(index)));
    }
    assert!(tried.len() > 10, "{tried:?}");
    assert_eq!(forgotten, tried, "the indices are not known any more");
}

#[test]
fn replays_and_floods_are_ignored() {
    let mut pair = Pair::new();
    let first = message(&pair.begin());
    assert!(pair.respond(&first).is_some());
    pair.now += 1_000;
    assert!(pair.respond(&first).is_none(), "the same timestamp");
    pair.now += REKEY_TIMEOUT;
    let second = message(&pair.begin());
    assert!(pair.respond(&second).is_some());
    pair.left.attempt = None;
    pair.now += 1;
    let third = message(&pair.begin());
    assert!(pair.respond(&third).is_none(), "too soon after the previous one");
    let mut actions = Vec::new();
    assert!(
        !pair.right.handle_response(&[2; RESPONSE_LEN], at(9), pair.now, &mut actions),
        "no handshake in progress"
    );
    assert!(actions.is_empty());
}

#[test]
fn a_handshake_without_a_response_is_retried_and_given_up() {
    let mut pair = Pair::new();
    assert_eq!(pair.begin().len(), 1);
    assert!(pair.begin().is_empty(), "one is in progress");
    let mut sent = 1;
    loop {
        pair.now = pair.left.poll_timeout().expect("a timer");
        match &pair.time_out()[..] {
            [Action::Forget(_), Action::Send(to, _)] => {
                assert_eq!(*to, at(2));
                sent += 1;
            }
            [Action::Forget(_), Action::GiveUp] => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((sent, pair.now), (18, 1_000 + ATTEMPT));
    assert_eq!((pair.left.poll_timeout(), pair.left.attempting()), (None, None));
    // The peer's endpoint is unknown.
    pair.left.endpoint = None;
    assert!(matches!(pair.begin()[..], [Action::GiveUp]), "nothing waits for it");
}

#[test]
fn silence_after_sending_begins_a_handshake_and_a_response_prevents_it() {
    let mut pair = Pair::new();
    pair.shake();
    let start = pair.now;
    assert!(pair.left.pulse.note_sent(start, true, 100));
    pair.left.watch_answer(start);
    pair.now = start + RESPONSE_TIMEOUT - 1;
    assert!(pair.time_out().is_empty());
    pair.now += 1;
    assert!(matches!(pair.time_out()[..], [Action::Send(..)]));
    let mut pair = Pair::new();
    pair.shake();
    assert!(pair.left.pulse.note_sent(start, true, 100));
    pair.left.watch_answer(start);
    pair.left.pulse.note_received(start + 1, false, 32);
    pair.now = start + RESPONSE_TIMEOUT;
    assert!(pair.time_out().is_empty());
}

#[test]
fn received_data_is_answered_by_a_keepalive_unless_something_is_sent() {
    let mut pair = Pair::new();
    pair.shake();
    let start = pair.now;
    assert!(pair.left.pulse.note_received(start, true, 100));
    pair.left.watch_silence(start);
    pair.now = start + KEEPALIVE;
    assert!(matches!(pair.time_out()[..], [Action::Keepalive]));
    assert!(pair.left.pulse.note_received(pair.now, true, 100), "the timer has stopped");
    pair.left.watch_silence(pair.now);
    pair.left.pulse.note_sent(pair.now + 1, true, 100);
    pair.now += KEEPALIVE;
    assert!(pair.time_out().is_empty());
}

#[test]
fn persistent_keepalives_are_sent_only_after_silence() {
    let mut pair = Pair::new();
    pair.left.configure(SecretKey([0; 32]), 25_000, pair.now);
    assert!(matches!(pair.time_out()[..], [Action::Keepalive]), "the first is sent immediately");
    pair.left.pulse.note_sent(pair.now, false, 32);
    pair.now += 20_000;
    pair.left.pulse.note_received(pair.now, false, 32);
    let heard = pair.now;
    pair.now = pair.left.poll_timeout().expect("a timer");
    assert!(pair.time_out().is_empty());
    pair.now = pair.left.poll_timeout().expect("a timer");
    assert_eq!(pair.now, heard + 25_000);
    assert!(matches!(pair.time_out()[..], [Action::Keepalive]));
    pair.left.configure(SecretKey([0; 32]), 0, pair.now);
    assert_eq!(pair.left.poll_timeout(), None);
}

#[test]
fn keys_are_erased_when_they_are_no_longer_needed() {
    let mut pair = Pair::new();
    let (left, _) = pair.shake();
    pair.now += FORGET_AFTER;
    assert!(matches!(pair.time_out()[..], [Action::Forget(index)] if index == left));
    assert!(pair.left.current().is_none() && pair.left.poll_timeout().is_none());
}

/// After a restart this node has forgotten which initiations it has seen.
#[test]
fn an_old_initiation_after_a_restart_moves_nothing() {
    let mut pair = Pair::new();
    let old = message(&pair.begin());
    let older = pair.respond(&old).map(|_| old).expect("taken");
    pair.now += REKEY_TIMEOUT;
    pair.left.attempt = None;
    let newer = message(&pair.begin());
    pair.right = Peer::new(PeerId(0), LEFT.public());
    pair.right.endpoint = Some(at(1));
    for replayed in [older, newer] {
        let (moment, mut actions) = (pair.moment(), Vec::new());
        let initiation = noise::receive(&RIGHT, &replayed).expect("authentic");
        assert!(pair.right.handle_initiation(initiation, at(66), &moment, &mut actions));
        assert_eq!(pair.right.endpoint, Some(at(1)), "an initiation alone does not move the peer");
        assert_eq!(pair.right.last_handshake, None, "nor does it complete a handshake");
        pair.now += MIN_INITIATION_GAP;
    }
}

#[test]
fn a_moved_peers_session_is_complete_with_its_first_record() {
    let mut pair = Pair::new();
    pair.right.endpoint = Some(at(9));
    let (_, right) = pair.shake();
    assert_eq!((pair.right.endpoint, pair.right.last_handshake), (Some(at(9)), None));
    pair.now += 40;
    pair.right.confirm(right, &mut Vec::new());
    assert!(pair.right.last_handshake.is_some());
}
