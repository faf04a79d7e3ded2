//! Test helpers: a network namespace per test, and what the machine must have for it.

use std::process::Command;

use crate::netns;

/// Runs `test` on a thread of its own in a network namespace of its own. Skips, aloud, where that is not
/// granted; with CI=true it fails instead.
pub(crate) fn run(test: impl FnOnce() + Send + 'static) {
    let body = move || match netns::enter_scratch() {
        Ok(()) => test(),
        Err(error) => missing(&error.to_string()),
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Says what a test misses; with CI=true that is a failure.
pub(crate) fn missing(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have it: {what}");
    eprintln!("skipped: {what}");
}

/// Runs a tool in the calling thread's namespace; false, aloud, when it is not installed.
pub(crate) fn tool(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    match Command::new(program).args(words).output() {
        Err(error) => {
            missing(&format!("{program}: {error}"));
            false
        }
        Ok(output) => {
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
    }
}
