//! `loden doctor`: what this kernel and container grant, what would be used of it, what each gap costs and
//! how to close it.
//!
//! Nothing is guessed from version numbers: features are asked for and given back, and the offloads carry
//! bytes that are compared. Nothing is left behind or changed.

mod examine;
mod render;

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;

use serde::Serialize;

use crate::options::DoctorOptions;

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

/// Examines the host and prints the diagnosis. Exit code 0 when loden can run here, 1 when not.
pub(crate) async fn run(options: &DoctorOptions) -> anyhow::Result<ExitCode> {
    let diagnosis = examine::examine().await;
    let mut out = stdout();
    let text = match options.json {
        true => serde_json::to_string_pretty(&diagnosis)? + "\n",
        false => render::text(&diagnosis, out.is_terminal()),
    };
    // Whoever closed the pipe has read enough.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(if diagnosis.can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
