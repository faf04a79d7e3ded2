//! WireGuard (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", 2020; "the paper" in this folder).
//!
//! ```text
//! noise     the handshake: who we are to each other, and the keys of a session     (snow)
//! intake    which handshake messages are worth the work: mac1, load, cookies       (boringtun)
//! stamp     mac1 and mac2 of our own messages, and the cookies others give us
//! session   the keys of one session, a counter, and an age                        (ring)
//! window    which counters were seen already
//! pulse     what workers note of a peer, for its timers
//! peer      one peer's handshakes and timers, as a state machine: time is an argument
//! ```
//!
//! Workers seal and open with [`session`] and [`window`] alone; the rest runs on a thread of its own, because a
//! handshake costs as much as a hundred packets.

pub mod intake;
pub mod noise;
pub mod peer;
mod pulse;
pub mod session;
mod stamp;
pub mod window;

pub use peer::Peer;
pub use pulse::Pulse;
pub use session::Session;
pub use window::Window;

/// A peer's public key on Curve25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// A secret: a private key or a pre-shared one. It shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(pub [u8; 32]);

impl SecretKey {
    /// The public key that belongs to this private one.
    pub fn public(&self) -> PublicKey {
        let secret = boringtun::x25519::StaticSecret::from(self.0);
        PublicKey(boringtun::x25519::PublicKey::from(&secret).to_bytes())
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(…)")
    }
}
