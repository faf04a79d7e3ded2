//! Hides kernel features, so that one machine can test every fallback.
//!
//! A seccomp filter makes a feature's system calls fail as they would on a kernel without the feature. The
//! filter applies to the calling thread and to every thread and program that the thread starts afterwards,
//! and cannot be removed.

use std::ffi::c_long;
use std::io;

use crate::sys;

/// A kernel feature that can be hidden, and the error that its callers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// sendmmsg and recvmmsg: ENOSYS.
    BatchCalls,
    /// The UDP_SEGMENT socket option: ENOPROTOOPT.
    UdpSegment,
    /// The UDP_GRO socket option: ENOPROTOOPT.
    UdpGro,
    /// TUNSETOFFLOAD with any flags: EINVAL.
    TunOffload,
    /// TUNSETOFFLOAD with USO: EINVAL.
    TunUso,
    /// AF_XDP sockets: EAFNOSUPPORT.
    AfXdp,
    /// bpf(2): EPERM.
    Bpf,
    /// io_uring_setup(2): ENOSYS.
    IoUring,
}

/// All features that can be hidden.
pub const ALL: [Feature; 8] = [
    Feature::BatchCalls,
    Feature::UdpSegment,
    Feature::UdpGro,
    Feature::TunOffload,
    Feature::TunUso,
    Feature::AfXdp,
    Feature::Bpf,
    Feature::IoUring,
];

/// Hides `features` from the calling thread and everything it starts. Works without root: it first sets
/// PR_SET_NO_NEW_PRIVS, after which set-uid programs gain no privileges.
pub fn hide(features: &[Feature]) -> io::Result<()> {
    let mut program = Vec::new();
    for &feature in features {
        for rule in rules(feature) {
            rule.compile(&mut program);
        }
    }
    program.push(statement(RET, SECCOMP_RET_ALLOW));
    sys::install_filter(&mut program)
}

// linux/seccomp.h
const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;
const SECCOMP_RET_ERRNO: u32 = 0x0005_0000;
/// Offset of `args` in `struct seccomp_data`; `nr` is at 0.
const ARGUMENTS: u32 = 16;

// linux/bpf_common.h, linux/filter.h
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RET: u16 = 0x06;

enum Test {
    Equal(u8, u32),
    AnyBit(u8, u32),
}

struct Rule {
    call: c_long,
    tests: Vec<Test>,
    errno: i32,
}

impl Rule {
    /// Appends the rule's instructions to `program`. A test that fails jumps to the instruction after the
    /// rule.
    fn compile(&self, program: &mut Vec<libc::sock_filter>) {
        let mut left = 2 * self.tests.len() as u8 + 1;
        program.push(statement(LOAD_WORD, 0));
        program.push(libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: left, k: self.call as u32 });
        for test in &self.tests {
            left -= 2;
            let (code, argument, value) = match *test {
                Test::Equal(argument, value) => (JUMP_IF_EQUAL, argument, value),
                Test::AnyBit(argument, bits) => (JUMP_IF_ANY_BIT, argument, bits),
            };
            // Arguments are 64 bits wide; every value that is tested fits the low half.
            let low = if cfg!(target_endian = "big") { 4 } else { 0 };
            program.push(statement(LOAD_WORD, ARGUMENTS + 8 * u32::from(argument) + low));
            program.push(libc::sock_filter { code, jt: 0, jf: left, k: value });
        }
        program.push(statement(RET, SECCOMP_RET_ERRNO | self.errno as u32));
    }
}

fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn rules(feature: Feature) -> Vec<Rule> {
    let whole = |call: c_long, errno: i32| Rule { call, tests: Vec::new(), errno };
    let socket_option = |option: i32| Rule {
        call: libc::SYS_setsockopt as c_long,
        tests: vec![Test::Equal(1, libc::SOL_UDP as u32), Test::Equal(2, option as u32)],
        errno: libc::ENOPROTOOPT,
    };
    let offload = |more: Option<Test>| Rule {
        call: libc::SYS_ioctl as c_long,
        tests: std::iter::once(Test::Equal(1, sys::TUNSETOFFLOAD)).chain(more).collect(),
        errno: libc::EINVAL,
    };
    match feature {
        Feature::BatchCalls => {
            vec![whole(libc::SYS_sendmmsg, libc::ENOSYS), whole(libc::SYS_recvmmsg, libc::ENOSYS)]
        }
        Feature::UdpSegment => vec![socket_option(libc::UDP_SEGMENT)],
        Feature::UdpGro => vec![socket_option(libc::UDP_GRO)],
        Feature::TunOffload => vec![offload(None)],
        Feature::TunUso => vec![offload(Some(Test::AnyBit(2, crate::tun::TUN_F_USO4)))],
        Feature::AfXdp => vec![Rule {
            call: libc::SYS_socket,
            tests: vec![Test::Equal(0, libc::AF_XDP as u32)],
            errno: libc::EAFNOSUPPORT,
        }],
        Feature::Bpf => vec![whole(libc::SYS_bpf, libc::EPERM)],
        Feature::IoUring => vec![whole(libc::SYS_io_uring_setup, libc::ENOSYS)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe;

    #[test]
    fn hidden_features_fail_and_the_others_still_work() {
        std::thread::spawn(|| {
            let before = (probe::udp_gro(), probe::af_xdp());
            hide(&[Feature::UdpSegment, Feature::Bpf, Feature::IoUring]).unwrap();
            let errno = |probe| match probe {
                probe::Probe::Missing { errno, .. } => errno,
                probe::Probe::Granted => None,
            };
            assert_eq!(errno(probe::udp_segment()), Some(libc::ENOPROTOOPT));
            assert_eq!(errno(probe::bpf()), Some(libc::EPERM));
            assert_eq!(errno(probe::io_uring()), Some(libc::ENOSYS));
            assert_eq!((probe::udp_gro(), probe::af_xdp()), before);
            hide(&ALL).unwrap();
            assert_eq!(errno(probe::udp_gro()), Some(libc::ENOPROTOOPT));
            assert_eq!(errno(probe::af_xdp()), Some(libc::EAFNOSUPPORT));
        })
        .join()
        .unwrap();
    }
}
