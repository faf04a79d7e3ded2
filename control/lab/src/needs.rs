//! Requirements of a test for the machine that it runs on.

use std::path::{Path, PathBuf};

use crate::userns;

/// The requirements of a test that the machine does not meet.
///
/// ```no_run
/// # use lab::Needs;
/// if !Needs::hosts().programs(&["ip"]).and("two cores", true).are_met() {
///     return;
/// }
/// ```
#[must_use = "call `are_met`"]
#[derive(Debug, Default)]
pub struct Needs {
    missing: Vec<String>,
}

impl Needs {
    /// Requires the privileges to create namespaces and devices.
    pub fn root() -> Self {
        Needs::default().and("root", userns::privileged())
    }

    /// Requires everything for hosts of a [`crate::Lab`] with a TUN device each.
    pub fn hosts() -> Self {
        let exists = |path: &str| Path::new(path).exists();
        Needs::root()
            .and("/dev/net/tun (modprobe tun)", exists("/dev/net/tun"))
            .and("IPv6 (disabled by ipv6.disable)", exists("/proc/net/if_inet6"))
    }

    /// Requires programs in `PATH`.
    pub fn programs(self, programs: &[&str]) -> Self {
        programs.iter().fold(self, |needs, program| needs.and(*program, find(program).is_some()))
    }

    /// Requires anything else, which is met if `is_there`.
    pub fn and(mut self, what: impl Into<String>, is_there: bool) -> Self {
        if !is_there {
            self.missing.push(what.into());
        }
        self
    }

    /// Returns true if nothing is missing; otherwise prints what is. With `CI` in the environment it panics
    /// instead, so that no test is skipped there unnoticed.
    pub fn are_met(self) -> bool {
        if self.missing.is_empty() {
            return true;
        }
        let missing = self.missing.join(", ");
        assert!(std::env::var_os("CI").is_none(), "this test needs {missing}");
        eprintln!("skipped: this test needs {missing}");
        false
    }
}

/// Returns the path of a program. Searches also where Debian installs programs that an ordinary user's `PATH`
/// lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_requirements_are_named() {
        let needs =
            Needs::default().programs(&["sh", "no-such-program"]).and("water", true).and("fire", false);
        assert_eq!(needs.missing, ["no-such-program", "fire"]);
        assert!(Needs::default().programs(&["sh"]).are_met());
    }
}
