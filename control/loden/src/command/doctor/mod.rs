//! `loden doctor`: reports what this kernel and container allow, what the datapath would use, what each gap
//! costs and how to close it.
//!
//! Nothing is inferred from version numbers: each feature is acquired and released, and the offloads carry
//! bytes that are compared. Nothing is changed or left behind.

mod diagnosis;
mod examine;
mod render;

use std::io::stdout;
use std::process::ExitCode;

use crate::options::DoctorOptions;
use crate::output::{has_colours, print};

/// Examines the host and prints the diagnosis. The exit code is 0 if loden can run here, else 1.
pub(crate) async fn run(options: &DoctorOptions) -> anyhow::Result<ExitCode> {
    let diagnosis = examine::examine().await;
    let text = match options.json {
        true => serde_json::to_string_pretty(&diagnosis)? + "\n",
        false => render::text(&diagnosis, has_colours(&stdout())),
    };
    print(&text)?;
    Ok(if diagnosis.can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
