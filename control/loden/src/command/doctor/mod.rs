//! `loden doctor`: reports what this kernel and container allow, what the datapath would use, what each gap
//! costs and how to close it.
//!
//! Nothing is inferred from version numbers: each feature is acquired and released, and the offloads carry
//! bytes that are compared. Nothing is changed or left behind.

mod diagnosis;
mod examine;
mod render;

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;

use crate::options::DoctorOptions;

/// Examines the host and prints the diagnosis. The exit code is 0 if loden can run here, else 1.
pub(crate) async fn run(options: &DoctorOptions) -> anyhow::Result<ExitCode> {
    let diagnosis = examine::examine().await;
    let mut out = stdout();
    let text = match options.json {
        true => serde_json::to_string_pretty(&diagnosis)? + "\n",
        false => render::text(&diagnosis, out.is_terminal()),
    };
    // A reader that closed the pipe has read enough.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(if diagnosis.can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
