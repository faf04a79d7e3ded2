//! One thin wrapper per system call, with the kernel header that defines its constants.
//!
//! Headers are named by their path below `include/uapi/` in the kernel tree. The packet calls at the end
//! retry nothing and allocate nothing; their `io::Error` holds only the error number.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// linux/if_tun.h
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNSETPERSIST: u32 = 0x4004_54cb;
const TUNGETFEATURES: u32 = 0x8004_54cf;
pub(crate) const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const TUNSETFILTEREBPF: u32 = 0x8004_54e1;

// linux/sockios.h
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCETHTOOL: u32 = 0x8946;

// asm-generic/socket.h
const SO_NETNS_COOKIE: c_int = 71;

/// The device node that creates TUN devices.
pub(crate) const TUN_PATH: &std::ffi::CStr = c"/dev/net/tun";

/// clock_gettime(2) with CLOCK_BOOTTIME (linux/time.h), which the vDSO answers.
#[inline]
pub(crate) fn boot_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. This clock exists since Linux 2.6.39, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// malloc_trim(3): returns free pages of all arenas to the kernel.
#[cfg(target_env = "gnu")]
pub(crate) fn trim_heap() {
    // SAFETY: glibc locks its arenas; memory in use is not touched.
    unsafe { libc::malloc_trim(0) };
}

/// open(2): opens a device node, non-blocking and close-on-exec.
pub(crate) fn open_device(path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: `path` is a terminated string; the result is checked before use.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor is new, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the node of a character device that only its owner may use.
pub(crate) fn make_device(path: &std::ffi::CStr, major: u32, minor: u32) -> io::Result<()> {
    let mode = libc::S_IFCHR | 0o600;
    // SAFETY: `path` is a terminated string, and nothing else is passed by address.
    check(unsafe { libc::mknod(path.as_ptr(), mode, libc::makedev(major, minor)) }).map(drop)
}

/// SO_NETNS_COOKIE (asm-generic/socket.h, since Linux 5.14): returns the number of the socket's network
/// namespace.
pub(crate) fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut length = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    })?;
    Ok(cookie)
}

/// TUNSETIFF (linux/if_tun.h): attaches `fd` to device `name`, creating it if absent; returns its actual
/// name.
pub(crate) fn tun_attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    ioctl_interface(fd, TUNSETIFF, &mut request)?;
    let name: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// TUNGETIFF (linux/if_tun.h): returns the flags of the device that `fd` is attached to.
pub(crate) fn tun_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: an ifreq consists of integers and unions of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    ioctl_interface(fd, TUNGETIFF, &mut request)?;
    // SAFETY: every bit pattern is a valid short, and the kernel has written this field.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags } as u16))
}

/// TUNGETFEATURES (linux/if_tun.h): returns the IFF_ flags that this kernel's TUN driver supports.
pub(crate) fn tun_features(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut features: u32 = 0;
    // SAFETY: the kernel writes one unsigned int into `features`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETFEATURES as _, &raw mut features) })?;
    Ok(features)
}

/// TUNSETVNETHDRSZ (linux/if_tun.h): sets the length of the virtio header before each packet.
pub(crate) fn tun_set_header_len(fd: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int from `len`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const len) }).map(drop)
}

/// TUNSETOFFLOAD (linux/if_tun.h): sets which unfinished packets the kernel may deliver, as TUN_F_ bits.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, bits: u32) -> io::Result<()> {
    // SAFETY: this request takes its argument by value and follows no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, libc::c_ulong::from(bits)) }).map(drop)
}

/// TUNSETPERSIST (linux/if_tun.h): sets whether the device outlives its last descriptor.
pub(crate) fn tun_set_persist(fd: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: this request takes its argument by value and follows no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETPERSIST as _, libc::c_ulong::from(persist)) }).map(drop)
}

/// TUNSETFILTEREBPF (linux/if_tun.h): sets the program that decides which packets enter a queue, or none.
pub(crate) fn tun_set_filter(fd: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let program: c_int = program.map_or(-1, |program| program.as_raw_fd());
    // SAFETY: the kernel reads one int from `program`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETFILTEREBPF as _, &raw const program) }).map(drop)
}

/// SIOCGIFFLAGS (linux/sockios.h, linux/if.h): returns an interface's IFF_ flags, or `ENODEV` if it is
/// absent.
pub(crate) fn interface_flags(name: &str) -> io::Result<libc::c_short> {
    let mut request = interface_request(name)?;
    ioctl_interface(borrow(&control_socket()?), SIOCGIFFLAGS, &mut request)?;
    // SAFETY: every bit pattern is a valid short, and the kernel has written this field.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// SIOCETHTOOL with ETHTOOL_GLINK (linux/ethtool.h): returns whether an interface is up with a carrier. For a
/// TUN a carrier means that a descriptor is attached. Unlike IFF_RUNNING the answer does not lag.
pub(crate) fn has_carrier(name: &str) -> io::Result<bool> {
    const ETHTOOL_GLINK: u32 = 0x0a;
    let mut request = interface_request(name)?;
    // struct ethtool_value: the command, then the result.
    let mut value = [ETHTOOL_GLINK, 0];
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    ioctl_interface(borrow(&control_socket()?), SIOCETHTOOL, &mut request)?;
    Ok(value[1] != 0)
}

/// SIOCETHTOOL with ETHTOOL_GFEATURES (linux/ethtool.h, Linux 2.6.39): returns the first 32 active features
/// of an interface, as NETIF_F bits.
pub(crate) fn active_features(name: &str) -> io::Result<u32> {
    const ETHTOOL_GFEATURES: u32 = 0x3a;
    let mut request = interface_request(name)?;
    // struct ethtool_gfeatures: the command, the number of blocks, then blocks of four words, of which the
    // third is what is active.
    let mut value = [ETHTOOL_GFEATURES, 1, 0, 0, 0, 0];
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    ioctl_interface(borrow(&control_socket()?), SIOCETHTOOL, &mut request)?;
    Ok(value[4])
}

/// SIOCSIFFLAGS (linux/sockios.h): sets an interface's IFF_ flags.
pub(crate) fn set_interface_flags(name: &str, flags: libc::c_short) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags;
    ioctl_interface(borrow(&control_socket()?), SIOCSIFFLAGS, &mut request)
}

/// SIOCSIFADDR (linux/sockios.h): sets an interface's IPv4 address.
pub(crate) fn set_interface_address(name: &str, address: Ipv4Addr) -> io::Result<()> {
    set_interface_inet(name, SIOCSIFADDR, address)
}

/// SIOCSIFNETMASK (linux/sockios.h): sets an interface's IPv4 netmask.
pub(crate) fn set_interface_netmask(name: &str, mask: Ipv4Addr) -> io::Result<()> {
    set_interface_inet(name, SIOCSIFNETMASK, mask)
}

/// unshare(2) with CLONE_NEWNET (linux/sched.h): moves only the calling thread into a new network namespace.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers; the other threads keep their namespace.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// getrlimit(2): returns the soft and the hard limit of open files.
pub(crate) fn file_limits() -> io::Result<(u64, u64)> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) })?;
    Ok((limits.rlim_cur, limits.rlim_max))
}

/// setrlimit(2): sets the soft and the hard limit of open files.
pub(crate) fn set_file_limits(soft: u64, hard: u64) -> io::Result<()> {
    let limits = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one `rlimit`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) }).map(drop)
}

/// sched_setaffinity(2): pins the calling thread to one core.
pub(crate) fn set_affinity(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a cpu_set_t is an array of integers; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `core` was checked against the size of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the kernel reads `set`, whose size is passed with it.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) }).map(drop)
}

/// sched_getaffinity(2): returns the cores that the calling thread may run on.
pub(crate) fn affinity() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is an array of integers; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes into `set`, whose size is passed with it.
    check(unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &raw mut set) })?;
    // SAFETY: every core number is below the size of the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// `struct sched_attr` (linux/sched/types.h) as of version 0, which every kernel with sched_setattr(2) reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SchedAttr {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// sched_setattr(2): sets policy, nice value and priority of the calling thread.
pub(crate) fn set_scheduling(attributes: SchedAttr) -> io::Result<()> {
    let attributes = SchedAttr { size: mem::size_of::<SchedAttr>() as u32, ..attributes };
    // SAFETY: the kernel reads `size` bytes from `attributes`.
    check_long(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// sched_getattr(2): returns policy, nice value and priority of the calling thread.
pub(crate) fn scheduling() -> io::Result<SchedAttr> {
    let mut attributes = SchedAttr::default();
    let size = mem::size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes into `attributes`.
    check_long(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

/// setpriority(2) with PRIO_PROCESS: sets the nice value of the calling thread.
pub(crate) fn set_nice(nice: c_int) -> io::Result<()> {
    // SAFETY: no pointers. On Linux 0 means the calling thread, not the process.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// socket(2): creates a close-on-exec socket, for probing a family or as a handle for ioctl(2).
pub(crate) fn socket(family: c_int, kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before use.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// setsockopt(2): sets an option whose value is an int.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let len = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes from `value`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) }).map(drop)
}

/// SO_MEMINFO (asm-generic/socket.h, Linux 4.12): returns how many packets a socket has dropped.
pub(crate) fn socket_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // asm-generic/socket.h; linux/sock_diag.h.
    const SO_MEMINFO: c_int = 55;
    const SK_MEMINFO_DROPS: usize = 8;
    let mut values = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = mem::size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `values`, and how many into `len`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    Ok(values[SK_MEMINFO_DROPS])
}

/// SO_ATTACH_FILTER with the classic BPF program `ret 0` (linux/filter.h): makes the socket drop every
/// packet.
pub(crate) fn attach_drop_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    // BPF_RET | BPF_K (linux/bpf_common.h): keep k = 0 bytes of the packet.
    attach_filter(fd, &mut [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }])
}

/// SO_ATTACH_FILTER (asm-generic/socket.h): filters a socket's packets with classic BPF (linux/filter.h).
pub(crate) fn attach_filter(fd: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let size = mem::size_of_val(&program) as libc::socklen_t;
    // SAFETY: the kernel copies `len` instructions from `program`, which is borrowed for the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    })
    .map(drop)
}

/// prctl(2) PR_SET_NO_NEW_PRIVS (linux/prctl.h), then seccomp(2) SECCOMP_SET_MODE_FILTER (linux/seccomp.h):
/// filters the system calls of the calling thread and of everything it starts.
pub(crate) fn install_filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: c_int = 1;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `program`, which is borrowed for the call.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

/// Lets processes map an array (linux/bpf.h).
pub(crate) const BPF_F_MMAPABLE: u32 = 1 << 10;

/// `struct bpf_insn` (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct BpfInstruction {
    code: u8,
    /// Two fields of four bits, whose order depends on the byte order.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl BpfInstruction {
    pub(crate) fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> BpfInstruction {
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        BpfInstruction { code, registers, offset, immediate }
    }
}

/// bpf(2) BPF_MAP_CREATE (linux/bpf.h): creates an array.
pub(crate) fn bpf_array(value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: c_int = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    // union bpf_attr as BPF_MAP_CREATE reads it: map_type, key_size, value_size, max_entries, map_flags.
    let attributes: [u32; 5] = [BPF_MAP_TYPE_ARRAY, 4, value_size, entries, flags];
    let len = mem::size_of_val(&attributes);
    // SAFETY: the kernel reads `len` bytes from `attributes`; the result is checked before use.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attributes.as_ptr(), len) })?;
    // SAFETY: the descriptor is new, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// bpf(2) BPF_PROG_LOAD (linux/bpf.h): loads a program of type BPF_PROG_TYPE_SOCKET_FILTER.
pub(crate) fn bpf_socket_filter(program: &[BpfInstruction]) -> io::Result<OwnedFd> {
    /// The beginning of union bpf_attr as BPF_PROG_LOAD reads it.
    #[repr(C)]
    struct Attributes {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    let attributes = Attributes {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    let len = mem::size_of_val(&attributes);
    // SAFETY: the kernel reads `len` bytes from `attributes`, and through it the program and a terminated
    // string; the result is checked before use.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, len) })?;
    // SAFETY: the descriptor is new, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// mmap(2): maps `len` bytes of `fd`, shared, readable and writable.
pub(crate) fn map_shared(fd: BorrowedFd<'_>, len: usize) -> io::Result<std::ptr::NonNull<u8>> {
    let (null, protection) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the kernel chooses an unused range of addresses; the result is checked before use.
    let memory = unsafe { libc::mmap(null, len, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    std::ptr::NonNull::new(memory.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// munmap(2): removes a mapping of [`map_shared`]. Nothing may refer to it anymore.
pub(crate) fn unmap(memory: std::ptr::NonNull<u8>, len: usize) {
    // SAFETY: only the owner of the mapping calls this, once, when it is dropped.
    unsafe { libc::munmap(memory.as_ptr().cast(), len) };
}

/// io_uring_setup(2) (linux/io_uring.h): creates and drops a ring of one entry.
pub(crate) fn io_uring_ring() -> io::Result<()> {
    // struct io_uring_params is 120 bytes, all zero for the defaults.
    let mut parameters = [0u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes of `parameters`; the result is checked before use.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })?;
    // SAFETY: the descriptor is new, so it has no other owner; dropping closes it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as c_int) });
    Ok(())
}

/// read(2): reads one packet from a TUN queue.
#[inline]
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
    check_size(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// writev(2): writes one packet to a TUN queue.
///
/// # Safety
///
/// Each element of `vectors` points to readable memory of at least the stated length.
#[inline]
pub(crate) unsafe fn write_vectors(fd: BorrowedFd<'_>, vectors: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: the caller guarantees the memory behind `vectors`; the kernel only reads it.
    check_size(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as c_int) })
}

/// sendmsg(2): sends one message without blocking.
///
/// # Safety
///
/// Every pointer in `message` is null or points to readable memory of at least the stated length.
#[inline]
pub(crate) unsafe fn send_one(fd: BorrowedFd<'_>, message: &libc::msghdr) -> io::Result<usize> {
    // SAFETY: the caller guarantees the pointers; the kernel only reads through them.
    check_size(unsafe { libc::sendmsg(fd.as_raw_fd(), message, SEND_FLAGS) })
}

/// sendmmsg(2): sends messages without blocking and returns how many were sent. An error concerns the first
/// one.
///
/// # Safety
///
/// Each of `messages` meets the requirements of [`send_one`].
#[inline]
pub(crate) unsafe fn send_many(fd: BorrowedFd<'_>, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let (pointer, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
    // SAFETY: the caller guarantees the pointers; the kernel writes only `msg_len` of each message.
    check(unsafe { libc::sendmmsg(fd.as_raw_fd(), pointer, count, SEND_FLAGS as _) })
        .map(|sent| sent as usize)
}

/// recvmsg(2): receives one datagram without blocking and returns its length.
///
/// # Safety
///
/// Every pointer in `message` is null or points to writable memory of at least the stated length, which
/// nothing else accesses during the call.
#[inline]
pub(crate) unsafe fn receive_one(fd: BorrowedFd<'_>, message: &mut libc::msghdr) -> io::Result<usize> {
    // SAFETY: the caller guarantees the pointers.
    check_size(unsafe { libc::recvmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT) })
}

/// recvmmsg(2): receives datagrams without blocking and returns how many of `messages` were filled.
///
/// # Safety
///
/// Each of `messages` meets the requirements of [`receive_one`], and no two of them share memory.
#[inline]
pub(crate) unsafe fn receive_many(fd: BorrowedFd<'_>, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let (pointer, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
    let no_timeout = std::ptr::null_mut();
    // SAFETY: the caller guarantees the pointers.
    check(unsafe { libc::recvmmsg(fd.as_raw_fd(), pointer, count, libc::MSG_DONTWAIT as _, no_timeout) })
        .map(|filled| filled as usize)
}

/// MSG_NOSIGNAL: a broken pipe returns EPIPE and does not raise SIGPIPE.
const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq consists of integers and unions of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let name = name.as_bytes();
    // The terminating zero must fit within the 16 bytes (IFNAMSIZ, linux/if.h).
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(name) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl_interface(fd: BorrowedFd<'_>, code: u32, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request passed here reads and writes at most one ifreq and, for SIOCETHTOOL, the
    // ethtool_value it points to, which the caller keeps alive.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code as _, &raw mut *request) }).map(drop)
}

fn set_interface_inet(name: &str, code: u32, address: Ipv4Addr) -> io::Result<()> {
    let mut request = interface_request(name)?;
    let mut bytes = [0; 14];
    // struct sockaddr_in (linux/in.h): the family is followed by a two-byte port, then the address.
    for (to, from) in bytes[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_addr =
        libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: bytes };
    ioctl_interface(borrow(&control_socket()?), code, &mut request)
}

fn control_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM)
}

fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}
