//! Memory and CPU time of a process.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Returns the resident memory of a process, in KiB.
pub(super) fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    resident_in(&text).with_context(|| format!("no VmRSS in {path}"))
}

/// Returns the CPU time of all threads of a process, in nanoseconds if the kernel counts them, otherwise in
/// ticks.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let threads = std::fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))?;
    let mut all = Duration::ZERO;
    for thread in threads {
        all += of_thread(&thread?.path())?;
    }
    Ok(all)
}

fn of_thread(path: &Path) -> Result<Duration> {
    let read = |name: &str| std::fs::read_to_string(path.join(name));
    if let Ok(text) = read("schedstat")
        && let Some(time) = text.split_whitespace().next().and_then(|field| field.parse().ok())
    {
        return Ok(Duration::from_nanos(time));
    }
    let text = read("stat").with_context(|| format!("cannot read {}/stat", path.display()))?;
    let ticks = ticks_in(&text).with_context(|| format!("no times in {}/stat", path.display()))?;
    Ok(Duration::from_secs_f64(ticks as f64 / crate::probe::cpu::ticks_per_second()))
}

fn resident_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Parses user and system time, the 14th and 15th field; the name before them may contain anything
/// (proc_pid_stat(5)).
fn ticks_in(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_after_an_odd_name() {
        assert_eq!(ticks_in("7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0"), Some(42));
        assert_eq!(resident_in("VmHWM:\t 9 kB\nVmRSS:\t 12345 kB\n"), Some(12345));
        for noise in ["", "7 (a", "7 (a) S 1 2", "VmRSS:", "VmRSS: x kB"] {
            assert_eq!((ticks_in(noise), resident_in(noise)), (None, None), "{noise}");
        }
    }

    #[test]
    fn this_process_uses_memory_and_cpu() {
        let own = std::process::id();
        assert!(resident(own).unwrap() > 0 && cpu(own).unwrap() > Duration::ZERO);
    }
}
