//! What a subcommand prints, and where the log goes.
//!
//! `println!` panics when nobody reads any more, as `eprintln!` does on a full disk. Here a reader that has
//! seen enough ends nothing, and text that cannot be written is an error.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use tracing::level_filters::LevelFilter;

/// Prints the result of a command.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // As with `| head`: it has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to the standard output"),
    }
}

/// Prints a line for the person at the terminal. One that cannot be printed is lost.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// Tells whether text for this stream may have colours (<https://no-color.org>).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !forbidden
}

/// Sends the log to stderr.
pub(crate) fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(stderr)
        .with_ansi(has_colours(&stderr()))
        .with_target(false)
        // It would report a line that cannot be written by `eprintln!`, where that cannot be written either.
        .log_internal_errors(false);
    match goes_to_the_journal() {
        // The journal has its own times.
        true => log.without_time().init(),
        false => log.init(),
    }
}

/// Tells whether stderr is connected to systemd's journal (systemd.exec(5), JOURNAL_STREAM).
fn goes_to_the_journal() -> bool {
    let same = || -> io::Result<bool> {
        let stream = File::from(stderr().as_fd().try_clone_to_owned()?).metadata()?;
        let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        Ok(journal == format!("{}:{}", stream.dev(), stream.ino()))
    };
    same().unwrap_or_default()
}
