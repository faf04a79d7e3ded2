//! Socket addresses in the kernel's format.

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A buffer for an address of either family: `struct sockaddr_in` (linux/in.h) or `sockaddr_in6`
/// (linux/in6.h).
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Address {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// Bytes of an [`Address`] that the kernel may write.
pub(super) const ROOM: libc::socklen_t = mem::size_of::<Address>() as libc::socklen_t;

impl Address {
    /// Creates a buffer that holds no address.
    pub(super) fn empty() -> Address {
        // SAFETY: both structures consist of integers, for which zero is valid; family 0 selects neither.
        unsafe { mem::zeroed() }
    }

    /// Stores `address` and returns its length for `msg_namelen`.
    #[inline]
    pub(super) fn set(&mut self, address: &SocketAddr) -> libc::socklen_t {
        *self = Address::empty();
        match address {
            SocketAddr::V4(address) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                mem::size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(address) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t
            }
        }
    }

    /// Returns the address that the kernel stored in `len` bytes, or `None` if it has neither family.
    #[inline]
    pub(super) fn get(&self, len: libc::socklen_t) -> Option<SocketAddr> {
        // SAFETY: all bytes are initialised, and every bit pattern is a valid integer.
        match i32::from(unsafe { self.family }) {
            libc::AF_INET if len as usize >= mem::size_of::<libc::sockaddr_in>() => {
                // SAFETY: as above; the family selects this field.
                let v4 = unsafe { self.v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 if len as usize >= mem::size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above; the family selects this field.
                let v6 = unsafe { self.v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_addresses_are_read_back() {
        let mut address = Address::empty();
        assert_eq!(address.get(ROOM), None);
        for text in ["192.0.2.1:8472", "[2001:db8::1]:1", "[fe80::1%3]:65535"] {
            let given: SocketAddr = text.parse().unwrap();
            let len = address.set(&given);
            assert_eq!(address.get(len), Some(given));
            assert_eq!(address.get(len - 1), None, "truncated");
        }
    }
}
