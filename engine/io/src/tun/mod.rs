//! TUN devices with a virtio header before each packet, and their queues.
//!
//! This module treats the header (linux/virtio_net.h) as the first [`HEADER_LEN`] bytes of a packet; the
//! caller reads and writes it. The driver learns from writes which queue a flow uses, and delivers the flow's
//! replies on that queue.

mod limit;

use std::ffi::{OsStr, c_int};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use self::limit::Gauge;
use crate::port::slice;
use crate::wait::Waiter;
use crate::{Error, Overlay, PortCounters, sys};

pub use self::limit::OVERHEAD;

/// The driver's numbers: MISC_MAJOR (linux/major.h) and TUN_MINOR (linux/miscdevice.h).
const TUN_MAJOR: u32 = 10;
const TUN_MINOR: u32 = 200;

/// Bytes of `struct virtio_net_hdr` (linux/virtio_net.h), in native byte order.
pub const HEADER_LEN: usize = 10;

/// Maximum spans that one write gathers: UIO_MAXIOV (linux/uio.h).
pub const MAX_SPANS: usize = 1024;

/// Maximum queues of one device: MAX_TAP_QUEUES (drivers/net/tun.c).
pub const MAX_QUEUES: usize = 256;

// linux/if_tun.h
pub(crate) const IFF_TUN: c_int = 0x0001;
pub(crate) const IFF_MULTI_QUEUE: c_int = 0x0100;
pub(crate) const IFF_PERSIST: c_int = 0x0800;
pub(crate) const IFF_NO_PI: c_int = 0x1000;
pub(crate) const IFF_VNET_HDR: c_int = 0x4000;

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
pub(crate) const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// The kinds of unfinished packet that the kernel may deliver. It can grant fewer than requested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets with an incomplete transport checksum.
    pub csum: bool,
    /// TCP super-packets up to 64 KiB, IPv4 and IPv6, with or without CWR. Requires `csum`.
    pub tso: bool,
    /// UDP super-packets, IPv4 and IPv6. Requires `csum` and Linux 6.2.
    pub uso: bool,
}

/// How to open a device.
#[derive(Clone, Debug)]
pub struct TunConfig {
    /// Interface name, up to 15 bytes; the kernel replaces `%d` with a number.
    pub name: String,
    /// Number of queues, 1 to [`MAX_QUEUES`]; 0 counts as 1.
    pub queues: usize,
    /// Bytes of packets that may wait in all queues, each of which has an equal share; 0 for no limit but the
    /// number of packets.
    pub queue_bytes: usize,
    /// Number of queues if the kernel does not limit their bytes. Their length in packets is then all that
    /// limits them, and fewer can be longer. 0 for as many as otherwise.
    pub unlimited_queues: usize,
    /// The offloads to request.
    pub offloads: Offloads,
    /// Whether [`Hold::keep`] will make the device outlive this process. A persistent device from an
    /// earlier run is reused with its addresses and routes. It is recreated if it has one queue and several
    /// are requested, or the reverse.
    pub persist: bool,
}

impl TunConfig {
    /// A device with one queue, which ends with this process.
    pub fn plain(name: &str, offloads: Offloads) -> TunConfig {
        TunConfig {
            name: name.to_owned(),
            queues: 1,
            queue_bytes: 0,
            unlimited_queues: 0,
            offloads,
            persist: false,
        }
    }
}

/// An open device.
#[derive(Debug)]
pub struct Tun {
    /// The name that the kernel assigned.
    pub name: String,
    /// The queues, as many as requested unless a note says otherwise.
    pub queues: Vec<Queue>,
    /// The offloads that the kernel granted.
    pub granted: Offloads,
    /// Whether the queues are limited in bytes.
    pub limited: bool,
    /// One sentence for each requested feature that was not granted.
    pub notes: Vec<String>,
    /// Makes the device persistent.
    pub hold: Hold,
}

/// A descriptor, separate from the queues, that keeps the device in use and can make it persistent.
#[derive(Debug)]
pub struct Hold {
    fd: OwnedFd,
}

/// One queue of a TUN device: one worker's [`Overlay`].
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    /// Counts the bytes that leave the queue, if they are limited.
    gauge: Option<Gauge>,
    vectors: Vectors,
    counters: PortCounters,
}

/// Scratch for a gathered write; its pointers are valid only during the call.
struct Vectors(Box<[libc::iovec]>);

// SAFETY: the pointers are followed only during the `write` call that has just set them.
unsafe impl Send for Vectors {}

/// Opens the device with all its queues. The caller assigns addresses and brings the device up.
///
/// If the driver does not support several queues, opens one and adds a note. Adds a note for each offload
/// that the kernel rejects.
pub fn open(config: &TunConfig) -> Result<Tun, Error> {
    let doing = || format!("creating the TUN device {}", config.name);
    let wanted = config.queues.clamp(1, MAX_QUEUES);
    let mut notes = Vec::new();
    if config.queues > MAX_QUEUES {
        notes.push(format!("{MAX_QUEUES} queues instead of {}: the TUN driver's limit", config.queues));
    }

    let first = open_node()?;
    let multi_queue = wanted > 1 && {
        let supported = sys::tun_features(first.as_fd()).unwrap_or(0) & IFF_MULTI_QUEUE as u32 != 0;
        if !supported {
            notes.push(format!("one queue instead of {wanted}: the TUN driver does not support multi-queue"));
        }
        supported
    };
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | if multi_queue { IFF_MULTI_QUEUE } else { 0 };

    // Any process with CAP_NET_ADMIN can attach a queue to a multi-queue device and receive a share of its
    // packets. The kernel does not return EBUSY, so a name in use must be detected here.
    let existed = sys::interface_flags(&config.name).is_ok();
    let attached = existed && sys::has_carrier(&config.name).unwrap_or(false);
    let attach = || sys::tun_attach(first.as_fd(), &config.name, flags);
    let (name, existed) = match attach() {
        Ok(name) => (name, existed),
        Err(cause) => {
            // Whether a device can have several queues is fixed when it is created.
            let mismatch =
                cause.raw_os_error() == Some(libc::EINVAL) && config.persist && existed && !attached;
            let removed = mismatch && remove_unused(&config.name, flags ^ IFF_MULTI_QUEUE).is_ok();
            let retried = if removed { attach() } else { Err(cause) };
            let failed = |cause| explain(Error::new(doing(), cause), &config.name, existed && !removed);
            (retried.map_err(failed)?, false)
        }
    };
    if existed {
        let persistent =
            sys::tun_flags(first.as_fd()).map_err(|e| Error::new(doing(), e))? & IFF_PERSIST != 0;
        if attached || !persistent {
            return Err(name_in_use(Error::new(doing(), io::Error::from_raw_os_error(libc::EBUSY))));
        }
    }
    sys::tun_set_header_len(first.as_fd(), HEADER_LEN as c_int).map_err(|cause| {
        Error::new(format!("setting the virtio header length of {name}"), cause)
            .advise("loden needs a TUN driver with vnet_hdr, Linux 2.6.32 or later")
    })?;
    let granted = negotiate_offloads(first.as_fd(), config.offloads, &name, &mut notes)?;
    if !config.persist {
        sys::tun_set_persist(first.as_fd(), false).map_err(|cause| persistence_error(&name, cause))?;
    }
    let fd = first
        .try_clone()
        .map_err(|cause| Error::new(format!("duplicating the descriptor of {name}"), cause))?;
    let hold = Hold { fd };

    let gauges = limit_queues(first.as_fd(), if multi_queue { wanted } else { 1 }, config, &mut notes);
    let limited = gauges.is_some();
    let wanted = match config.unlimited_queues {
        fewer @ 1.. if !limited => wanted.min(fewer),
        _ => wanted,
    };
    let mut queues = vec![Queue::new(first)];
    while multi_queue && queues.len() < wanted {
        let next = open_node()?;
        match sys::tun_attach(next.as_fd(), &name, flags) {
            Ok(_) => queues.push(Queue::new(next)),
            Err(cause) => {
                notes.push(format!("{} queues instead of {wanted}: {cause}", queues.len()));
                break;
            }
        }
    }
    // A device that opened fewer queues leaves the counts of the others unused.
    for (queue, gauge) in queues.iter_mut().zip(gauges.into_iter().flatten()) {
        queue.gauge = Some(gauge);
    }
    Ok(Tun { name, queues, granted, limited, notes, hold })
}

/// Limits the bytes in a device's `count` queues. Returns a gauge for each, or `None` if there is no limit,
/// with a note if one was wanted.
fn limit_queues(
    fd: BorrowedFd<'_>,
    count: usize,
    config: &TunConfig,
    notes: &mut Vec<String>,
) -> Option<Vec<Gauge>> {
    if config.queue_bytes > 0 {
        match limit::install(fd, count, config.queue_bytes / count) {
            Ok(gauges) => return Some(gauges),
            Err(error) => notes.push(format!(
                "TUN queues are limited in packets, not in bytes: {error}: needs CAP_BPF and Linux 5.5"
            )),
        }
    }
    limit::remove(fd);
    None
}

/// Removes a persistent device with these flags that an earlier run left behind and no process has open.
fn remove_unused(name: &str, flags: c_int) -> io::Result<()> {
    let node = sys::open_device(sys::TUN_PATH)?;
    sys::tun_attach(node.as_fd(), name, flags)?;
    if sys::tun_flags(node.as_fd())? & IFF_PERSIST == 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // The device disappears when `node` is closed.
    sys::tun_set_persist(node.as_fd(), false)
}

impl Hold {
    /// Makes the device persist after all its queues are closed.
    pub fn keep(&self) -> Result<(), Error> {
        sys::tun_set_persist(self.fd.as_fd(), true)
            .map_err(|cause| persistence_error("the TUN device", cause))
    }
}

impl Queue {
    fn new(fd: OwnedFd) -> Queue {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Queue {
            fd,
            gauge: None,
            vectors: Vectors(vec![empty; MAX_SPANS].into_boxed_slice()),
            counters: PortCounters::default(),
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Overlay for Queue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.counters.read_calls += 1;
            match sys::read(self.fd.as_fd(), buffer) {
                Ok(len) => {
                    self.counters.reads += 1;
                    self.counters.read_datagrams += 1;
                    self.counters.read_bytes += len as u64;
                    if let Some(gauge) = &self.gauge {
                        gauge.took(buffer.get(HEADER_LEN..len).unwrap_or_default());
                    }
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.would_block += 1;
                    if let Some(gauge) = &self.gauge {
                        gauge.emptied();
                    }
                    return Err(error);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.counters.errors += 1;
                    return Err(error);
                }
            }
        }
    }

    fn write(&mut self, arena: &[u8], spans: &[Range<u32>]) -> io::Result<()> {
        let Some((vectors, len)) = gather(&mut self.vectors.0, arena, spans) else {
            self.counters.errors += 1;
            return Err(io::ErrorKind::InvalidInput.into());
        };
        loop {
            self.counters.write_calls += 1;
            // SAFETY: `gather` made each vector from a slice of `arena`, which is borrowed until we return.
            match unsafe { sys::write_vectors(self.fd.as_fd(), vectors) } {
                Ok(_) => {
                    self.counters.writes += 1;
                    self.counters.write_datagrams += 1;
                    self.counters.write_bytes += len;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    match error.raw_os_error() {
                        Some(libc::EAGAIN | libc::ENOBUFS) => self.counters.write_full += 1,
                        _ => self.counters.errors += 1,
                    }
                    return Err(error);
                }
            }
        }
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        waiter.register(self.fd.as_fd(), token)
    }
}

impl std::fmt::Debug for Vectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vectors({})", self.0.len())
    }
}

/// Turns spans into vectors, the only place that does so for a TUN. Returns `None` if there are too many
/// spans or one lies outside the arena.
fn gather<'a>(
    vectors: &'a mut [libc::iovec],
    arena: &[u8],
    spans: &[Range<u32>],
) -> Option<(&'a [libc::iovec], u64)> {
    let vectors = vectors.get_mut(..spans.len())?;
    let mut total = 0;
    for (vector, span) in vectors.iter_mut().zip(spans) {
        let bytes = slice(arena, span)?;
        total += bytes.len() as u64;
        *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    }
    Some((vectors, total))
}

/// Makes the driver's node if there is none and this process may, as in a container with CAP_MKNOD. Whatever
/// has the name stays. Opening a device says what is missing afterwards.
pub fn ensure_node() {
    let path = Path::new(OsStr::from_bytes(sys::TUN_PATH.to_bytes()));
    if path.symlink_metadata().is_ok() {
        return;
    }
    if let Some(directory) = path.parent() {
        // Where it exists, this fails and changes nothing.
        let _ = std::fs::create_dir(directory);
    }
    let _ = sys::make_device(sys::TUN_PATH, TUN_MAJOR, TUN_MINOR);
}

fn open_node() -> Result<OwnedFd, Error> {
    sys::open_device(sys::TUN_PATH).map_err(|cause| {
        let advice = match cause.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "/dev/net/tun is missing: load the tun module or mount the device into the container"
            }
            Some(libc::EPERM | libc::EACCES) => {
                "blocked by the container's device rules or the file's mode: allow character device 10:200, \
                 and run as root or with CAP_NET_ADMIN"
            }
            Some(libc::EMFILE | libc::ENFILE) => crate::files::ADVICE,
            _ => "",
        };
        Error::new("opening /dev/net/tun", cause).advise(advice)
    })
}

/// Requests fewer and fewer offloads until the kernel accepts.
fn negotiate_offloads(
    fd: BorrowedFd<'_>,
    wanted: Offloads,
    name: &str,
    notes: &mut Vec<String>,
) -> Result<Offloads, Error> {
    let mut ask =
        Offloads { csum: wanted.csum, tso: wanted.tso && wanted.csum, uso: wanted.uso && wanted.csum };
    loop {
        match sys::tun_set_offload(fd, bits(ask)) {
            Ok(()) => return Ok(ask),
            Err(_) if ask.uso => {
                notes.push(format!("{name}: UDP segmentation offload (USO) is unavailable: needs Linux 6.2"));
                ask.uso = false;
            }
            Err(_) if ask.tso => {
                notes.push(format!(
                    "{name}: TCP segmentation offload (TSO) is unavailable: packets are transferred singly"
                ));
                ask.tso = false;
            }
            Err(_) if ask.csum => {
                notes.push(format!(
                    "{name}: checksum offload is unavailable: the kernel computes every packet's checksum"
                ));
                ask.csum = false;
            }
            // Kernels before 2.6.27 have no offloads to disable, and a new device has none enabled when a
            // seccomp filter rejects the request.
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => return Ok(ask),
            Err(cause) => return Err(Error::new(format!("setting the offloads of {name}"), cause)),
        }
    }
}

fn bits(offloads: Offloads) -> u32 {
    let pick = |on: bool, bits: u32| if on { bits } else { 0 };
    pick(offloads.csum, TUN_F_CSUM)
        | pick(offloads.tso, TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
        | pick(offloads.uso, TUN_F_USO4 | TUN_F_USO6)
}

fn explain(error: Error, name: &str, existed: bool) -> Error {
    match error.cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            error.advise("creating a TUN device needs CAP_NET_ADMIN in this network namespace")
        }
        Some(libc::EBUSY) => name_in_use(error),
        Some(libc::ENOTTY) => {
            error.advise("/dev/net/tun is not the TUN device: recreate it with `mknod /dev/net/tun c 10 200`")
        }
        Some(libc::EINVAL) if existed => {
            let advice = format!(
                "an interface named {name} of another kind or with another number of queues exists: \
                 remove it with `ip link del {name}` or choose another name"
            );
            error.advise(advice)
        }
        _ if error.cause.kind() == io::ErrorKind::InvalidInput => {
            error.advise("an interface name has 1 to 15 bytes and contains no slash or space")
        }
        _ => error,
    }
}

fn persistence_error(name: &str, cause: io::Error) -> Error {
    Error::new(format!("changing the persistence of {name}"), cause)
}

fn name_in_use(error: Error) -> Error {
    error.advise("the name is in use by another process: stop that process or choose another name")
}

#[cfg(test)]
mod tests;
