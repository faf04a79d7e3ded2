//! Which handshake messages are worth the work: those with a right mac1 and, under load, those whose sender has
//! shown by a cookie that it receives at its address (section 5.3). The one file that names `boringtun`'s part in it.

use std::net::IpAddr;

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;
use wire::wireguard::{COOKIE, COOKIE_LEN, INITIATION, INITIATION_LEN, RESPONSE, RESPONSE_LEN};

use super::PublicKey;

/// Handshakes a second without a proof of address. One takes a fifth of a millisecond.
const LIMIT: u64 = 1000;

/// Looks at handshake messages before anything is computed for them.
pub struct Intake {
    limiter: RateLimiter,
}

/// A message by its kind, still unproven but for mac1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Somebody wants a session.
    Initiation(&'a [u8; INITIATION_LEN]),
    /// Somebody answers the initiation of this name.
    Response(u32, &'a [u8; RESPONSE_LEN]),
    /// Somebody under load wants the initiation or response of this name sent again with this sealed cookie.
    Cookie(u32, &'a [u8; COOKIE_LEN]),
}

/// Why a message goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No message, or not for us.
    Unfit,
    /// There is too much to do: this cookie reply is to be sent back.
    Reply([u8; COOKIE_LEN]),
}

impl Intake {
    /// For messages to the owner of this key.
    pub fn new(public: &PublicKey) -> Intake {
        let public = boringtun::x25519::PublicKey::from(public.0);
        Intake { limiter: RateLimiter::new(&public, LIMIT) }
    }

    /// To be called about once a second while messages come.
    pub fn second_has_passed(&self) {
        self.limiter.reset_count();
    }

    /// Looks at a message from this address.
    pub fn look<'a>(&self, from: IpAddr, bytes: &'a [u8]) -> Result<Message<'a>, Refused> {
        let mut reply = [0; COOKIE_LEN];
        match self.limiter.verify_packet(Some(from), bytes, &mut reply) {
            Ok(_) => {}
            Err(TunnResult::WriteToNetwork(_)) => return Err(Refused::Reply(reply)),
            Err(_) => return Err(Refused::Unfit),
        }
        let word = |at: usize| {
            bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|word| u32::from_le_bytes(*word))
        };
        let message = match bytes.first() {
            Some(&INITIATION) => bytes.try_into().ok().map(Message::Initiation),
            Some(&RESPONSE) => {
                word(8).zip(bytes.try_into().ok()).map(|(name, bytes)| Message::Response(name, bytes))
            }
            Some(&COOKIE) => {
                word(4).zip(bytes.try_into().ok()).map(|(name, bytes)| Message::Cookie(name, bytes))
            }
            _ => None,
        };
        message.ok_or(Refused::Unfit)
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
        let intake = Intake::new(&ours.public());
        let none = SecretKey([0; 32]);
        let (_, mut message) = noise::begin(&theirs, &ours.public(), &none, 5, &[0; 12]).unwrap();
        assert_eq!(intake.look(FROM, &message), Err(Refused::Unfit), "no stamp");
        let mut stamp = Stamp::new(&ours.public());
        stamp.put(&mut message, 0);
        assert_eq!(intake.look(FROM, &message), Ok(Message::Initiation(&message)));
        for len in [0, 3, 4, 64, 147] {
            assert_eq!(intake.look(FROM, &message[..len]), Err(Refused::Unfit), "{len}");
        }
        let reply = loop {
            match intake.look(FROM, &message) {
                Err(Refused::Reply(reply)) => break reply,
                other => assert!(other.is_ok(), "{other:?}"),
            }
        };
        let Ok(Message::Cookie(5, cookie)) = intake.look(FROM, &reply) else { panic!("not for the sender") };
        let (nonce, sealed) = (cookie[8..32].try_into().unwrap(), &cookie[32..]);
        let mut forged = *cookie;
        forged[40] ^= 1;
        assert!(!stamp.clone().take_cookie(&nonce, &forged[32..], 0));
        assert!(stamp.take_cookie(&nonce, sealed, 0) && !stamp.take_cookie(&nonce, sealed, 0), "once");
        stamp.put(&mut message, 1);
        assert!(intake.look(FROM, &message).is_ok());
        assert!(
            matches!(intake.look("192.0.2.8".parse().unwrap(), &message), Err(Refused::Reply(_))),
            "another address"
        );
        stamp.put(&mut message, 120_001);
        assert!(matches!(intake.look(FROM, &message), Err(Refused::Reply(_))), "an old cookie is not used");
    }
}
