//! One peer's handshakes and timers (section 6). Time, session indices and randomness are arguments.
//!
//! The inputs are `begin`, `handle_*` and the two `watch_*`; each returns the [`Action`]s to carry out.
//! [`Peer::poll_timeout`] returns when to call [`Peer::handle_timeout`].

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

/// How long a handshake is retried (REKEY_ATTEMPT_TIME).
const ATTEMPT: Millis = 90_000;
/// Silence after sending data that means the session may no longer exist at the other end.
const RESPONSE_TIMEOUT: Millis = KEEPALIVE + REKEY_TIMEOUT;
/// Time without a new session after which keys are erased (section 6.3).
const FORGET_AFTER: Millis = 3 * REJECT_AFTER;
/// Minimum time between two initiations of one peer that are accepted: INITIATIONS_PER_SECOND
/// (drivers/net/wireguard/messages.h).
const MIN_INITIATION_GAP: Millis = 1000 / 50;

/// Number of previous sessions to keep.
const FORMER: usize = 2;

/// A step to carry out for a peer.
#[derive(Debug)]
pub enum Action {
    /// Send this handshake message.
    Send(SocketAddr, Vec<u8>),
    /// Send and receive with this session from now on.
    Use(Arc<Session>),
    /// Receive with this session. The first record proves that the peer has it; then call [`Peer::confirm`].
    Await(Arc<Session>),
    /// Stop receiving with the session of this index.
    Forget(SessionIndex),
    /// Send an empty record.
    Keepalive,
    /// The peer does not respond, or has no address: drop the packets that wait for a session.
    GiveUp,
}

/// The state of one peer.
pub struct Peer {
    /// The peer's number, by which workers refer to it.
    pub id: PeerId,
    /// The peer's public key.
    pub key: PublicKey,
    /// The address that the peer last sent from, or its configured address.
    pub endpoint: Option<SocketAddr>,
    /// The traffic that workers record.
    pub pulse: Arc<Pulse>,
    /// When the last handshake was completed that the peer has proved to be part of.
    pub last_handshake: Option<Millis>,
    psk: SecretKey,
    persistent: Millis,
    stamp: Stamp,
    attempt: Option<Attempt>,
    latest: Timestamp,
    /// When the last initiation was accepted.
    answered: Option<Millis>,
    current: Option<Arc<Session>>,
    next: Option<Arc<Session>>,
    /// Previous sessions, newest first: records sealed with them may still arrive. The kernel keeps one; but
    /// if both sides rekey at once, as two peers with steady traffic do, two sessions are replaced in one
    /// step.
    former: VecDeque<Arc<Session>>,
    timers: Timers,
}

/// A handshake that this node has initiated.
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

/// The external inputs of a handshake: the time, a free session index, and randomness.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The current time.
    pub now: Millis,
    /// The current time by the wall clock.
    pub stamp: Timestamp,
    /// An index that no session uses.
    pub index: SessionIndex,
    /// 0 to 333 milliseconds, so that two peers that begin at the same time do not keep doing so.
    pub jitter: Millis,
}

impl Peer {
    /// Creates a peer that has not sent anything yet.
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

    /// Sets the pre-shared key and the interval of persistent keepalives, 0 for none.
    pub fn configure(&mut self, psk: SecretKey, persistent: Millis, now: Millis) {
        self.psk = psk;
        if persistent != self.persistent {
            self.persistent = persistent;
            // Send the first immediately, which opens the path through a NAT.
            self.timers.persistent = (persistent > 0).then_some(now);
        }
    }

    /// Returns the session for sending.
    pub fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// Returns this node's index of the handshake in progress.
    pub fn attempting(&self) -> Option<SessionIndex> {
        self.attempt.as_ref().map(|attempt| attempt.local)
    }

    /// Begins a handshake, unless one has just begun. Gives up if the peer's endpoint is unknown.
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
        let begun = || noise::begin(private, &self.key, &self.psk, moment.index, &moment.stamp);
        let Some((to, (begun, mut message))) = self.endpoint.and_then(|to| Some((to, begun()?))) else {
            // Nothing is on its way that packets could wait for.
            actions.extend(self.attempt.take().map(|attempt| Action::Forget(attempt.local)));
            actions.push(Action::GiveUp);
            return;
        };
        self.stamp.put(&mut message, moment.now);
        let attempt = Attempt { begun, local: moment.index, first, sent: moment.now };
        let abandoned = self.attempt.replace(attempt);
        actions.extend(abandoned.map(|attempt| Action::Forget(attempt.local)));
        self.timers.again = Some(moment.now + REKEY_TIMEOUT + moment.jitter);
        actions.push(Action::Send(to, message.to_vec()));
    }

    /// Processes an authentic initiation from this peer. Returns false for replays and floods, which are
    /// ignored.
    pub fn handle_initiation(
        &mut self,
        initiation: Initiation,
        from: SocketAddr,
        moment: &Moment,
        actions: &mut Vec<Action>,
    ) -> bool {
        let flood = self.answered.is_some_and(|then| moment.now < then + MIN_INITIATION_GAP);
        if initiation.timestamp <= self.latest || flood {
            return false;
        }
        (self.latest, self.answered) = (initiation.timestamp, Some(moment.now));
        let remote = initiation.sender;
        let Some((mut message, keys)) = initiation.respond(&self.psk, moment.index) else { return false };
        // An initiation may be an old one, replayed after this node has restarted and forgotten the newest
        // timestamp. The first record of the session proves that the peer is there, and moves it.
        self.endpoint.get_or_insert(from);
        self.stamp.put(&mut message, moment.now);
        actions.push(Action::Send(from, message.to_vec()));
        let session = self.session((moment.index, remote), &keys, false, moment.now);
        actions.push(Action::Await(Arc::clone(&session)));
        forget(self.next.replace(session), actions);
        true
    }

    /// Processes a response to the handshake in progress. Returns true if it is authentic.
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
        // If both sides began at once, the peer may send with the session that it began until it receives on
        // this one.
        let awaited = self.next.take();
        self.switch_to(session, actions);
        if let Some(awaited) = awaited {
            self.retire(awaited, actions);
        }
        // Proves to the peer that this node has the session too.
        actions.push(Action::Keepalive);
        true
    }

    /// Switches to the awaited session, whose first record has arrived.
    pub fn confirm(&mut self, local: SessionIndex, actions: &mut Vec<Action>) {
        if let Some(session) = self.next.take_if(|next| next.local == local) {
            self.switch_to(session, actions);
        }
    }

    /// Stores the cookie of a cookie reply. Returns false if the reply does not belong to the last message.
    pub fn handle_cookie(&mut self, message: &[u8; COOKIE_LEN], now: Millis) -> bool {
        let Some(nonce) = message[8..].first_chunk::<24>() else { return false };
        self.stamp.take_cookie(nonce, &message[32..], now)
    }

    /// Starts the timer that begins a handshake if the peer does not respond.
    pub fn watch_answer(&mut self, now: Millis) {
        self.timers.unanswered.get_or_insert(now + RESPONSE_TIMEOUT);
    }

    /// Starts the timer that sends a keepalive if nothing else is sent.
    pub fn watch_silence(&mut self, now: Millis) {
        self.timers.owed.get_or_insert(now + KEEPALIVE);
    }

    /// Returns when the next timer expires.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let Timers { again, unanswered, owed, persistent, forget } = self.timers;
        [again, unanswered, owed, persistent, forget].into_iter().flatten().min()
    }

    /// Handles the timers that have expired.
    pub fn handle_timeout(&mut self, private: &SecretKey, moment: &Moment, actions: &mut Vec<Action>) {
        let now = moment.now;
        if expired(&mut self.timers.again, now)
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
        if expired(&mut self.timers.unanswered, now) {
            match self.pulse.unanswered(now, RESPONSE_TIMEOUT) {
                Found::Nothing => {}
                Found::At(then) => self.timers.unanswered = Some(then),
                Found::Now => self.begin(private, moment, actions),
            }
        }
        if expired(&mut self.timers.owed, now) {
            match self.pulse.owed(now, KEEPALIVE) {
                Found::Nothing => {}
                Found::At(then) => self.timers.owed = Some(then),
                Found::Now => actions.push(Action::Keepalive),
            }
        }
        if expired(&mut self.timers.persistent, now) {
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
        if expired(&mut self.timers.forget, now) {
            let sessions = self.current.take().into_iter().chain(self.next.take());
            for session in sessions.chain(self.former.drain(..)) {
                actions.push(Action::Forget(session.local));
            }
        }
    }

    /// Returns this node's indices of all the peer's sessions.
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
        self.timers.forget = Some(now + FORGET_AFTER);
        Arc::new(Session::new(self.id, indices, keys, initiator, now))
    }

    fn switch_to(&mut self, session: Arc<Session>, actions: &mut Vec<Action>) {
        self.last_handshake = Some(session.born);
        actions.push(Action::Use(Arc::clone(&session)));
        if let Some(former) = self.current.replace(session) {
            self.retire(former, actions);
        }
    }

    /// Keeps a session for records that may still arrive, and forgets the oldest one that is kept.
    fn retire(&mut self, session: Arc<Session>, actions: &mut Vec<Action>) {
        self.former.push_front(session);
        if self.former.len() > FORMER {
            forget(self.former.pop_back(), actions);
        }
    }
}

fn forget(session: Option<Arc<Session>>, actions: &mut Vec<Action>) {
    actions.extend(session.map(|session| Action::Forget(session.local)));
}

/// Stops the timer if it has expired. Returns whether it has.
fn expired(timer: &mut Option<Millis>, now: Millis) -> bool {
    timer.take_if(|at| *at <= now).is_some()
}

#[cfg(test)]
mod tests;
