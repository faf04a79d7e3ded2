//! A private network namespace for one thread, and the interface settings that kernel tests need in it.

use std::io;
use std::net::Ipv4Addr;

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
