//! The types and sizes of WireGuard's four messages (whitepaper section 5.4), and the transport data header.
//!
//! All numbers are little-endian.

use crate::Malformed;

/// Handshake initiation, section 5.4.2.
pub const INITIATION: u8 = 1;
/// Handshake response, section 5.4.3.
pub const RESPONSE: u8 = 2;
/// Cookie reply, section 5.4.7.
pub const COOKIE: u8 = 3;
/// Transport data, section 5.4.6.
pub const DATA: u8 = 4;

/// Bytes of an initiation.
pub const INITIATION_LEN: usize = 148;
/// Bytes of a response.
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_LEN: usize = 64;
/// Bytes of the transport data header, before the sealed packet.
pub const HEADER_LEN: usize = 16;
/// Bytes of the authentication tag, after the sealed packet.
pub const TAG_LEN: usize = 16;
/// Sealed packets are padded to a multiple of this, section 5.4.6.
pub const PADDING: usize = 16;

/// The kind of a message, according to its first four bytes and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An initiation, response or cookie reply.
    Handshake,
    /// Transport data.
    Data(Header),
}

/// The header of transport data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The receiver's index of the session.
    pub receiver: u32,
    /// The packet counter, which is the nonce.
    pub counter: u64,
}

impl Kind {
    /// Parses the type. Fails if the length does not match the type or a reserved byte is not zero.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Kind, Malformed> {
        let Some(&[kind, 0, 0, 0]) = bytes.first_chunk::<4>() else {
            return Err(if bytes.len() < 4 { Malformed::Truncated } else { Malformed::Reserved });
        };
        match (kind, bytes.len()) {
            (INITIATION, INITIATION_LEN) | (RESPONSE, RESPONSE_LEN) | (COOKIE, COOKIE_LEN) => {
                Ok(Kind::Handshake)
            }
            (DATA, _) => Header::parse(bytes).map(Kind::Data),
            (INITIATION..=COOKIE, _) => Err(Malformed::BadTotalLength),
            _ => Err(Malformed::Reserved),
        }
    }
}

/// Returns the index of the handshake message that a response or cookie reply answers. Returns `None` for
/// other messages.
pub fn answered(bytes: &[u8]) -> Option<u32> {
    let at = match *bytes.first()? {
        RESPONSE => 8,
        COOKIE => 4,
        _ => return None,
    };
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Header {
    /// Parses the header of transport data. Fails if the message is too short for an authentication tag.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Header, Malformed> {
        match bytes.first_chunk::<HEADER_LEN>() {
            Some(&[DATA, 0, 0, 0, a, b, c, d, ref counter @ ..]) if bytes.len() >= HEADER_LEN + TAG_LEN => {
                let counter = u64::from_le_bytes(*counter);
                Ok(Header { receiver: u32::from_le_bytes([a, b, c, d]), counter })
            }
            Some([DATA, 0, 0, 0, ..]) | None => Err(Malformed::Truncated),
            Some(_) => Err(Malformed::Reserved),
        }
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; HEADER_LEN]) {
        out[..4].copy_from_slice(&[DATA, 0, 0, 0]);
        out[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        out[8..].copy_from_slice(&self.counter.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn the_header_follows_section_5_4_6() {
        let mut bytes = vec![4, 0, 0, 0, 0x2a, 0x91, 0x07, 0xde, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([0xee; TAG_LEN]);
        let header = Header { receiver: 0xde07_912a, counter: 0 };
        assert_eq!(Kind::parse(&bytes), Ok(Kind::Data(header)));
        let mut out = [0xff; HEADER_LEN];
        header.emit(&mut out);
        assert_eq!(out, bytes[..HEADER_LEN]);
    }

    #[test]
    fn only_replies_answer_a_message() {
        let bytes: vec::Vec<u8> = (0..92).collect();
        let of = |kind: u8, len: usize| answered(&[&[kind], &bytes[1..len]].concat());
        assert_eq!(of(RESPONSE, 92), Some(0x0b0a_0908));
        assert_eq!(of(COOKIE, 64), Some(0x0706_0504));
        assert_eq!((of(RESPONSE, 11), of(COOKIE, 7)), (None, None));
        assert_eq!((of(INITIATION, 92), of(DATA, 92), answered(&[])), (None, None, None));
    }

    #[test]
    fn messages_of_the_wrong_length_are_rejected() {
        for (kind, len) in [(INITIATION, 148), (RESPONSE, 92), (COOKIE, 64)] {
            let mut bytes = vec![0; len];
            bytes[0] = kind;
            assert_eq!(Kind::parse(&bytes), Ok(Kind::Handshake));
            assert_eq!(Kind::parse(&bytes[1..]), Err(Malformed::Reserved));
            assert_eq!(Kind::parse(&bytes[..len - 1]), Err(Malformed::BadTotalLength));
            bytes[3] = 1;
            assert_eq!(Kind::parse(&bytes), Err(Malformed::Reserved));
        }
        for len in 0..HEADER_LEN + TAG_LEN {
            let mut bytes = vec![0; len];
            bytes.iter_mut().take(1).for_each(|first| *first = DATA);
            assert_eq!(Kind::parse(&bytes), Err(Malformed::Truncated), "{len}");
        }
        assert_eq!(Kind::parse(&[9, 0, 0, 0, 0]), Err(Malformed::Reserved));
    }
}
