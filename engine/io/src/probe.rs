//! What this kernel and this container grant, found by asking for it and giving it back at once.
//!
//! A version number says little: features are back-ported, compiled out, and masked by seccomp.

use std::io;
use std::os::fd::AsFd;

use crate::{netns, sys, tun};

// linux/capability.h
const CAPABILITIES: [(&str, u32); 6] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is there and may be used.
    Granted,
    /// It is not.
    Missing {
        /// The likely reason, in one clause.
        why: String,
        /// The system's answer, when a call was refused.
        errno: Option<i32>,
    },
}

impl Probe {
    /// Whether it is granted.
    pub fn is_granted(&self) -> bool {
        *self == Probe::Granted
    }

    fn missing(why: impl Into<String>) -> Probe {
        Probe::Missing { why: why.into(), errno: None }
    }
}

/// What the TUN driver grants; the offloads are tried on a device in a namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunProbe {
    /// Whether /dev/net/tun opens.
    pub device: Probe,
    /// Whether a device may be created.
    pub create: Probe,
    /// Whether packets can carry a virtio header.
    pub vnet_hdr: Probe,
    /// Whether a device may have several queues.
    pub multi_queue: Probe,
    /// Whether TCP super-packets are handed over whole.
    pub tso: Probe,
    /// Whether UDP super-packets are handed over whole.
    pub uso: Probe,
}

/// Whether TUN can be used at all: shorthand for the first gap of [`tun_details`].
pub fn tun() -> Probe {
    let details = tun_details();
    [details.device, details.create, details.vnet_hdr]
        .into_iter()
        .find(|probe| !probe.is_granted())
        .unwrap_or(Probe::Granted)
}

/// Every question about TUN. Leaves nothing behind.
pub fn tun_details() -> TunProbe {
    let fd = match sys::open_device(sys::TUN_PATH) {
        Ok(fd) => fd,
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "/dev/net/tun may not be opened",
                _ => "/dev/net/tun is missing",
            };
            let gap = || Probe::missing("there is no /dev/net/tun to ask");
            let device = refused(&error, why);
            let (create, vnet_hdr, multi_queue) = (gap(), gap(), gap());
            return TunProbe { device, create, vnet_hdr, multi_queue, tso: gap(), uso: gap() };
        }
    };
    let features = sys::tun_features(fd.as_fd()).unwrap_or(0);
    let known = |flag: i32, why: &str| {
        if features & flag as u32 != 0 { Probe::Granted } else { Probe::missing(why) }
    };
    let vnet_hdr = known(tun::IFF_VNET_HDR, "the TUN driver knows no vnet_hdr (Linux 2.6.27)");
    let multi_queue = known(tun::IFF_MULTI_QUEUE, "the TUN driver knows no multi-queue (Linux 3.8)");
    // The namespace a thread enters goes away with the thread, and the device with its descriptor.
    let trial = std::thread::spawn(trial_device).join();
    let (create, tso, uso) = trial.unwrap_or_else(|_| {
        let gap = || Probe::missing("the trial device could not be examined");
        (gap(), gap(), gap())
    });
    TunProbe { device: Probe::Granted, create, vnet_hdr, multi_queue, tso, uso }
}

/// Whether a UDP socket can send many datagrams in one call (linux/udp.h UDP_SEGMENT, Linux 4.18).
pub fn udp_segment() -> Probe {
    udp_option(libc::UDP_SEGMENT, 0, "the kernel has no UDP_SEGMENT (Linux 4.18) or a filter hides it")
}

/// Whether a UDP socket can receive joined datagrams (linux/udp.h UDP_GRO, Linux 5.0).
pub fn udp_gro() -> Probe {
    udp_option(libc::UDP_GRO, 1, "the kernel has no UDP_GRO (Linux 5.0) or a filter hides it")
}

/// Whether AF_XDP sockets can be made (linux/if_xdp.h).
pub fn af_xdp() -> Probe {
    let answer = sys::socket(libc::AF_XDP, libc::SOCK_RAW);
    judge(answer.map(drop), "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS)", "AF_XDP needs CAP_NET_RAW")
}

/// Whether bpf(2) may be called.
pub fn bpf() -> Probe {
    judge(
        sys::bpf_array_map(),
        "the kernel has no bpf(2) (CONFIG_BPF_SYSCALL)",
        "bpf(2) needs CAP_BPF, or a filter forbids it",
    )
}

/// Whether io_uring may be used.
pub fn io_uring() -> Probe {
    judge(
        sys::io_uring_ring(),
        "the kernel has no io_uring, or a filter hides it",
        "sysctl kernel.io_uring_disabled or a filter forbids it",
    )
}

/// The capabilities that matter to us, by name, as the calling thread holds them.
pub fn capabilities() -> Vec<(&'static str, Probe)> {
    let held = effective_capabilities();
    let judge = |number: u32| match &held {
        Ok(bits) if bits & (1 << number) != 0 => Probe::Granted,
        Ok(_) => Probe::missing("not in the effective set of this process"),
        Err(error) => refused(error, "/proc/thread-self/status cannot be read"),
    };
    CAPABILITIES.into_iter().map(|(name, number)| (name, judge(number))).collect()
}

fn trial_device() -> (Probe, Probe, Probe) {
    let gap = |why: &str| (Probe::missing(why), Probe::missing(why), Probe::missing(why));
    if let Err(error) = netns::enter_scratch() {
        return gap(&format!("not tried: {error}"));
    }
    let wanted = tun::Offloads { csum: true, tso: true, uso: true };
    let config =
        tun::TunConfig { name: "loden-probe".to_owned(), queues: 1, offloads: wanted, persist: false };
    match tun::open(&config) {
        Err(error) => {
            let create = refused(&error.cause, &error.to_string());
            (create, Probe::missing("no device to try it on"), Probe::missing("no device to try it on"))
        }
        Ok(device) => {
            let verdict = |on: bool, why: &str| if on { Probe::Granted } else { Probe::missing(why) };
            let tso = verdict(device.granted.tso, "TUNSETOFFLOAD refuses TSO");
            let uso = verdict(device.granted.uso, "TUNSETOFFLOAD refuses USO (Linux 6.2)");
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
    fn every_probe_answers_and_leaves_no_descriptor() {
        // Counting descriptors would race with the other tests; what is dropped is closed.
        for probe in [tun(), udp_segment(), udp_gro(), af_xdp(), bpf(), io_uring()] {
            match probe {
                Probe::Granted => {}
                Probe::Missing { why, .. } => assert!(!why.is_empty()),
            }
        }
        let names: Vec<&str> = capabilities().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), CAPABILITIES.len());
    }

    #[test]
    fn absence_and_refusal_are_told_apart() {
        let answer = |errno| judge(Err(io::Error::from_raw_os_error(errno)), "absent", "forbidden");
        assert_eq!(answer(libc::ENOSYS), Probe::Missing { why: "absent".into(), errno: Some(libc::ENOSYS) });
        assert_eq!(answer(libc::EPERM), Probe::Missing { why: "forbidden".into(), errno: Some(libc::EPERM) });
        assert!(judge(Ok(()), "", "").is_granted());
    }
}
