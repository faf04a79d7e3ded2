//! The handshake (sections 5.4.2 and 5.4.3), which is Noise_IKpsk2. Only this file uses `snow`.
//!
//! Messages are built and parsed without their two MACs, which [`stamp`](super::stamp) and
//! [`intake`](super::intake) handle.

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use wire::wireguard::{INITIATION, INITIATION_LEN, RESPONSE, RESPONSE_LEN};

use super::session::{Keys, SessionIndex};
use super::stamp::MACS_LEN;
use super::{PublicKey, SecretKey};

/// CONSTRUCTION, section 5.4.
const CONSTRUCTION: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// IDENTIFIER, which Noise calls the prologue.
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The position at which the pre-shared key is mixed in: psk2.
const PSK: u8 = 2;

/// TAI64N: seconds and nanoseconds, big-endian, which must increase.
pub type Timestamp = [u8; 12];

/// A handshake that this node has initiated and whose response is pending.
pub struct Begun(HandshakeState);

/// An authentic initiation from a peer.
pub struct Initiation {
    state: HandshakeState,
    /// The authenticated sender.
    pub peer: PublicKey,
    /// The peer's index for the new session.
    pub sender: SessionIndex,
    /// The time of sending by the peer's clock.
    pub timestamp: Timestamp,
}

/// Begins a handshake. The returned message has no MACs yet.
pub fn begin(
    private: &SecretKey,
    peer: &PublicKey,
    psk: &SecretKey,
    sender: SessionIndex,
    timestamp: &Timestamp,
) -> Option<(Begun, [u8; INITIATION_LEN])> {
    let builder = builder(private)?.remote_public_key(&peer.0).ok()?.psk(PSK, &psk.0).ok()?;
    let mut state = builder.build_initiator().ok()?;
    let mut message = [0; INITIATION_LEN];
    message[0] = INITIATION;
    message[4..8].copy_from_slice(&sender.0.to_le_bytes());
    state.write_message(timestamp, &mut message[8..INITIATION_LEN - MACS_LEN]).ok()?;
    Some((Begun(state), message))
}

/// Parses an initiation. Returns `None` unless it was made for this node by the owner of the key that it
/// contains.
pub fn receive(private: &SecretKey, message: &[u8; INITIATION_LEN]) -> Option<Initiation> {
    let mut state = builder(private)?.build_responder().ok()?;
    let mut timestamp = [0; 12];
    let read = state.read_message(&message[8..INITIATION_LEN - MACS_LEN], &mut timestamp).ok()?;
    let peer = PublicKey(state.get_remote_static()?.try_into().ok()?);
    let sender = SessionIndex(u32::from_le_bytes(*message[4..].first_chunk()?));
    (read == timestamp.len()).then_some(Initiation { state, peer, sender, timestamp })
}

impl Initiation {
    /// Builds the response and the session keys. The message has no MACs yet.
    pub fn respond(mut self, psk: &SecretKey, local: SessionIndex) -> Option<([u8; RESPONSE_LEN], Keys)> {
        self.state.set_psk(usize::from(PSK), &psk.0).ok()?;
        let mut message = [0; RESPONSE_LEN];
        message[0] = RESPONSE;
        message[4..8].copy_from_slice(&local.0.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.0.to_le_bytes());
        self.state.write_message(&[], &mut message[12..RESPONSE_LEN - MACS_LEN]).ok()?;
        // The split returns the initiator's sending key first.
        let (receive, send) = self.state.dangerously_get_raw_split();
        Some((message, Keys { send, receive }))
    }
}

impl Begun {
    /// Parses the response. A forged response has no effect, so the authentic one is still accepted.
    pub fn finish(&mut self, message: &[u8; RESPONSE_LEN]) -> Option<(SessionIndex, Keys)> {
        self.0.read_message(&message[12..RESPONSE_LEN - MACS_LEN], &mut []).ok()?;
        let (send, receive) = self.0.dangerously_get_raw_split();
        let sender = SessionIndex(u32::from_le_bytes(*message[4..].first_chunk()?));
        Some((sender, Keys { send, receive }))
    }
}

fn builder(private: &SecretKey) -> Option<Builder<'_>> {
    let params: NoiseParams = CONSTRUCTION.parse().ok()?;
    Builder::new(params).prologue(IDENTIFIER).ok()?.local_private_key(&private.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SecretKey = SecretKey([0; 32]);

    fn secret(byte: u8) -> SecretKey {
        SecretKey([byte; 32])
    }

    #[test]
    fn both_sides_derive_the_same_keys() {
        let (ours, theirs) = (secret(1), secret(2));
        let (mut begun, first) =
            begin(&ours, &theirs.public(), &secret(9), SessionIndex(77), &[3; 12]).unwrap();
        let initiation = receive(&theirs, &first).unwrap();
        assert_eq!(
            (initiation.peer, initiation.sender, initiation.timestamp),
            (ours.public(), SessionIndex(77), [3; 12])
        );
        let (second, right) = initiation.respond(&secret(9), SessionIndex(88)).unwrap();
        let mut forged = second;
        forged[50] ^= 1;
        assert!(begun.finish(&forged).is_none());
        let (remote, left) = begun.finish(&second).unwrap();
        assert_eq!(remote, SessionIndex(88));
        assert_eq!((left.send, left.receive), (right.receive, right.send));
        assert_ne!(left.send, left.receive);
    }

    #[test]
    fn a_handshake_with_another_key_or_pre_shared_key_fails() {
        let (ours, theirs) = (secret(1), secret(2));
        let (mut begun, first) = begin(&ours, &theirs.public(), &NONE, SessionIndex(1), &[0; 12]).unwrap();
        assert!(receive(&secret(3), &first).is_none(), "for another node");
        for at in [8, 40, 90, 115] {
            let mut forged = first;
            forged[at] ^= 0x80;
            assert!(receive(&theirs, &forged).is_none(), "{at}");
        }
        let (second, _) = receive(&theirs, &first).unwrap().respond(&secret(5), SessionIndex(2)).unwrap();
        assert!(begun.finish(&second).is_none(), "another pre-shared key");
    }
}
