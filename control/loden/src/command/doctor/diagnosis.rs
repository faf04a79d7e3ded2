//! The doctor's findings, as `loden doctor --json` prints them.

use serde::Serialize;

/// All findings on one host.
#[derive(Debug, Serialize)]
pub(crate) struct Diagnosis {
    /// Kernel release and machine: `6.18.44 x86_64`.
    pub kernel: String,
    /// Whether `loden run` can work on this host at all.
    pub can_run: bool,
    /// One entry per question, ordered by group.
    pub findings: Vec<Finding>,
    /// The features of the datapath, and whether each would be used.
    pub chosen: Vec<Choice>,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Heading of the finding.
    pub group: &'static str,
    /// What was examined.
    pub name: String,
    /// The answer.
    pub verdict: Verdict,
    /// A value, or the reason why something is missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The cost of the gap.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub cost: &'static str,
    /// How to close the gap.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub fix: &'static str,
}

/// The meaning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Available and working.
    Yes,
    /// Not available; loden works without.
    No,
    /// Not available; loden cannot run without.
    Needed,
    /// Could not be determined.
    Unknown,
    /// A fact, neither good nor bad.
    Fact,
}

/// One feature of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Choice {
    /// The feature's name, as in `--without`.
    pub feature: &'static str,
    /// Whether the datapath would use it.
    pub used: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}
