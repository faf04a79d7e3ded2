//! Selects the handshake messages to process: those with a valid mac1 and, under load, those whose sender has
//! proved by a cookie that it receives at its address, limited to a few per second and address (section 5.3).
//! Only this file uses `boringtun`'s rate limiter.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;
use wire::wireguard::{COOKIE, COOKIE_LEN, INITIATION, INITIATION_LEN, RESPONSE, RESPONSE_LEN};

use super::PublicKey;
use super::session::{Millis, SessionIndex};

/// Handshakes per second without a proof of address. Each takes a fifth of a millisecond.
const LIMIT: u64 = 1000;

/// The average interval between messages of one address under load, as in the kernel (PACKETS_PER_SECOND,
/// drivers/net/wireguard/ratelimiter.c).
const INTERVAL: Millis = 1_000 / 20;
/// Messages of one address that may arrive at once (PACKETS_BURSTABLE).
const BURST: Millis = 5;
/// Maximum number of addresses to track. Beyond it new addresses are refused.
const MAX_ADDRESSES: usize = 1 << 16;

/// Checks handshake messages before any cryptography is computed for them.
pub struct Intake {
    limiter: RateLimiter,
    /// Messages with a valid mac1 in the current second.
    seen: u64,
    /// For each address, the time until which its allowance is used up.
    used: HashMap<IpAddr, Millis>,
}

/// A message by its type. Only its mac1 is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A request for a session.
    Initiation(&'a [u8; INITIATION_LEN]),
    /// A response to the initiation with this index.
    Response(SessionIndex, &'a [u8; RESPONSE_LEN]),
    /// A cookie reply: a peer under load wants the message with this index sent again with the sealed cookie.
    Cookie(SessionIndex, &'a [u8; COOKIE_LEN]),
}

/// The reason why a message is not processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The message is malformed, or not for this node.
    Invalid,
    /// The node is under load; send this cookie reply.
    Reply([u8; COOKIE_LEN]),
    /// The node is under load, and the address has used up its allowance.
    TooMany,
}

impl Intake {
    /// Creates an intake for messages to the owner of this key.
    pub fn new(public: &PublicKey) -> Intake {
        let public = boringtun::x25519::PublicKey::from(public.0);
        Intake { limiter: RateLimiter::new(&public, LIMIT), seen: 0, used: HashMap::new() }
    }

    /// Resets the count of messages. Call this about once per second while messages arrive.
    pub fn start_second(&mut self, now: Millis) {
        self.limiter.reset_count();
        self.seen = 0;
        self.used.retain(|_, until| *until > now);
    }

    /// Checks a message that arrived from this address at `now`.
    pub fn check<'a>(&mut self, from: IpAddr, bytes: &'a [u8], now: Millis) -> Result<Message<'a>, Refused> {
        let mut reply = [0; COOKIE_LEN];
        match self.limiter.verify_packet(Some(from), bytes, &mut reply) {
            Ok(_) => {}
            Err(TunnResult::WriteToNetwork(_)) => return Err(Refused::Reply(reply)),
            Err(_) => return Err(Refused::Invalid),
        }
        let has_mac = bytes.first() != Some(&COOKIE);
        self.seen += u64::from(has_mac);
        if has_mac && self.seen > LIMIT && !self.allow(from, now) {
            return Err(Refused::TooMany);
        }
        let index = |at: usize| {
            let word = bytes.get(at..)?.first_chunk()?;
            Some(SessionIndex(u32::from_le_bytes(*word)))
        };
        let message = match bytes.first() {
            Some(&INITIATION) => bytes.try_into().ok().map(Message::Initiation),
            Some(&RESPONSE) => {
                index(8).zip(bytes.try_into().ok()).map(|(index, bytes)| Message::Response(index, bytes))
            }
            Some(&COOKIE) => {
                index(4).zip(bytes.try_into().ok()).map(|(index, bytes)| Message::Cookie(index, bytes))
            }
            _ => None,
        };
        message.ok_or(Refused::Invalid)
    }

    /// Uses one message of an address's allowance. Returns false if none is left.
    fn allow(&mut self, from: IpAddr, now: Millis) -> bool {
        let from = match from {
            IpAddr::V4(_) => from,
            // A host with one address of a link can use all addresses of the link.
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        };
        let until = self.used.get(&from).copied().unwrap_or(0).max(now);
        let room = self.used.len() < MAX_ADDRESSES || self.used.contains_key(&from);
        let allowed = room && until + INTERVAL <= now + BURST * INTERVAL;
        if allowed {
            self.used.insert(from, until + INTERVAL);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::stamp::Stamp;
    use crate::wireguard::{SecretKey, noise};

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

    #[test]
    fn only_messages_with_our_mac1_pass_and_under_load_only_with_a_cookie() {
        let (ours, theirs) = (SecretKey([1; 32]), SecretKey([2; 32]));
        let mut intake = Intake::new(&ours.public());
        let none = SecretKey([0; 32]);
        let (_, mut message) =
            noise::begin(&theirs, &ours.public(), &none, SessionIndex(5), &[0; 12]).unwrap();
        assert_eq!(intake.check(FROM, &message, 0), Err(Refused::Invalid), "no mac1");
        let mut stamp = Stamp::new(&ours.public());
        stamp.put(&mut message, 0);
        assert_eq!(intake.check(FROM, &message, 0), Ok(Message::Initiation(&message)));
        for len in [0, 3, 4, 64, 147] {
            assert_eq!(intake.check(FROM, &message[..len], 0), Err(Refused::Invalid), "{len}");
        }
        let reply = loop {
            match intake.check(FROM, &message, 0) {
                Err(Refused::Reply(reply)) => break reply,
                other => assert!(other.is_ok(), "{other:?}"),
            }
        };
        let Ok(Message::Cookie(SessionIndex(5), cookie)) = intake.check(FROM, &reply, 0) else {
            panic!("not for the sender")
        };
        let (nonce, sealed) = (cookie[8..32].try_into().unwrap(), &cookie[32..]);
        let mut forged = *cookie;
        forged[40] ^= 1;
        assert!(!stamp.clone().take_cookie(&nonce, &forged[32..], 0));
        assert!(stamp.take_cookie(&nonce, sealed, 0) && !stamp.take_cookie(&nonce, sealed, 0), "once");
        stamp.put(&mut message, 1);
        assert!(intake.check(FROM, &message, 0).is_ok());
        assert!(
            matches!(intake.check("192.0.2.8".parse().unwrap(), &message, 0), Err(Refused::Reply(_))),
            "another address"
        );
        stamp.put(&mut message, 120_001);
        assert!(
            matches!(intake.check(FROM, &message, 0), Err(Refused::Reply(_))),
            "an expired cookie is not used"
        );
    }

    #[test]
    fn under_load_messages_of_an_address_with_a_cookie_are_limited() {
        let (ours, theirs) = (SecretKey([1; 32]), SecretKey([2; 32]));
        let mut intake = Intake::new(&ours.public());
        let (_, mut message) =
            noise::begin(&theirs, &ours.public(), &SecretKey([0; 32]), SessionIndex(5), &[0; 12]).unwrap();
        let mut stamp = Stamp::new(&ours.public());
        stamp.put(&mut message, 0);
        let addresses = ["192.0.2.9", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap());
        for from in addresses {
            // Each address gets a cookie that is valid for that address only.
            let reply = loop {
                if let Err(Refused::Reply(reply)) = intake.check(from, &message, 0) {
                    break reply;
                }
            };
            assert!(stamp.take_cookie(reply[8..32].try_into().unwrap(), &reply[32..], 0));
            stamp.put(&mut message, 0);
            let passed = |intake: &mut Intake, now| {
                (0..50).filter(|_| intake.check(from, &message, now).is_ok()).count()
            };
            assert_eq!(passed(&mut intake, 10_000), 5, "at once");
            assert_eq!(intake.check(from, &message, 10_049), Err(Refused::TooMany));
            assert_eq!(passed(&mut intake, 10_050), 1, "twenty per second");
            assert_eq!(passed(&mut intake, 20_000), 5, "after a silence");
            // The cookie does not apply to the next address.
            stamp = Stamp::new(&ours.public());
            stamp.put(&mut message, 0);
        }
        let neighbour = "2001:db8::2".parse().unwrap();
        assert!(!intake.allow(neighbour, 20_000), "on the same link");
        assert!(intake.allow("2001:db8:0:1::2".parse().unwrap(), 20_000));
        intake.start_second(30_000);
        assert!(intake.used.is_empty(), "silent addresses are removed");
    }
}
