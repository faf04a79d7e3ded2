//! Test helpers: a network namespace per test, and skipping a test whose requirements are not met.

use std::process::Command;

use crate::netns;

/// Runs `test` on its own thread in its own network namespace. If namespaces are not permitted, skips the
/// test with a message, or fails it when CI=true.
pub(crate) fn run(test: impl FnOnce() + Send + 'static) {
    let body = move || match netns::enter_scratch() {
        Ok(()) => test(),
        Err(error) => missing(&error.to_string()),
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Reports a requirement that this machine does not meet. Panics when CI=true.
pub(crate) fn missing(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "required in CI: {what}");
    eprintln!("skipped: {what}");
}

/// Runs shell commands in the calling thread's namespace. Returns false, with a message, if they fail, as
/// without one of their programs.
pub(crate) fn shell(line: &str) -> bool {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    if !output.status.success() {
        missing(&format!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    output.status.success()
}

/// Runs a command in the calling thread's namespace. Returns false, with a message, if it is not installed.
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
