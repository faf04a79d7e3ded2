//! `loden doctor`: what this kernel and container grant, what would be used of it, what each gap costs and
//! how to close it.
//!
//! Nothing is guessed from version numbers: features are asked for and given back, and the offloads carry
//! bytes that are compared. Nothing is left behind or changed.

mod diagnosis;
mod examine;
mod render;

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;

use crate::options::DoctorOptions;

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
