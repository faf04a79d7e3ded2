//! Which handshake messages are worth the work: those with a right mac1 and, under load, those whose sender has
//! shown by a cookie that it receives at its address, a few a second from each address (section 5.3). The one file that
//! names `boringtun`'s part in it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;
use wire::wireguard::{COOKIE, COOKIE_LEN, INITIATION, INITIATION_LEN, RESPONSE, RESPONSE_LEN};

use super::PublicKey;
use super::session::{Millis, SessionIndex};

/// Handshakes a second without a proof of address. One takes a fifth of a millisecond.
const LIMIT: u64 = 1000;

/// Under load, messages of one address are this far apart on average, as in the kernel (PACKETS_PER_SECOND,
/// drivers/net/wireguard/ratelimiter.c).
const APART: Millis = 1_000 / 20;
/// As many may come at once (PACKETS_BURSTABLE).
const BURST: Millis = 5;
/// Addresses that are kept account of; while there are more, new ones are refused.
const ADDRESSES: usize = 1 << 16;

/// Looks at handshake messages before anything is computed for them.
pub struct Intake {
    limiter: RateLimiter,
    /// Messages with a right mac1 in this second.
    seen: u64,
    /// By address: until when its allowance is used up.
    used: HashMap<IpAddr, Millis>,
}

/// A message by its kind, still unproven but for mac1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Somebody wants a session.
    Initiation(&'a [u8; INITIATION_LEN]),
    /// Somebody answers the initiation with this index.
    Response(SessionIndex, &'a [u8; RESPONSE_LEN]),
    /// Somebody under load wants the initiation or response with this index sent again with this sealed cookie.
    Cookie(SessionIndex, &'a [u8; COOKIE_LEN]),
}

/// Why a message goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No message, or not for us.
    Unfit,
    /// There is too much to do: this cookie reply is to be sent back.
    Reply([u8; COOKIE_LEN]),
    /// There is too much to do, and this address has had its share.
    TooMany,
}

impl Intake {
    /// For messages to the owner of this key.
    pub fn new(public: &PublicKey) -> Intake {
        let public = boringtun::x25519::PublicKey::from(public.0);
        Intake { limiter: RateLimiter::new(&public, LIMIT), seen: 0, used: HashMap::new() }
    }

    /// To be called about once a second while messages come.
    pub fn second_has_passed(&mut self, now: Millis) {
        self.limiter.reset_count();
        self.seen = 0;
        self.used.retain(|_, until| *until > now);
    }

    /// Looks at a message from this address at `now`.
    pub fn look<'a>(&mut self, from: IpAddr, bytes: &'a [u8], now: Millis) -> Result<Message<'a>, Refused> {
        let mut reply = [0; COOKIE_LEN];
        match self.limiter.verify_packet(Some(from), bytes, &mut reply) {
            Ok(_) => {}
            Err(TunnResult::WriteToNetwork(_)) => return Err(Refused::Reply(reply)),
            Err(_) => return Err(Refused::Unfit),
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
        message.ok_or(Refused::Unfit)
    }

    /// Takes one message from the allowance of an address, if there is any left.
    fn allow(&mut self, from: IpAddr, now: Millis) -> bool {
        let from = match from {
            IpAddr::V4(_) => from,
            // Who has one address of a link has all of them.
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        };
        let until = self.used.get(&from).copied().unwrap_or(0).max(now);
        let room = self.used.len() < ADDRESSES || self.used.contains_key(&from);
        let allowed = room && until + APART <= now + BURST * APART;
        if allowed {
            self.used.insert(from, until + APART);
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
    fn only_what_is_stamped_for_us_passes_and_under_load_only_with_a_cookie() {
        let (ours, theirs) = (SecretKey([1; 32]), SecretKey([2; 32]));
        let mut intake = Intake::new(&ours.public());
        let none = SecretKey([0; 32]);
        let (_, mut message) =
            noise::begin(&theirs, &ours.public(), &none, SessionIndex(5), &[0; 12]).unwrap();
        assert_eq!(intake.look(FROM, &message, 0), Err(Refused::Unfit), "no stamp");
        let mut stamp = Stamp::new(&ours.public());
        stamp.put(&mut message, 0);
        assert_eq!(intake.look(FROM, &message, 0), Ok(Message::Initiation(&message)));
        for len in [0, 3, 4, 64, 147] {
            assert_eq!(intake.look(FROM, &message[..len], 0), Err(Refused::Unfit), "{len}");
        }
        let reply = loop {
            match intake.look(FROM, &message, 0) {
                Err(Refused::Reply(reply)) => break reply,
                other => assert!(other.is_ok(), "{other:?}"),
            }
        };
        let Ok(Message::Cookie(SessionIndex(5), cookie)) = intake.look(FROM, &reply, 0) else {
            panic!("not for the sender")
        };
        let (nonce, sealed) = (cookie[8..32].try_into().unwrap(), &cookie[32..]);
        let mut forged = *cookie;
        forged[40] ^= 1;
        assert!(!stamp.clone().take_cookie(&nonce, &forged[32..], 0));
        assert!(stamp.take_cookie(&nonce, sealed, 0) && !stamp.take_cookie(&nonce, sealed, 0), "once");
        stamp.put(&mut message, 1);
        assert!(intake.look(FROM, &message, 0).is_ok());
        assert!(
            matches!(intake.look("192.0.2.8".parse().unwrap(), &message, 0), Err(Refused::Reply(_))),
            "another address"
        );
        stamp.put(&mut message, 120_001);
        assert!(
            matches!(intake.look(FROM, &message, 0), Err(Refused::Reply(_))),
            "an old cookie is not used"
        );
    }

    #[test]
    fn under_load_an_address_with_a_cookie_has_its_share_and_no_more() {
        let (ours, theirs) = (SecretKey([1; 32]), SecretKey([2; 32]));
        let mut intake = Intake::new(&ours.public());
        let (_, mut message) =
            noise::begin(&theirs, &ours.public(), &SecretKey([0; 32]), SessionIndex(5), &[0; 12]).unwrap();
        let mut stamp = Stamp::new(&ours.public());
        stamp.put(&mut message, 0);
        let addresses = ["192.0.2.9", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap());
        for from in addresses {
            // Each gets its cookie, which holds for its address.
            let reply = loop {
                if let Err(Refused::Reply(reply)) = intake.look(from, &message, 0) {
                    break reply;
                }
            };
            assert!(stamp.take_cookie(reply[8..32].try_into().unwrap(), &reply[32..], 0));
            stamp.put(&mut message, 0);
            let passed = |intake: &mut Intake, now| {
                (0..50).filter(|_| intake.look(from, &message, now).is_ok()).count()
            };
            assert_eq!(passed(&mut intake, 10_000), 5, "at once");
            assert_eq!(intake.look(from, &message, 10_049), Err(Refused::TooMany));
            assert_eq!(passed(&mut intake, 10_050), 1, "twenty a second");
            assert_eq!(passed(&mut intake, 20_000), 5, "after a silence");
            // Its next message has to be stamped anew for the other one.
            stamp = Stamp::new(&ours.public());
            stamp.put(&mut message, 0);
        }
        let neighbour = "2001:db8::2".parse().unwrap();
        assert!(!intake.allow(neighbour, 20_000), "of the same link");
        assert!(intake.allow("2001:db8:0:1::2".parse().unwrap(), 20_000));
        intake.second_has_passed(30_000);
        assert!(intake.used.is_empty(), "no account is kept of those who were silent");
    }
}
