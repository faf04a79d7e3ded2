//! What the bench prints. `println!` panics when nobody reads any more, and on a full disk.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};

use anyhow::{Context, Result};

/// Prints a result. A reader that has seen enough ends nothing.
pub fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to the standard output"),
    }
}

/// Prints a line for the person at the terminal. One that cannot be printed is lost.
pub fn say(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}
