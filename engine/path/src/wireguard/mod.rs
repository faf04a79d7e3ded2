//! WireGuard (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", 2020; "the paper" in this
//! folder).
//!
//! ```text
//! noise     the handshake, which authenticates both sides and gives the session keys   (snow)
//! intake    which handshake messages are processed: mac1, load, cookies                (boringtun)
//! stamp     verifying mac1 of received messages; mac1, mac2 and the cookie for sent ones
//! session   the keys of one session, its counter and its age                           (ring)
//! window    the replay window: which counters have been received
//! pulse     a peer's traffic, recorded by workers and read by its timers
//! peer      one peer's handshakes and timers, as a state machine that takes the time as an argument
//! ```
//!
//! Workers seal and open with [`session`] and [`window`] only. The rest runs on a separate thread, because a
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
pub use session::{Session, SessionIndex};
pub use stamp::Gate;
pub use window::Window;
use zeroize::Zeroize;

/// A peer's public key on Curve25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

impl PublicKey {
    /// Whether the key is a point of small order. Its shared secret with any key is zero, so anyone could
    /// impersonate its owner (RFC 7748 section 6.1).
    pub fn is_weak(&self) -> bool {
        let mut point = self.0;
        // The highest bit is ignored (RFC 7748 section 5).
        point[31] &= 0x7f;
        WEAK.contains(&point)
    }
}

/// The u-coordinates of the points of Curve25519 and its twist whose order divides 8: 0, 1, the two points of
/// order 8, and p - 1, p and p + 1, which are equivalent to -1, 0 and 1
/// (<https://cr.yp.to/ecdh.html#validate>).
const WEAK: [[u8; 32]; 7] = {
    const fn near_p(last: u8) -> [u8; 32] {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (last, 0x7f);
        point
    }
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
            0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
            0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ],
        near_p(0xec),
        near_p(0xed),
        near_p(0xee),
    ]
};

/// A private or pre-shared key. Its `Debug` output hides the key, and dropping it erases the key from memory.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(pub [u8; 32]);

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl SecretKey {
    /// Returns the public key of this private key.
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

#[cfg(test)]
mod tests {
    use boringtun::x25519::{PublicKey as Point, StaticSecret};

    use super::*;

    #[test]
    fn only_weak_points_have_a_shared_secret_of_zero() {
        let secrets = [StaticSecret::from([1; 32]), StaticSecret::from([0xa5; 32])];
        let shares_zero = |point: [u8; 32]| {
            secrets.iter().all(|secret| !secret.diffie_hellman(&Point::from(point)).was_contributory())
        };
        for mut point in WEAK {
            assert!(shares_zero(point) && PublicKey(point).is_weak(), "{point:x?}");
            point[31] |= 0x80;
            assert!(shares_zero(point) && PublicKey(point).is_weak(), "{point:x?}");
            point[0] ^= 0x10;
            assert!(!shares_zero(point) && !PublicKey(point).is_weak(), "{point:x?}");
        }
        assert!(!SecretKey([7; 32]).public().is_weak());
    }
}
