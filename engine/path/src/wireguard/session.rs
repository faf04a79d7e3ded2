//! One session: two keys, a counter and an age. Records are sealed and opened in place.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use batch::{PeerId, WorkerIndex};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wire::wireguard::{HEADER_LEN, Header, PADDING, TAG_LEN};
use zeroize::Zeroize;

/// Milliseconds on a monotonic clock that goes on in suspend.
pub type Millis = u64;

/// The age at which the initiator of a session requests the next one when it sends (REKEY_AFTER_TIME, section
/// 6.1).
pub const REKEY_AFTER: Millis = 120_000;
/// The age at which a session expires (REJECT_AFTER_TIME).
pub const REJECT_AFTER: Millis = 180_000;
/// The age at which the initiator requests the next session when it receives (section 6.2), so that a peer
/// that only sends is not cut off.
const REKEY_ON_RECEIVE: Millis = REJECT_AFTER - KEEPALIVE - REKEY_TIMEOUT;
/// KEEPALIVE_TIMEOUT.
pub const KEEPALIVE: Millis = 10_000;
/// REKEY_TIMEOUT.
pub const REKEY_TIMEOUT: Millis = 5_000;
/// REKEY_AFTER_MESSAGES.
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// REJECT_AFTER_MESSAGES.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// One side's index of a session, which the other side writes into each record (section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionIndex(pub u32);

/// The owner of a session that has none.
const NOBODY: u32 = u32::MAX;

/// Bytes that a record adds to a packet, without padding.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// A session, shared by the workers that use it.
pub struct Session {
    /// The peer of the session.
    pub peer: PeerId,
    /// This node's index of the session, which the peer writes into each record.
    pub local: SessionIndex,
    /// The peer's index of the session.
    pub remote: SessionIndex,
    /// Whether this node initiated the handshake.
    pub initiator: bool,
    /// When the handshake was completed.
    pub born: Millis,
    seal: LessSafeKey,
    open: LessSafeKey,
    counter: AtomicU64,
    rekeying: AtomicBool,
    /// The worker that has the replay window, see [`Session::owner`].
    owner: AtomicU32,
}

/// Whether a session is usable for sending, and whether the caller must request the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The session is usable.
    Good,
    /// The session is usable, and the caller is the first to find that the next one is due.
    Rekey,
    /// The session is too old or has no counters left.
    Expired,
}

/// The raw keys of a session, which [`noise`](super::noise) derives.
pub struct Keys {
    /// The key for sending.
    pub send: [u8; 32],
    /// The key for receiving.
    pub receive: [u8; 32],
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.send.zeroize();
        self.receive.zeroize();
    }
}

impl Session {
    /// Creates a session with `peer` from a handshake that was completed at `born`.
    pub fn new(
        peer: PeerId,
        (local, remote): (SessionIndex, SessionIndex),
        keys: &Keys,
        initiator: bool,
        born: Millis,
    ) -> Session {
        Session {
            peer,
            local,
            remote,
            initiator,
            born,
            seal: key(&keys.send),
            open: key(&keys.receive),
            counter: AtomicU64::new(0),
            rekeying: AtomicBool::new(false),
            owner: AtomicU32::new(NOBODY),
        }
    }

    /// Returns the worker that receives with this session, if there is one yet. A session has one replay
    /// window, so records that arrive at other workers are forwarded to the owner.
    #[inline]
    pub fn owner(&self) -> Option<WorkerIndex> {
        Some(self.owner.load(Ordering::Relaxed)).filter(|owner| *owner != NOBODY).map(WorkerIndex)
    }

    /// Makes the worker that has opened the first record the owner. Returns false if another worker was
    /// faster. Must not be called before the record is opened, or a stranger could decide which worker
    /// receives.
    pub fn claim(&self, worker: WorkerIndex) -> bool {
        self.owner.compare_exchange(NOBODY, worker.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns whether the session is usable for sending at `now`.
    #[inline]
    pub fn send_standing(&self, now: Millis) -> Standing {
        let sent = self.counter.load(Ordering::Relaxed);
        let age = now.saturating_sub(self.born);
        if age >= REJECT_AFTER || sent >= REJECT_AFTER_MESSAGES {
            return Standing::Expired;
        }
        let due = sent >= REKEY_AFTER_MESSAGES || (self.initiator && age >= REKEY_AFTER);
        if due && self.first_to_rekey() { Standing::Rekey } else { Standing::Good }
    }

    /// Whether the session is too old for receiving at `now`.
    #[inline]
    pub fn has_expired(&self, now: Millis) -> bool {
        now.saturating_sub(self.born) >= REJECT_AFTER
    }

    /// Whether the caller, who has received an authentic record at `now`, is the first to find that the next
    /// session is due. Anyone can forge records, so this must not be called before the record is opened.
    #[inline]
    pub fn is_rekey_due(&self, now: Millis) -> bool {
        self.initiator && now.saturating_sub(self.born) >= REKEY_ON_RECEIVE && self.first_to_rekey()
    }

    #[inline]
    fn first_to_rekey(&self) -> bool {
        !self.rekeying.swap(true, Ordering::Relaxed)
    }

    /// Makes the next caller get [`Standing::Rekey`] again, because the request for the next session was not
    /// delivered.
    #[cold]
    pub fn retry_rekey(&self) {
        self.rekeying.store(false, Ordering::Relaxed);
    }

    /// Allocates `count` consecutive counters and returns the first. No counter is returned twice.
    #[inline]
    pub fn take_counters(&self, count: u64) -> u64 {
        self.counter.fetch_add(count, Ordering::Relaxed)
    }

    /// Seals the packet of `len` bytes at `record[HEADER_LEN..]`, padded to at most `mtu`, and returns the
    /// length of the record. Returns `None` if `record` is too short.
    #[inline]
    pub fn seal(&self, record: &mut [u8], len: usize, mtu: usize, counter: u64) -> Option<usize> {
        let padded = len.next_multiple_of(PADDING).min(mtu.max(len));
        let (header, rest) = record.split_first_chunk_mut::<HEADER_LEN>()?;
        Header { receiver: self.remote.0, counter }.emit(header);
        let (packet, tail) = rest.split_at_mut_checked(padded)?;
        packet.get_mut(len..)?.fill(0);
        let tag = self.seal.seal_in_place_separate_tag(nonce(counter), Aad::empty(), packet).ok()?;
        tail.get_mut(..TAG_LEN)?.copy_from_slice(tag.as_ref());
        Some(HEADER_LEN + padded + TAG_LEN)
    }

    /// Opens a record in place and returns the length of the packet with its padding, which is then at
    /// `record[HEADER_LEN..]`. Returns `None` if the record was not sealed with the session's key.
    #[inline]
    pub fn open(&self, record: &mut [u8], counter: u64) -> Option<usize> {
        let sealed = record.get_mut(HEADER_LEN..).filter(|_| counter < REJECT_AFTER_MESSAGES)?;
        self.open.open_in_place(nonce(counter), Aad::empty(), sealed).ok().map(|packet| packet.len())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

fn key(bytes: &[u8; 32]) -> LessSafeKey {
    // The cipher's keys have 32 bytes, so this cannot fail.
    #[allow(clippy::expect_used)]
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("32 bytes"))
}

/// Returns the nonce of a counter: four zero bytes, then the counter (section 5.4.6).
#[inline]
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Session, Session) {
        let (ours, theirs) = ([1; 32], [2; 32]);
        let left = Keys { send: ours, receive: theirs };
        let right = Keys { send: theirs, receive: ours };
        let (here, there) = (SessionIndex(10), SessionIndex(20));
        (
            Session::new(PeerId(7), (here, there), &left, true, 1000),
            Session::new(PeerId(9), (there, here), &right, false, 1000),
        )
    }

    #[test]
    fn one_side_opens_what_the_other_seals_and_forgeries_fail() {
        let (left, right) = pair();
        for len in [0, 1, 15, 16, 17, 1400, 1419, 1420] {
            let mut record = vec![0xaa; OVERHEAD + 1440];
            let packet: Vec<u8> = (0..len).map(|at| at as u8).collect();
            record[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&packet);
            let counter = left.take_counters(1);
            let size = left.seal(&mut record, len, 1420, counter).unwrap();
            assert_eq!(size, OVERHEAD + len.next_multiple_of(16).min(1420), "{len}");
            record.truncate(size);
            assert_eq!(Header::parse(&record), Ok(Header { receiver: 20, counter }));
            let mut forged = record.clone();
            forged[HEADER_LEN + len / 2] ^= 1;
            assert_eq!(right.open(&mut forged, counter), None);
            assert_eq!(right.open(&mut record.clone(), counter + 1), None);
            assert_eq!(left.open(&mut record.clone(), counter), None);
            assert_eq!(right.open(&mut record, counter), Some(size - OVERHEAD));
            assert_eq!(record[HEADER_LEN..HEADER_LEN + len], packet);
            assert!(record[HEADER_LEN + len..size - TAG_LEN].iter().all(|byte| *byte == 0));
        }
        assert_eq!(left.seal(&mut [0; OVERHEAD + 15], 10, 1420, 0), None, "no room");
        assert_eq!(right.open(&mut [0; 20], 0), None);
    }

    #[test]
    fn sessions_expire_as_in_section_6() {
        let (left, right) = pair();
        assert_eq!(left.send_standing(1000 + 119_999), Standing::Good);
        assert_eq!(left.send_standing(1000 + 120_000), Standing::Rekey);
        assert_eq!(left.send_standing(1000 + 120_001), Standing::Good, "once");
        assert_eq!(left.send_standing(1000 + 180_000), Standing::Expired);
        assert_eq!(right.send_standing(1000 + 179_999), Standing::Good, "only the initiator rekeys");
        assert!(!right.has_expired(1000 + 179_999) && !right.is_rekey_due(1000 + 179_999));
        assert!(right.has_expired(1000 + 180_000));
        let (left, _) = pair();
        assert!(!left.is_rekey_due(1000 + 164_999) && !left.has_expired(1000 + 165_000));
        assert!(left.is_rekey_due(1000 + 165_000));
        assert!(!left.is_rekey_due(1000 + 165_001), "once");
        let (_, right) = pair();
        right.take_counters(REKEY_AFTER_MESSAGES);
        assert_eq!(right.send_standing(1000), Standing::Rekey);
        right.take_counters(REJECT_AFTER_MESSAGES - REKEY_AFTER_MESSAGES);
        assert_eq!(right.send_standing(1000), Standing::Expired);
    }
}
