//! A private network namespace for one thread, the interface settings that kernel tests need in it, and the
//! number by which the kernel tells namespaces apart.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use crate::Error;
use crate::sys;

/// Moves the calling thread, and no other, into a new network namespace with `lo` up.
///
/// The move is final: call this on a thread that ends when its work is done. The namespace and its devices
/// disappear with the last thread and descriptor that use them. Needs CAP_SYS_ADMIN.
pub fn enter_scratch() -> Result<(), Error> {
    sys::unshare_network().map_err(|cause| {
        Error::new("creating a scratch network namespace", cause)
            .advise("this needs CAP_SYS_ADMIN and a kernel with network namespaces (CONFIG_NET_NS)")
    })?;
    set_up("lo").map_err(|cause| Error::new("bringing lo up in the scratch namespace", cause))
}

/// Brings up interface `name` in the calling thread's namespace.
pub fn set_up(name: &str) -> io::Result<()> {
    let flags = sys::interface_flags(name)?;
    sys::set_interface_flags(name, flags | libc::IFF_UP as libc::c_short)
}

/// Assigns an IPv4 address, with its subnet route, to interface `name` in the calling thread's namespace.
pub fn set_address(name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix_len.into())).unwrap_or(0);
    sys::set_interface_address(name, address)?;
    sys::set_interface_netmask(name, Ipv4Addr::from_bits(mask))
}

/// Returns the number of the socket's network namespace, which the kernel gives to no other namespace until
/// the next boot, unlike an inode. Needs Linux 5.14.
pub fn cookie(socket: impl AsFd) -> io::Result<u64> {
    sys::namespace_cookie(socket.as_fd())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::scratch;

    #[test]
    fn each_namespace_has_its_own_cookie() {
        let of_this_thread = || cookie(UnixDatagram::unbound().unwrap());
        let Ok(here) = of_this_thread() else {
            return scratch::missing("SO_NETNS_COOKIE (Linux 5.14)");
        };
        assert_eq!(of_this_thread().unwrap(), here);
        scratch::run(move || {
            let there = of_this_thread().unwrap();
            assert_ne!(there, here);
            assert_eq!(of_this_thread().unwrap(), there);
        });
    }
}
