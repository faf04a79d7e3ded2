//! The environment of a run: kernel, CPU, cores, commit, date.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::raw::Environment;

/// Seconds in a day without leap seconds, as POSIX counts them.
const DAY: u64 = 86_400;

/// Collects the environment; what cannot be determined is `unknown`.
pub fn observe() -> Environment {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Environment {
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        cpu: cpu_model(&cpuinfo),
        cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        commit: commit(),
        date: rfc3339(SystemTime::now()),
        command_line: std::env::args().collect(),
    }
}

/// Formats a time as `2026-11-22T12:34:56Z`; times before 1970 become 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Converts a day number since 1970-01-01 to the Gregorian (year, month, day). Counts in 400-year eras from 1
/// March 0000, so that the leap day is the last of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Returns the CPU model as on x86, or the machine's model, which may be all that other architectures report.
fn cpu_model(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let mut pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().to_owned())
    };
    value("model name")
        .or_else(|| value("Model"))
        .unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH))
}

/// Returns the commit of the checkout that this program was built in, or else of the current directory.
fn commit() -> String {
    let beside_program = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let places = [beside_program, Some(PathBuf::from("."))];
    places.into_iter().flatten().find_map(|dir| commit_of(&dir)).unwrap_or_else(|| "unknown".to_owned())
}

fn commit_of(dir: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(dir).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).filter(|hash| !hash.is_empty())?;
    let edited = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    Some(if edited { format!("{commit}+changes") } else { commit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_around_leap_days() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn cpu_models() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
        assert_eq!(cpu_model("processor : 0\nModel : Raspberry Pi 4\n"), "Raspberry Pi 4");
        assert!(cpu_model("no colon here").starts_with("unknown "));
    }

    #[test]
    fn this_machine_has_cores() {
        assert!(observe().cores > 0);
    }
}
