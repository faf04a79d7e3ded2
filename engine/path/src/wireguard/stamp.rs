//! mac1 and mac2 of handshake messages (section 5.4.4), and the cookie that mac2 needs (section 5.4.7).

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use wire::wireguard::COOKIE;

use super::PublicKey;
use super::session::Millis;

const MAC_LEN: usize = 16;
/// Length of both MACs, which end a message.
pub(super) const MACS_LEN: usize = 2 * MAC_LEN;
/// The lifetime of a cookie (COOKIE_REFRESH_TIME).
const COOKIE_LIFETIME: Millis = 120_000;

/// Checks whether a handshake message was made for the owner of a key. Anyone who knows the public key can
/// make one, so this only filters noise from strangers; but it takes a fraction of a microsecond, and a
/// handshake a fifth of a millisecond.
#[derive(Clone)]
pub struct Gate {
    mac1: [u8; 32],
}

impl Gate {
    /// Creates a gate for messages to the owner of this key.
    pub fn new(owner: &PublicKey) -> Gate {
        Gate { mac1: labelled(b"mac1----", owner) }
    }

    /// Whether mac1 is valid. A cookie reply has no mac1 and passes: whether one is awaited is for the caller
    /// to know.
    pub fn admits(&self, message: &[u8]) -> bool {
        if message.first() == Some(&COOKIE) {
            return true;
        }
        let Some((content, macs)) = message.split_last_chunk::<MACS_LEN>() else { return false };
        macs.starts_with(&mac(&self.mac1, content))
    }
}

/// The state for computing the MACs of messages to one peer.
#[derive(Clone)]
pub(super) struct Stamp {
    mac1: [u8; 32],
    cookie_key: [u8; 32],
    cookie: Option<([u8; MAC_LEN], Millis)>,
    /// mac1 of the last message, to which a cookie reply is bound.
    last: Option<[u8; MAC_LEN]>,
}

impl Stamp {
    /// Creates the state for messages to a peer.
    pub(super) fn new(peer: &PublicKey) -> Stamp {
        let (mac1, cookie_key) = (labelled(b"mac1----", peer), labelled(b"cookie--", peer));
        Stamp { mac1, cookie_key, cookie: None, last: None }
    }

    /// Writes both MACs into the last [`MACS_LEN`] bytes of a message.
    pub(super) fn put(&mut self, message: &mut [u8], now: Millis) {
        let Some(at) = message.len().checked_sub(MACS_LEN) else { return };
        let mac1 = mac(&self.mac1, &message[..at]);
        message[at..at + MAC_LEN].copy_from_slice(&mac1);
        self.last = Some(mac1);
        self.cookie = self.cookie.filter(|(_, since)| now.saturating_sub(*since) < COOKIE_LIFETIME);
        let mac2 = self.cookie.map_or([0; MAC_LEN], |(cookie, _)| mac(&cookie, &message[..at + MAC_LEN]));
        message[at + MAC_LEN..].copy_from_slice(&mac2);
    }

    /// Opens and stores the cookie of a reply. Returns false if the reply does not belong to the last
    /// message.
    pub(super) fn take_cookie(&mut self, nonce: &[u8; 24], sealed: &[u8], now: Millis) -> bool {
        let Some(last) = self.last else { return false };
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&self.cookie_key));
        let opened = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &last });
        let Some(cookie) = opened.ok().and_then(|cookie| cookie.try_into().ok()) else { return false };
        self.cookie = Some((cookie, now));
        self.last = None;
        true
    }
}

fn labelled(label: &[u8; 8], peer: &PublicKey) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, label);
    Digest::update(&mut hash, peer.0);
    hash.finalize().into()
}

/// Keyed BLAKE2s with 16 bytes of output.
fn mac(key: &[u8], message: &[u8]) -> [u8; MAC_LEN] {
    // BLAKE2s accepts keys of up to 32 bytes; these have 16 or 32.
    #[allow(clippy::expect_used)]
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("at most 32 bytes");
    Update::update(&mut mac, message);
    mac.finalize_fixed().into()
}
