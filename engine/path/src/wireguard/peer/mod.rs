//! One peer's handshakes and timers (section 6). Time, names and randomness are arguments.
//!
//! Inputs are `begin`, `handle_*` and the two `watch_*`; each says by [`Action`]s what is to be done.
//! [`Peer::poll_timeout`] says when [`Peer::handle_timeout`] is to be called.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use batch::PeerId;
use wire::wireguard::{COOKIE_LEN, RESPONSE_LEN};

use super::noise::{self, Begun, Initiation, Timestamp};
use super::pulse::{Found, Pulse};
use super::session::{KEEPALIVE, Keys, Millis, REJECT_AFTER, REKEY_TIMEOUT, Session, SessionIndex};
use super::stamp::Stamp;
use super::{PublicKey, SecretKey};

/// How long a handshake is tried (REKEY_ATTEMPT_TIME).
const ATTEMPT: Millis = 90_000;
/// Nothing heard for so long after something was sent: the session may be dead at the other end.
const ANSWER_WITHIN: Millis = KEEPALIVE + REKEY_TIMEOUT;
/// No new session for so long: keys are forgotten (section 6.3).
const FORGET_AFTER: Millis = 3 * REJECT_AFTER;
/// The least time between two initiations of one peer that are answered: INITIATIONS_PER_SECOND
/// (drivers/net/wireguard/messages.h).
const LEAST_GAP: Millis = 1000 / 50;

/// Sessions kept besides the one in use and the one to come.
const FORMER: usize = 2;

/// What is to be done for a peer.
#[derive(Debug)]
pub enum Action {
    /// Send this handshake message.
    Send(SocketAddr, Vec<u8>),
    /// Use this session from now on for sending, and take records of it.
    Use(Arc<Session>),
    /// Take records of this session; the first proves that the peer has it, then see [`Peer::confirm`].
    Await(Arc<Session>),
    /// Take no records under this name any more.
    Forget(SessionIndex),
    /// Send an empty record.
    Keepalive,
    /// The peer does not answer: what waits for a session is to be dropped.
    GiveUp,
}

/// A peer.
pub struct Peer {
    /// Its number, which the workers know it by.
    pub id: PeerId,
    /// Its key.
    pub key: PublicKey,
    /// Where it was last heard, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// What the workers note.
    pub pulse: Arc<Pulse>,
    /// When the last handshake was done.
    pub last_handshake: Option<Millis>,
    psk: SecretKey,
    persistent: Millis,
    stamp: Stamp,
    attempt: Option<Attempt>,
    latest: Timestamp,
    /// When the last initiation was answered.
    answered: Option<Millis>,
    current: Option<Arc<Session>>,
    next: Option<Arc<Session>>,
    /// Sessions that were in use, the youngest first: records sealed with them are still on their way. The kernel keeps
    /// one; but where both sides begin the next at once, as two with steady traffic do, two are left behind in one step.
    former: VecDeque<Arc<Session>>,
    timers: Timers,
}

/// A handshake that we began.
struct Attempt {
    begun: Begun,
    local: SessionIndex,
    first: Millis,
    sent: Millis,
}

#[derive(Default)]
struct Timers {
    again: Option<Millis>,
    unanswered: Option<Millis>,
    owed: Option<Millis>,
    persistent: Option<Millis>,
    forget: Option<Millis>,
}

/// What a handshake needs of outside: the time, a free name, and a little randomness.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Now.
    pub now: Millis,
    /// Now by the wall clock.
    pub stamp: Timestamp,
    /// An index for a session that no other session has.
    pub index: SessionIndex,
    /// 0 to 333 milliseconds, so that two peers that begin at once do not go on doing so.
    pub jitter: Millis,
}

impl Peer {
    /// A peer that has not been heard yet.
    pub fn new(id: PeerId, key: PublicKey) -> Peer {
        Peer {
            id,
            key,
            endpoint: None,
            pulse: Arc::default(),
            last_handshake: None,
            psk: SecretKey([0; 32]),
            persistent: 0,
            stamp: Stamp::new(&key),
            attempt: None,
            latest: [0; 12],
            answered: None,
            current: None,
            next: None,
            former: VecDeque::new(),
            timers: Timers::default(),
        }
    }

    /// Sets the pre-shared key, and the interval of persistent keepalives, 0 for none.
    pub fn configure(&mut self, psk: SecretKey, persistent: Millis, now: Millis) {
        self.psk = psk;
        if persistent != self.persistent {
            self.persistent = persistent;
            // The first at once: it opens the way through a NAT.
            self.timers.persistent = (persistent > 0).then_some(now);
        }
    }

    /// The session to send with.
    pub fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// The handshake under way, by our index for its session.
    pub fn attempting(&self) -> Option<SessionIndex> {
        self.attempt.as_ref().map(|attempt| attempt.local)
    }

    /// Begins a handshake, unless one was begun just now or nobody knows where the peer is.
    pub fn begin(&mut self, private: &SecretKey, moment: &Moment, actions: &mut Vec<Action>) {
        let recent = |attempt: &Attempt| moment.now < attempt.sent + REKEY_TIMEOUT;
        if self.attempt.as_ref().is_some_and(recent) {
            return;
        }
        let first = self.attempt.as_ref().map_or(moment.now, |attempt| attempt.first);
        self.send_initiation(private, first, moment, actions);
    }

    fn send_initiation(
        &mut self,
        private: &SecretKey,
        first: Millis,
        moment: &Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(to) = self.endpoint else { return };
        let begun = noise::begin(private, &self.key, &self.psk, moment.index, &moment.stamp);
        let Some((begun, mut message)) = begun else { return };
        self.stamp.put(&mut message, moment.now);
        let attempt = Attempt { begun, local: moment.index, first, sent: moment.now };
        let abandoned = self.attempt.replace(attempt);
        actions.extend(abandoned.map(|attempt| Action::Forget(attempt.local)));
        self.timers.again = Some(moment.now + REKEY_TIMEOUT + moment.jitter);
        actions.push(Action::Send(to, message.to_vec()));
    }

    /// Takes in an authentic initiation of this peer. Replays and floods are ignored.
    pub fn handle_initiation(
        &mut self,
        initiation: Initiation,
        from: SocketAddr,
        moment: &Moment,
        actions: &mut Vec<Action>,
    ) -> bool {
        let flood = self.answered.is_some_and(|then| moment.now < then + LEAST_GAP);
        if initiation.timestamp <= self.latest || flood {
            return false;
        }
        (self.latest, self.answered) = (initiation.timestamp, Some(moment.now));
        let remote = initiation.sender;
        let Some((mut message, keys)) = initiation.respond(&self.psk, moment.index) else { return false };
        self.endpoint = Some(from);
        self.stamp.put(&mut message, moment.now);
        actions.push(Action::Send(from, message.to_vec()));
        let session = self.session((moment.index, remote), &keys, false, moment.now);
        actions.push(Action::Await(Arc::clone(&session)));
        forget(self.next.replace(session), actions);
        true
    }

    /// Takes in a response to the handshake under way; `true` if it is authentic.
    pub fn handle_response(
        &mut self,
        message: &[u8; RESPONSE_LEN],
        from: SocketAddr,
        now: Millis,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(attempt) = &mut self.attempt else { return false };
        let Some((remote, keys)) = attempt.begun.finish(message) else { return false };
        let indices = (attempt.local, remote);
        self.attempt = None;
        self.timers.again = None;
        self.endpoint = Some(from);
        let session = self.session(indices, &keys, true, now);
        // Where both began at once, the peer may send with the session that it began until it has seen this one.
        let awaited = self.next.take();
        self.take_up(session, actions);
        if let Some(awaited) = awaited {
            self.leave(awaited, actions);
        }
        // It proves to the peer that we have the session too.
        actions.push(Action::Keepalive);
        true
    }

    /// The first record of the awaited session has come.
    pub fn confirm(&mut self, local: SessionIndex, actions: &mut Vec<Action>) {
        if let Some(session) = self.next.take_if(|next| next.local == local) {
            self.take_up(session, actions);
        }
    }

    /// Takes in the cookie that the peer asks for.
    pub fn handle_cookie(&mut self, message: &[u8; COOKIE_LEN], now: Millis) -> bool {
        let Some(nonce) = message[8..].first_chunk::<24>() else { return false };
        self.stamp.take_cookie(nonce, &message[32..], now)
    }

    /// Starts the timer that begins a handshake if nothing answers.
    pub fn watch_answer(&mut self, now: Millis) {
        self.timers.unanswered.get_or_insert(now + ANSWER_WITHIN);
    }

    /// Starts the timer that sends a keepalive if nothing else is sent.
    pub fn watch_silence(&mut self, now: Millis) {
        self.timers.owed.get_or_insert(now + KEEPALIVE);
    }

    /// When something is to be done next.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let Timers { again, unanswered, owed, persistent, forget } = self.timers;
        [again, unanswered, owed, persistent, forget].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, private: &SecretKey, moment: &Moment, actions: &mut Vec<Action>) {
        let now = moment.now;
        if due(&mut self.timers.again, now)
            && let Some(attempt) = &self.attempt
        {
            if now >= attempt.first + ATTEMPT {
                actions.extend([Action::Forget(attempt.local), Action::GiveUp]);
                self.attempt = None;
            } else {
                let first = attempt.first;
                self.send_initiation(private, first, moment, actions);
            }
        }
        if due(&mut self.timers.unanswered, now) {
            match self.pulse.unanswered(now, ANSWER_WITHIN) {
                Found::Nothing => {}
                Found::At(then) => self.timers.unanswered = Some(then),
                Found::Now => self.begin(private, moment, actions),
            }
        }
        if due(&mut self.timers.owed, now) {
            match self.pulse.owed(now, KEEPALIVE) {
                Found::Nothing => {}
                Found::At(then) => self.timers.owed = Some(then),
                Found::Now => actions.push(Action::Keepalive),
            }
        }
        if due(&mut self.timers.persistent, now) {
            let quiet_until = match self.pulse.last() {
                0 => now,
                last => last + self.persistent,
            };
            if quiet_until <= now {
                actions.push(Action::Keepalive);
            }
            self.timers.persistent =
                Some(if quiet_until > now { quiet_until } else { now + self.persistent });
        }
        if due(&mut self.timers.forget, now) {
            let sessions = self.current.take().into_iter().chain(self.next.take());
            for session in sessions.chain(self.former.drain(..)) {
                actions.push(Action::Forget(session.local));
            }
        }
    }

    /// Our indices of all the peer's sessions.
    pub fn indices(&self) -> impl Iterator<Item = SessionIndex> {
        let sessions = self.current.iter().chain(&self.next).chain(&self.former);
        sessions.map(|session| session.local).chain(self.attempting())
    }

    fn session(
        &mut self,
        indices: (SessionIndex, SessionIndex),
        keys: &Keys,
        initiator: bool,
        now: Millis,
    ) -> Arc<Session> {
        self.last_handshake = Some(now);
        self.timers.forget = Some(now + FORGET_AFTER);
        Arc::new(Session::new(self.id, indices, keys, initiator, now))
    }

    fn take_up(&mut self, session: Arc<Session>, actions: &mut Vec<Action>) {
        actions.push(Action::Use(Arc::clone(&session)));
        if let Some(former) = self.current.replace(session) {
            self.leave(former, actions);
        }
    }

    /// Keeps a session for what is still on its way, and forgets the oldest of those that are kept.
    fn leave(&mut self, session: Arc<Session>, actions: &mut Vec<Action>) {
        self.former.push_front(session);
        if self.former.len() > FORMER {
            forget(self.former.pop_back(), actions);
        }
    }
}

fn forget(session: Option<Arc<Session>>, actions: &mut Vec<Action>) {
    actions.extend(session.map(|session| Action::Forget(session.local)));
}

/// Whether the timer has run out; it rests then.
fn due(timer: &mut Option<Millis>, now: Millis) -> bool {
    timer.take_if(|at| *at <= now).is_some()
}

#[cfg(test)]
mod tests;
