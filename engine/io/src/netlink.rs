//! Questions to the kernel by netlink, one message each way.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
const HEADER: usize = 16;
const ROOM: usize = 1 << 16;

/// A socket for questions of one netlink protocol.
#[derive(Debug)]
pub(crate) struct Netlink(Socket);

impl Netlink {
    pub(crate) fn open(protocol: i32) -> io::Result<Netlink> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Netlink(socket))
    }

    /// Sends a request and returns the body of the answer, or `None` if the kernel has none.
    pub(crate) fn ask(&mut self, kind: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.try_ask(kind, body).map(Result::ok)
    }

    /// Sends a request and returns the body of the answer, or why the kernel refuses it.
    pub(crate) fn try_ask(&mut self, kind: u16, body: &[u8]) -> io::Result<io::Result<Vec<u8>>> {
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend((HEADER as u32 + body.len() as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        self.0.send(&request)?;
        let mut answer = vec![0; ROOM];
        let len = self.0.read(&mut answer)?;
        answer.truncate(len);
        let kind = answer.get(4..6).and_then(|kind| kind.first_chunk::<2>());
        let kind = u16::from_ne_bytes(*kind.ok_or(io::ErrorKind::InvalidData)?);
        let body = answer.split_off(HEADER.min(len));
        if kind != NLMSG_ERROR {
            return Ok(Ok(body));
        }
        // `struct nlmsgerr` begins with a negative error number.
        let number = body.first_chunk::<4>().map_or(0, |number| i32::from_ne_bytes(*number));
        Ok(Err(io::Error::from_raw_os_error(number.wrapping_neg())))
    }
}

/// Builds an attribute.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Builds an attribute that consists of others.
pub(crate) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

/// Iterates over `struct rtattr`: a length, a type, and the value, in units of four bytes.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_attributes_end_the_list() {
        let bytes = attribute(4, &[1, 0, 0, 0]);
        assert_eq!(Attributes(&bytes).collect::<Vec<_>>(), [(4, &[1, 0, 0, 0][..])]);
        for cut in 0..bytes.len() {
            assert_eq!(Attributes(&bytes[..cut]).count(), 0, "{cut}");
        }
    }
}
