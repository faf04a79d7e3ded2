//! What a worker asks of the kernel's scheduler, and what it is granted.
//!
//! A worker stands in for the kernel's own network stack, which runs before all programs. As one program
//! among others it would wait for whole time slices of its neighbours.

use std::io;

use crate::sys::{self, SchedAttr};

/// The nice value to ask for. A core that a worker shares with one busy program gives it 3 parts of 4
/// (`sched_prio_to_weight`, kernel/sched/core.c).
pub const NICE: i32 = -5;

/// Priority in the realtime class: the lowest one, above all ordinary threads.
const REALTIME_PRIORITY: u32 = 1;

/// What the scheduler grants a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// Whether the thread is in a realtime class.
    pub realtime: bool,
    /// The nice value, which counts unless the thread is in a realtime class.
    pub nice: i32,
    /// What was refused, one sentence each.
    pub refused: Vec<String>,
}

impl Attention {
    /// Whether the thread comes before ordinary threads.
    pub fn is_preferred(&self) -> bool {
        self.realtime || self.nice <= NICE
    }
}

impl std::fmt::Display for Attention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.realtime {
            true => write!(f, "realtime"),
            false => write!(f, "nice {}", self.nice),
        }
    }
}

/// Asks for the calling thread to be preferred, in a realtime class if `realtime` is set. What is refused is
/// left out.
pub fn ask(realtime: bool) -> Attention {
    let mut refused = Vec::new();
    let mut refuse = |what: &str, error: &io::Error| refused.push(format!("{what} was refused: {error}"));
    let fifo =
        SchedAttr { policy: libc::SCHED_RR as u32, priority: REALTIME_PRIORITY, ..SchedAttr::default() };
    match realtime.then(|| sys::set_scheduling(fifo)) {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            refuse("a realtime class", &error);
            prefer(&mut refuse);
        }
        None => prefer(&mut refuse),
    }
    let now = sys::scheduling().unwrap_or_default();
    let realtime = [libc::SCHED_RR, libc::SCHED_FIFO].contains(&(now.policy as i32));
    Attention { realtime, nice: now.nice, refused }
}

/// Asks on a thread of its own, so that the calling thread stays as it is. Fails if there can be no thread.
pub fn try_out(realtime: bool) -> io::Result<Attention> {
    let thread = std::thread::Builder::new().spawn(move || ask(realtime))?;
    Ok(thread.join().unwrap_or_default())
}

fn prefer(refuse: &mut impl FnMut(&str, &io::Error)) {
    // An administrator may have given the process even more.
    let nice = sys::scheduling().unwrap_or_default().nice.min(NICE);
    if let Err(error) = sys::set_nice(nice) {
        refuse(&format!("nice {nice}"), &error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preferred_thread_says_what_it_has() {
        let granted = try_out(false).unwrap();
        assert_eq!(granted.is_preferred(), granted.refused.is_empty(), "{granted:?}");
        assert_eq!(granted.to_string(), format!("nice {}", granted.nice));
        // The calling thread stays as it is.
        assert_ne!(sys::scheduling().map(|now| now.nice).ok(), Some(NICE));
    }

    #[test]
    fn without_the_capability_the_thread_is_ordinary_and_says_why() {
        let granted = std::thread::spawn(|| {
            drop_capabilities();
            ask(true)
        });
        let granted = granted.join().unwrap();
        assert!(!granted.is_preferred() && granted.refused.len() == 2, "{granted:?}");
        assert!(granted.refused[0].starts_with("a realtime class was refused: "), "{granted:?}");
        assert!(granted.refused[1].starts_with("nice -5 was refused: "), "{granted:?}");
    }

    #[test]
    fn a_realtime_thread_is_preferred() {
        let granted = try_out(true).unwrap();
        match granted.refused.as_slice() {
            [] => assert!(granted.realtime && granted.to_string() == "realtime", "{granted:?}"),
            _ => assert!(!granted.realtime, "{granted:?}"),
        }
    }

    /// capset(2) (linux/capability.h, version 3): drops all capabilities of the calling thread, and with
    /// setrlimit(2) the right to a lower nice value.
    fn drop_capabilities() {
        let (header, sets) = ([0x2008_0522u32, 0], [0u32; 6]);
        // SAFETY: the kernel reads a header of two words and two sets of three words each.
        let answer = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
        assert_eq!(answer, 0);
    }
}
