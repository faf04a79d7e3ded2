//! Busy time of the whole machine from `/proc/stat`.
//!
//! The whole machine and not just the subject's processes, because the kernel does most of a tunnel's work
//! elsewhere: in softirq on any core, in the sender's system calls and in the daemon's.

use std::collections::BTreeMap;
use std::io;

/// Fields of the `cpu` line in order, see proc_pid_stat(5) and proc_stat(5). `guest` and
/// `guest_nice` follow, but are already part of `user` and `nice`.
const KINDS: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

/// Kinds in which a CPU was not busy.
const REST: [&str; 2] = ["idle", "iowait"];

/// Ticks since boot of all CPUs together, by kind, in the order of `KINDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks([u64; KINDS.len()]);

/// Reads `/proc/stat`.
pub fn observe() -> io::Result<Ticks> {
    let text = std::fs::read_to_string("/proc/stat")?;
    parse(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat has no usable cpu line"))
}

/// Parses the line of all CPUs; `None` if it is missing or not numeric. Kernels before 2.6.11 have no
/// `steal`: missing fields at the end count as zero, but the first four must be present.
pub fn parse(text: &str) -> Option<Ticks> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let mut ticks = [0; KINDS.len()];
    let mut found = 0;
    for (slot, field) in ticks.iter_mut().zip(line.split_ascii_whitespace()) {
        *slot = field.parse().ok()?;
        found += 1;
    }
    (found >= 4).then_some(Ticks(ticks))
}

/// Returns the number of ticks per second in `/proc/stat`.
pub fn ticks_per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    // USER_HZ is 100 on every architecture that Rust supports.
    ticks.ok().flatten().map_or(100.0, |ticks| ticks as f64)
}

impl Ticks {
    /// Returns the seconds since `earlier` by kind, plus `busy`: all but idle and iowait. iowait may
    /// decrease, as the kernel documents; a negative step counts as zero.
    pub fn seconds_since(&self, earlier: &Ticks, ticks_per_second: f64) -> BTreeMap<String, f64> {
        let mut busy = 0;
        let mut seconds = BTreeMap::new();
        for (i, kind) in KINDS.iter().enumerate() {
            let step = self.0[i].saturating_sub(earlier.0[i]);
            if !REST.contains(kind) {
                busy += step;
            }
            seconds.insert((*kind).to_owned(), step as f64 / ticks_per_second);
        }
        seconds.insert("busy".to_owned(), busy as f64 / ticks_per_second);
        seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 1 50 1000 7 2 30 4 60 0\ncpu0 50 0 25 500 3 1 15 2 30 0\nintr 1 2 3\n";

    #[test]
    fn busy_excludes_idle_and_iowait_and_counts_guests_once() {
        let before = parse(STAT).unwrap();
        let after = parse("cpu  150 1 80 1200 9 4 90 5 110 0\n").unwrap();
        let seconds = after.seconds_since(&before, 100.0);
        // 50 user + 30 system + 2 irq + 60 softirq + 1 steal
        assert_eq!(seconds["busy"], 1.43);
        assert_eq!(seconds["idle"], 2.0);
        assert_eq!(seconds["softirq"], 0.6);
        assert_eq!(seconds["steal"], 0.01);
    }

    #[test]
    fn time_never_runs_backwards() {
        let later = parse("cpu  100 1 50 1000 3 2 30 4\n").unwrap();
        assert_eq!(later.seconds_since(&parse(STAT).unwrap(), 100.0)["iowait"], 0.0);
    }

    #[test]
    fn the_line_may_be_late_and_short() {
        assert_eq!(parse("intr 5\ncpu 1 2 3 4\n"), Some(Ticks([1, 2, 3, 4, 0, 0, 0, 0])));
    }

    #[test]
    fn noise_is_rejected() {
        for text in [
            "",
            "cpu",
            "cpu ",
            "cpu  \n",
            "cpu0 1 2 3 4",
            "cpu 1 2 3",
            "cpu 1 2 x 4",
            "cpu -1 2 3 4",
            "cpu 99999999999999999999 2 3 4",
            "CPU 1 2 3 4",
            "\u{0}\u{ff}cpu 1",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let before = observe().unwrap();
        let seconds = observe().unwrap().seconds_since(&before, ticks_per_second());
        assert!(seconds["busy"] >= 0.0);
    }
}
