//! Tests whether this kernel's offloads work, by sending bytes through each and comparing the result.
//!
//! Some kernels grant an offload and then corrupt data (a short tail rejected, a full-size tail with a wrong
//! header). Before an engine starts, each offload therefore carries a few runs of datagrams with known
//! results, in a scratch network namespace that nothing else sees. Where such a namespace is not permitted,
//! sockets are tested on the loopback device and TUN offloads are not tested: the run-time downgrade is then
//! the only safeguard, and the report says so.

mod overlay;
mod underlay;

use crate::config::Switches;

/// The result for one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The output is as expected.
    Works,
    /// The feature is granted but the output is wrong; it must stay off.
    Broken(String),
    /// The feature could not be tested.
    Untested(String),
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The feature's switch, one of [`Switches::NAMES`].
    pub feature: &'static str,
    /// What was tested.
    pub what: &'static str,
    /// The result.
    pub outcome: Outcome,
}

/// The results of all tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The results in the order of the tests.
    pub checks: Vec<Check>,
}

impl Report {
    /// Returns `wanted` without the features that are broken.
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

/// Tests every offload that is on in `wanted`. Takes some milliseconds.
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
            report.add(feature, "self-test", Outcome::Untested("the self-test thread failed".into()));
        }
        report
    })
}

/// Generates bytes that differ at every offset, so that reordering is detected.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16).wrapping_mul(31)) as u8).collect()
}

/// Runs that have exposed broken kernels: (segment size, total bytes). A short tail, a full tail, a tail of
/// one byte, and the largest run.
const TRAINS: [(usize, usize); 4] = [(1000, 9_300), (1000, 10_000), (1200, 3_601), (1400, 44 * 1400)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offload_of_this_kernel_works_or_is_untested() {
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
                    "CI must be able to test {}: {why}",
                    check.what
                );
            }
        }
    }

    #[test]
    fn broken_features_are_disabled_and_untested_ones_are_not() {
        let mut report = Report::default();
        report.add("gso", "a train", Outcome::Broken("bytes differ".into()));
        report.add("uso", "a train", Outcome::Untested("no rights".into()));
        let chosen = report.choose(Switches::default());
        assert_eq!(chosen, Switches { gso: false, ..Switches::default() });
    }

    #[test]
    fn disabled_features_are_not_tested() {
        let mut none = Switches::default();
        none.switch_off("all").unwrap();
        assert_eq!(run(&none), Report::default());
    }
}
