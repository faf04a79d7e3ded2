//! What the doctor finds, as `loden doctor --json` shows it.

use serde::Serialize;

/// Everything the doctor found.
#[derive(Debug, Serialize)]
pub(crate) struct Diagnosis {
    /// Kernel release and machine: `6.18.44 x86_64`.
    pub kernel: String,
    /// Whether `loden run` can work here at all.
    pub can_run: bool,
    /// One entry per question, grouped.
    pub findings: Vec<Finding>,
    /// What the datapath would use, by feature name.
    pub chosen: Vec<Choice>,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Heading it stands under.
    pub group: &'static str,
    /// What was asked for.
    pub name: String,
    /// The answer.
    pub verdict: Verdict,
    /// Details: a value, or why something is missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What the gap costs.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub cost: &'static str,
    /// How to close the gap.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub fix: &'static str,
}

/// How an answer is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// There, and works.
    Yes,
    /// Not there; loden does without.
    No,
    /// Not there; loden cannot do without.
    Needed,
    /// Could not be found out.
    Unknown,
    /// A fact, neither good nor bad.
    Fact,
}

/// One feature of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Choice {
    /// Its name, as `--without` knows it.
    pub feature: &'static str,
    /// Whether it would be used.
    pub used: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}
