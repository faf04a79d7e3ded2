//! Probes the features that this kernel and container grant, by requesting each and releasing it again.
//!
//! A kernel version proves little: features are backported, compiled out, and blocked by seccomp.

use std::io;
use std::os::fd::AsFd;

use crate::nat::Tracking;
use crate::{netns, sys, tun};

// linux/capability.h
const CAPABILITIES: [(&str, u32); 7] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_NICE", 23),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The feature exists and may be used.
    Granted,
    /// The feature cannot be used.
    Missing {
        /// The likely reason, in one clause.
        why: String,
        /// The error number, if a system call failed.
        errno: Option<i32>,
    },
}

impl Probe {
    /// Whether the feature may be used.
    pub fn is_granted(&self) -> bool {
        *self == Probe::Granted
    }

    fn missing(why: impl Into<String>) -> Probe {
        Probe::Missing { why: why.into(), errno: None }
    }
}

/// The TUN features that are granted. Offloads are tried on a device in a scratch namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunProbe {
    /// Opening /dev/net/tun.
    pub device: Probe,
    /// Creating a device.
    pub create: Probe,
    /// A virtio header before each packet.
    pub vnet_hdr: Probe,
    /// Several queues per device.
    pub multi_queue: Probe,
    /// TCP super-packets.
    pub tso: Probe,
    /// UDP super-packets.
    pub uso: Probe,
}

/// Probes whether TUN is usable at all. Returns the first required feature of [`tun_details`] that is
/// missing.
pub fn tun() -> Probe {
    let details = tun_details();
    [details.device, details.create, details.vnet_hdr]
        .into_iter()
        .find(|probe| !probe.is_granted())
        .unwrap_or(Probe::Granted)
}

/// Probes every TUN feature. Leaves nothing behind.
pub fn tun_details() -> TunProbe {
    let fd = match sys::open_device(sys::TUN_PATH) {
        Ok(fd) => fd,
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "no permission to open /dev/net/tun",
                _ => "/dev/net/tun is missing",
            };
            let gap = || Probe::missing("not probed: /dev/net/tun could not be opened");
            let device = refused(&error, why);
            let (create, vnet_hdr, multi_queue) = (gap(), gap(), gap());
            return TunProbe { device, create, vnet_hdr, multi_queue, tso: gap(), uso: gap() };
        }
    };
    let features = sys::tun_features(fd.as_fd()).unwrap_or(0);
    let supported = |flag: i32, why: &str| {
        if features & flag as u32 != 0 { Probe::Granted } else { Probe::missing(why) }
    };
    let vnet_hdr = supported(tun::IFF_VNET_HDR, "the TUN driver does not support vnet_hdr (Linux 2.6.27)");
    let multi_queue =
        supported(tun::IFF_MULTI_QUEUE, "the TUN driver does not support multi-queue (Linux 3.8)");
    // The scratch namespace disappears with its thread, and the device with its descriptor.
    let thread = std::thread::Builder::new().name("loden-probe".into()).spawn(probe_scratch_device);
    let (create, tso, uso) = thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| {
        let gap = || Probe::missing("not probed: examining the scratch device failed");
        (gap(), gap(), gap())
    });
    TunProbe { device: Probe::Granted, create, vnet_hdr, multi_queue, tso, uso }
}

/// Probes sending many datagrams in one call (linux/udp.h UDP_SEGMENT, Linux 4.18).
pub fn udp_segment() -> Probe {
    udp_option(libc::UDP_SEGMENT, 0, "the kernel lacks UDP_SEGMENT (Linux 4.18) or a seccomp filter hides it")
}

/// Probes receiving joined datagrams (linux/udp.h UDP_GRO, Linux 5.0).
pub fn udp_gro() -> Probe {
    udp_option(libc::UDP_GRO, 1, "the kernel lacks UDP_GRO (Linux 5.0) or a seccomp filter hides it")
}

/// Probes creating an AF_XDP socket (linux/if_xdp.h).
pub fn af_xdp() -> Probe {
    let answer = sys::socket(libc::AF_XDP, libc::SOCK_RAW);
    judge(answer.map(drop), "the kernel lacks AF_XDP (CONFIG_XDP_SOCKETS)", "AF_XDP needs CAP_NET_RAW")
}

/// Probes calling bpf(2).
pub fn bpf() -> Probe {
    judge(
        sys::bpf_array(4, 1, 0).map(drop),
        "the kernel lacks bpf(2) (CONFIG_BPF_SYSCALL)",
        "bpf(2) needs CAP_BPF, or a seccomp filter blocks it",
    )
}

/// Probes asking connection tracking about a flow.
pub fn connection_tracking() -> Probe {
    judge(
        Tracking::open().and_then(|mut tracking| tracking.check()),
        "the kernel's connection tracking does not answer (CONFIG_NF_CT_NETLINK)",
        "asking connection tracking needs CAP_NET_ADMIN",
    )
}

/// Probes creating an io_uring.
pub fn io_uring() -> Probe {
    judge(
        sys::io_uring_ring(),
        "the kernel lacks io_uring, or a seccomp filter hides it",
        "blocked by sysctl kernel.io_uring_disabled or a seccomp filter",
    )
}

/// Returns each capability that loden can use, by name, and whether the calling thread holds it.
pub fn capabilities() -> Vec<(&'static str, Probe)> {
    let held = effective_capabilities();
    let judge = |number: u32| match &held {
        Ok(bits) if bits & (1 << number) != 0 => Probe::Granted,
        Ok(_) => Probe::missing("not in the effective set of this process"),
        Err(error) => refused(error, "/proc/thread-self/status is not readable"),
    };
    CAPABILITIES.into_iter().map(|(name, number)| (name, judge(number))).collect()
}

/// Probes device creation, TSO and USO in a new network namespace.
fn probe_scratch_device() -> (Probe, Probe, Probe) {
    let gap = |why: &str| (Probe::missing(why), Probe::missing(why), Probe::missing(why));
    if let Err(error) = netns::enter_scratch() {
        return gap(&format!("not probed: {error}"));
    }
    let wanted = tun::Offloads { csum: true, tso: true, uso: true };
    let config = tun::TunConfig::plain("loden-probe", wanted);
    match tun::open(&config) {
        Err(error) => {
            let create = refused(&error.cause, &error.to_string());
            let gap = || Probe::missing("not probed: no TUN device could be created");
            (create, gap(), gap())
        }
        Ok(device) => {
            let verdict = |on: bool, why: &str| if on { Probe::Granted } else { Probe::missing(why) };
            let tso = verdict(device.granted.tso, "TUNSETOFFLOAD rejected TSO");
            let uso = verdict(device.granted.uso, "TUNSETOFFLOAD rejected USO (Linux 6.2)");
            (Probe::Granted, tso, uso)
        }
    }
}

fn udp_option(option: i32, value: i32, why: &str) -> Probe {
    let answer = sys::socket(libc::AF_INET, libc::SOCK_DGRAM)
        .and_then(|fd| sys::set_option(fd.as_fd(), libc::SOL_UDP, option, value));
    judge(answer, why, why)
}

fn judge(answer: io::Result<()>, absent: &str, forbidden: &str) -> Probe {
    match answer {
        Ok(()) => Probe::Granted,
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => refused(&error, forbidden),
            _ => refused(&error, absent),
        },
    }
}

fn refused(error: &io::Error, why: &str) -> Probe {
    Probe::Missing { why: why.to_owned(), errno: error.raw_os_error() }
}

fn effective_capabilities() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_returns_a_result_with_a_reason() {
        for probe in [tun(), udp_segment(), udp_gro(), af_xdp(), bpf(), connection_tracking(), io_uring()] {
            match probe {
                Probe::Granted => {}
                Probe::Missing { why, .. } => assert!(!why.is_empty()),
            }
        }
        let names: Vec<&str> = capabilities().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), CAPABILITIES.len());
    }

    #[test]
    fn missing_features_and_missing_permissions_have_different_reasons() {
        let answer = |errno| judge(Err(io::Error::from_raw_os_error(errno)), "absent", "forbidden");
        assert_eq!(answer(libc::ENOSYS), Probe::Missing { why: "absent".into(), errno: Some(libc::ENOSYS) });
        assert_eq!(answer(libc::EPERM), Probe::Missing { why: "forbidden".into(), errno: Some(libc::EPERM) });
        assert!(judge(Ok(()), "", "").is_granted());
    }
}
