//! Does this kernel's offload really work? Bytes are sent through each one and compared.
//!
//! Kernels exist that grant an offload and then corrupt what goes through it (a short tail refused, a
//! full-size tail with a wrong header). So before an engine starts, each offload carries a few trains of
//! bytes whose result is known, in a network namespace made for it that nothing else sees. Where such a
//! namespace is not granted, the sockets are tried on the loopback device and the TUN not at all: then the
//! run-time downgrade is the only guard, and the report says so.

mod overlay;
mod underlay;

use crate::config::Switches;

/// The result for one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What came out is what should have.
    Works,
    /// It is granted and does something else; the feature must stay off.
    Broken(String),
    /// It could not be tried.
    Untested(String),
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The switch it stands for, one of [`Switches::NAMES`].
    pub feature: &'static str,
    /// What was tried.
    pub what: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// All lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order they were tried.
    pub checks: Vec<Check>,
}

impl Report {
    /// `wanted` without what was found broken.
    pub fn choose(&self, wanted: Switches) -> Switches {
        let mut chosen = wanted;
        for check in &self.checks {
            if matches!(check.outcome, Outcome::Broken(_)) {
                // The names of checks are names of switches.
                let _ = chosen.switch_off(check.feature);
            }
        }
        chosen
    }

    fn add(&mut self, feature: &'static str, what: &'static str, outcome: Outcome) {
        self.checks.push(Check { feature, what, outcome });
    }
}

/// Tries every offload that `wanted` has switched on. Takes some milliseconds.
pub fn run(wanted: &Switches) -> Report {
    let wanted = *wanted;
    let thread = std::thread::Builder::new().name("loden-selftest".into()).spawn(move || {
        let mut report = Report::default();
        let scratch = io::netns::enter_scratch();
        underlay::check(&wanted, &mut report);
        match scratch {
            Ok(()) => overlay::check(&wanted, &mut report),
            Err(error) => overlay::skip(&wanted, &error.to_string(), &mut report),
        }
        report
    });
    let finished = thread.ok().and_then(|thread| thread.join().ok());
    finished.unwrap_or_else(|| {
        let mut report = Report::default();
        for (feature, _) in wanted.named().into_iter().filter(|(_, on)| *on) {
            report.add(feature, "self-test", Outcome::Untested("its thread did not run to its end".into()));
        }
        report
    })
}

/// Bytes that differ at every offset, so that nothing can be swapped unseen.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16).wrapping_mul(31)) as u8).collect()
}

/// The trains that have broken kernels: (segment size, bytes in all). A short tail, a full tail, a tail of
/// one byte, the largest there is.
const TRAINS: [(usize, usize); 4] = [(1000, 9_300), (1000, 10_000), (1200, 3_601), (1400, 44 * 1400)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes_or_says_why_not() {
        let report = run(&Switches::default());
        let features: Vec<_> = report.checks.iter().map(|check| check.feature).collect();
        for feature in ["gso", "gro", "tso", "uso"] {
            assert!(features.contains(&feature), "{feature} is not in {features:?}");
        }
        for check in &report.checks {
            assert!(!matches!(check.outcome, Outcome::Broken(_)), "{check:?}");
            if let Outcome::Untested(why) = &check.outcome {
                assert!(
                    std::env::var("CI").as_deref() != Ok("true"),
                    "CI must be able to try {}: {why}",
                    check.what
                );
            }
        }
    }

    #[test]
    fn what_is_broken_is_switched_off_and_what_is_untested_is_not() {
        let mut report = Report::default();
        report.add("gso", "a train", Outcome::Broken("bytes differ".into()));
        report.add("uso", "a train", Outcome::Untested("no rights".into()));
        let chosen = report.choose(Switches::default());
        assert_eq!(chosen, Switches { gso: false, ..Switches::default() });
    }

    #[test]
    fn a_feature_that_is_off_is_not_tried() {
        let mut none = Switches::default();
        none.switch_off("all").unwrap();
        assert_eq!(run(&none), Report::default());
    }
}
