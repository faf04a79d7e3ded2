//! A clock that does not stand still while the machine is suspended.

use std::time::Duration;

use crate::sys;

/// Returns the time since boot, including suspend. `Instant` leaves suspend out, so the age of a key, which
/// has a limit, is measured by this clock.
#[inline]
pub fn since_boot() -> Duration {
    sys::boot_time()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in a child process, which runs in a time namespace.
    const CHILD: &str = "LODEN_TEST_SINCE_BOOT";
    const AHEAD: u64 = 100_000_000;

    /// A time namespace advances the boot time alone, as suspend does.
    #[test]
    fn the_clock_includes_suspend() {
        if std::env::var_os(CHILD).is_some() {
            assert!(since_boot() >= Duration::from_secs(AHEAD), "{:?}", since_boot());
            return;
        }
        let (before, now) = (since_boot(), since_boot());
        assert!(before <= now && !before.is_zero());
        let boot_time = AHEAD.to_string();
        let unshare = |args: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["--time", "--boottime", &boot_time, "--fork"]).args(args).env(CHILD, "1").output()
        };
        if !unshare(&["true"]).is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no time namespaces");
            return;
        }
        let exe = std::env::current_exe().unwrap();
        let name = "clock::tests::the_clock_includes_suspend";
        let output = unshare(&[exe.to_str().unwrap(), "--exact", name]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
}
