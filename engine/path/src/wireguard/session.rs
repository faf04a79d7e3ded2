//! One session: two keys, a counter, an age. Records are sealed and opened where they stand.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use batch::{PeerId, WorkerIndex};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wire::wireguard::{HEADER_LEN, Header, PADDING, TAG_LEN};
use zeroize::Zeroize;

/// Milliseconds on a clock that only goes forward.
pub type Millis = u64;

/// A session this old asks for the next one when its initiator sends (REKEY_AFTER_TIME, section 6.1).
pub const REKEY_AFTER: Millis = 120_000;
/// A session this old is void (REJECT_AFTER_TIME).
pub const REJECT_AFTER: Millis = 180_000;
/// Its initiator asks for the next one when it receives this late (section 6.2: so that a peer that only sends is not cut off).
const REKEY_ON_RECEIVE: Millis = REJECT_AFTER - KEEPALIVE - REKEY_TIMEOUT;
/// KEEPALIVE_TIMEOUT.
pub const KEEPALIVE: Millis = 10_000;
/// REKEY_TIMEOUT.
pub const REKEY_TIMEOUT: Millis = 5_000;
/// REKEY_AFTER_MESSAGES.
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// REJECT_AFTER_MESSAGES.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// One side's number for a session, which the other side writes into each record ("index" in section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionIndex(pub u32);

/// No worker.
const NOBODY: u32 = u32::MAX;

/// Bytes around a packet besides its padding.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// A session, shared by the workers that use it.
pub struct Session {
    /// Whose it is.
    pub peer: PeerId,
    /// Our name for it: what the peer writes into each record.
    pub local: SessionIndex,
    /// The peer's name for it.
    pub remote: SessionIndex,
    /// We began the handshake.
    pub initiator: bool,
    /// When the handshake was done.
    pub born: Millis,
    seal: LessSafeKey,
    open: LessSafeKey,
    counter: AtomicU64,
    rekeying: AtomicBool,
    /// The worker that has the window, see [`Session::owner`].
    owner: AtomicU32,
}

/// Whether a session may be used, and whether it is time to ask for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Good,
    /// It may, and this is the first to notice that the next one is due.
    Rekey,
    /// It is too old or used up.
    Void,
}

/// The raw keys of a session, which only [`noise`](super::noise) makes.
pub struct Keys {
    /// For what we send.
    pub send: [u8; 32],
    /// For what we receive.
    pub receive: [u8; 32],
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.send.zeroize();
        self.receive.zeroize();
    }
}

impl Session {
    /// A session of `peer` with these names, from a handshake that was done at `born`.
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

    /// The worker that receives with this session, once there is one. There is one window, so records that arrive
    /// elsewhere have to be brought to it.
    #[inline]
    pub fn owner(&self) -> Option<WorkerIndex> {
        Some(self.owner.load(Ordering::Relaxed)).filter(|owner| *owner != NOBODY).map(WorkerIndex)
    }

    /// Makes the worker that has opened the first record the owner; `false` if another one was faster. Not before it was
    /// opened: a stranger must not decide where records have to go.
    pub fn own(&self, worker: WorkerIndex) -> bool {
        self.owner.compare_exchange(NOBODY, worker.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether it may be sent with at `now`.
    #[inline]
    pub fn to_send(&self, now: Millis) -> Standing {
        let sent = self.counter.load(Ordering::Relaxed);
        let age = now.saturating_sub(self.born);
        if age >= REJECT_AFTER || sent >= REJECT_AFTER_MESSAGES {
            return Standing::Void;
        }
        let due = sent >= REKEY_AFTER_MESSAGES || (self.initiator && age >= REKEY_AFTER);
        self.judge(due)
    }

    /// Whether it may be received with at `now`.
    #[inline]
    pub fn to_receive(&self, now: Millis) -> Standing {
        let age = now.saturating_sub(self.born);
        if age >= REJECT_AFTER {
            return Standing::Void;
        }
        self.judge(self.initiator && age >= REKEY_ON_RECEIVE)
    }

    #[inline]
    fn judge(&self, due: bool) -> Standing {
        if due && !self.rekeying.swap(true, Ordering::Relaxed) { Standing::Rekey } else { Standing::Good }
    }

    /// Nobody has heard that the next one is due: the next to notice is the first again.
    #[cold]
    pub fn rekey_unheard(&self) {
        self.rekeying.store(false, Ordering::Relaxed);
    }

    /// Takes `count` counters in a row; no two callers get the same.
    #[inline]
    pub fn take_counters(&self, count: u64) -> u64 {
        self.counter.fetch_add(count, Ordering::Relaxed)
    }

    /// Seals the `len` bytes of a packet that stand at `record[HEADER_LEN..]`, padding them to at most `mtu`; gives
    /// the length of the record. `None` if the record has no room.
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

    /// Opens a record in place; the packet with its padding is at `record[HEADER_LEN..]` then, and its length is
    /// the answer. `None` for a record that was not sealed with our key.
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
    // A key of 32 bytes is what the cipher takes: this cannot fail.
    #[allow(clippy::expect_used)]
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("32 bytes"))
}

/// Four zero bytes and the counter, section 5.4.6.
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
    fn what_one_seals_the_other_opens_and_nobody_changes() {
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
    fn ages_are_those_of_section_6() {
        let (left, right) = pair();
        assert_eq!(left.to_send(1000 + 119_999), Standing::Good);
        assert_eq!(left.to_send(1000 + 120_000), Standing::Rekey);
        assert_eq!(left.to_send(1000 + 120_001), Standing::Good, "once");
        assert_eq!(left.to_send(1000 + 180_000), Standing::Void);
        assert_eq!(right.to_send(1000 + 179_999), Standing::Good, "only the initiator begins again");
        assert_eq!(right.to_receive(1000 + 179_999), Standing::Good);
        assert_eq!(right.to_receive(1000 + 180_000), Standing::Void);
        let (left, _) = pair();
        assert_eq!(left.to_receive(1000 + 164_999), Standing::Good);
        assert_eq!(left.to_receive(1000 + 165_000), Standing::Rekey);
        let (_, right) = pair();
        right.take_counters(REKEY_AFTER_MESSAGES);
        assert_eq!(right.to_send(1000), Standing::Rekey);
        right.take_counters(REJECT_AFTER_MESSAGES - REKEY_AFTER_MESSAGES);
        assert_eq!(right.to_send(1000), Standing::Void);
    }
}
