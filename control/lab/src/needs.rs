//! What a test needs of the machine that it runs on.

use std::path::{Path, PathBuf};

use crate::userns;

/// The needs of a test that the machine does not meet.
///
/// ```no_run
/// # use lab::Needs;
/// if !Needs::hosts().programs(&["ip"]).and("two cores", true).are_met() {
///     return;
/// }
/// ```
#[must_use = "ask whether they are met"]
#[derive(Debug, Default)]
pub struct Needs {
    missing: Vec<String>,
}

impl Needs {
    /// Requires what it takes to make namespaces and devices.
    pub fn root() -> Self {
        Needs::default().and("root", userns::privileged())
    }

    /// Requires what it takes to make hosts of a [`crate::Lab`] with a TUN device each.
    pub fn hosts() -> Self {
        let exists = |path: &str| Path::new(path).exists();
        Needs::root()
            .and("/dev/net/tun (modprobe tun)", exists("/dev/net/tun"))
            .and("IPv6 (it is switched off: ipv6.disable)", exists("/proc/net/if_inet6"))
    }

    /// Requires programs in `PATH`.
    pub fn programs(self, programs: &[&str]) -> Self {
        programs.iter().fold(self, |needs, program| needs.and(*program, find(program).is_some()))
    }

    /// Requires something else, which `is_there` or is not.
    pub fn and(mut self, what: impl Into<String>, is_there: bool) -> Self {
        if !is_there {
            self.missing.push(what.into());
        }
        self
    }

    /// Returns true if nothing is missing. Otherwise prints what is; with `CI` in the environment that is a
    /// failure, so that nothing is skipped there unseen.
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

/// Returns where a program is. Debian keeps some where an ordinary user's `PATH` ends.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        let needs =
            Needs::default().programs(&["sh", "no-such-program"]).and("water", true).and("fire", false);
        assert_eq!(needs.missing, ["no-such-program", "fire"]);
        assert!(Needs::default().programs(&["sh"]).are_met());
    }
}
