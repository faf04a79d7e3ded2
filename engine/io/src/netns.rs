//! A private network namespace for one thread, and the few links a test of the kernel needs in it.

use std::io;
use std::net::Ipv4Addr;

use crate::Error;
use crate::sys;

/// Moves the calling thread, and no other, into a new network namespace with `lo` up.
///
/// There is no way back: call it on a thread that ends with the work. The namespace and all devices in
/// it vanish with the last descriptor and thread that use it. Needs CAP_SYS_ADMIN.
pub fn enter_scratch() -> Result<(), Error> {
    sys::unshare_network().map_err(|cause| {
        Error::new("making a scratch network namespace", cause)
            .advise("this needs CAP_SYS_ADMIN and a kernel with network namespaces (CONFIG_NET_NS)")
    })?;
    set_up("lo").map_err(|cause| Error::new("bringing lo up in the scratch namespace", cause))
}

/// Brings the interface `name` of the calling thread's namespace up.
pub fn set_up(name: &str) -> io::Result<()> {
    let flags = sys::interface_flags(name)?;
    sys::set_interface_flags(name, flags | libc::IFF_UP as libc::c_short)
}

/// Gives the interface `name` of the calling thread's namespace one IPv4 address with its subnet route.
pub fn set_address(name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix_len.into())).unwrap_or(0);
    sys::set_interface_address(name, address)?;
    sys::set_interface_netmask(name, Ipv4Addr::from_bits(mask))
}
