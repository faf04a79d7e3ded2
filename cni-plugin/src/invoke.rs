//! Starts another plugin and takes its answer.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::reply::{self, Code, Failure};

/// What a plugin may print; results are some hundred bytes.
const OUTPUT_MOST: u64 = 1 << 20;
/// How long what is killed may need to be gone.
const DYING: Duration = Duration::from_secs(2);
/// The same for its children, which nobody may ever wait for: in a container without an init they stay as zombies.
const CHILDREN_DYING: Duration = Duration::from_millis(200);
/// How long children of a delegate that somebody has killed may work on. They need some tens of milliseconds.
const ORPHANED: Duration = Duration::from_secs(5);
/// Between two looks at a plugin that has closed its output and is about to end.
const POLL: Duration = Duration::from_millis(1);

/// Why a delegate did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvokeError {
    /// It could not be started, so that it has changed nothing.
    NotStarted(Failure),
    /// It says so itself; or it hangs where no signal reaches it, and nobody may undo what is not done yet.
    Refused(Failure),
    /// It ended well and printed no JSON, or was killed because it hung: it may have done anything.
    Rubbish(Failure),
}

impl InvokeError {
    /// The error for the runtime.
    pub fn into_failure(self) -> Failure {
        match self {
            InvokeError::NotStarted(failure)
            | InvokeError::Refused(failure)
            | InvokeError::Rubbish(failure) => failure,
        }
    }
}

/// Another plugin, and where it is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Plugin<'a> {
    /// Its file's name, `type` in a configuration.
    pub name: &'a str,
    /// `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// How long it may take.
    pub patience: Duration,
}

impl Plugin<'_> {
    /// Runs it with this configuration and these variables over those that we were started with. Gives what it printed.
    ///
    /// When its time is over, it and what it has started are killed. If we are killed it ends its work, and holds our
    /// lock until then; what it did is in our state, and the next DEL or GC undoes it.
    pub fn run(&self, verb: &str, variables: &[(&str, &str)], config: &Value) -> Result<String, InvokeError> {
        let program = self.find().map_err(InvokeError::NotStarted)?;
        let deadline = Instant::now() + self.patience;
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", verb)
            .envs(variables.iter().map(|(name, value)| (OsStr::new(*name), OsStr::new(*value))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                InvokeError::NotStarted(self.failed("start", format!("{}: {error}", program.display())))
            })?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let text = config.to_string();
        // A plugin that prints before it has read must not wait for us, nor we for it; nor for a pipe that somebody keeps
        // open. So nobody joins these threads.
        thread::spawn(move || {
            // One that does not read its input says so by its answer.
            let _ = input.map(|mut input| input.write_all(text.as_bytes()));
        });
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut printed = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(OUTPUT_MOST).read_to_end(&mut printed));
            // Nobody hears it after the deadline.
            let _ = tell.send(read.map(|_| printed));
        });
        let heard = told.recv_timeout(self.patience).ok();
        let (Some(heard), Some(status)) = (heard, ended(&mut child, deadline)) else {
            return Err(self.kill(&mut child, verb));
        };
        let (printed, status) = heard
            .and_then(|printed| Ok((printed, status?)))
            .map_err(|error| InvokeError::Rubbish(self.failed("hear", error)))?;
        if status.signal().is_some() {
            // Somebody has killed it, and what it had started works on: nobody may undo what is not done yet.
            let_end(group_of(&child), ORPHANED);
        }
        let printed = String::from_utf8_lossy(&printed).into_owned();
        if status.success() {
            return Ok(printed);
        }
        let failure = reply::parse_error(&printed).unwrap_or_else(|| {
            let words: String = printed.trim().chars().take(500).collect();
            self.failed("use", format!("it ended with {status} and no CNI error: {words:?}"))
        });
        Err(InvokeError::Refused(failure))
    }

    /// Ends a plugin whose time is over, and what it has started. It has not been waited for, so that its number is
    /// still the group's.
    fn kill(&self, child: &mut Child, verb: &str) -> InvokeError {
        let seconds = self.patience.as_secs_f64();
        let message = format!("the plugin {} hung: {verb} was not done after {seconds:.1} s", self.name);
        let failure = |what: &str| {
            let details = format!("{what}; its own log, or what it waits for, says why");
            Failure::new(Code::TryAgain, &message, details)
        };
        let group = group_of(child);
        // What cannot be signalled has ended by itself, and is found so below.
        let _ = killpg(group, Signal::SIGKILL);
        let Some(Ok(_)) = ended(child, Instant::now() + DYING) else {
            return InvokeError::Refused(failure(
                "it was killed and has not ended: it is stuck in the kernel",
            ));
        };
        // They die at their own pace, and should be done before anything is undone.
        let_end(group, CHILDREN_DYING);
        InvokeError::Rubbish(failure("it was killed, with what it had started"))
    }

    fn failed(&self, what: &str, why: impl std::fmt::Display) -> Failure {
        Failure::new(Code::Io, format!("cannot {what} the plugin {}", self.name), why)
    }

    fn find(&self) -> Result<PathBuf, Failure> {
        if self.name.is_empty() || self.name.contains('/') || self.name.starts_with('.') {
            let message = format!("the delegate's type {:?} is not the name of a plugin", self.name);
            return Err(Failure::new(Code::BadConfig, message, ""));
        }
        let is_program = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        self.path.iter().map(|place| place.join(self.name)).find(is_program).ok_or_else(|| {
            let places: Vec<String> = self.path.iter().map(|place| place.display().to_string()).collect();
            let details = format!("looked in {}: install the CNI plugins there", places.join(", "));
            Failure::new(Code::BadEnvironment, format!("failed to find plugin {:?}", self.name), details)
        })
    }
}

/// Numbers of processes are below 2^22 (PID_MAX_LIMIT, linux/threads.h).
fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Waits until nobody is left of the group, and no longer than that.
fn let_end(group: Pid, patience: Duration) {
    let deadline = Instant::now() + patience;
    while killpg(group, None).is_ok() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// How it ended; `None` if it has not by then.
fn ended(child: &mut Child, deadline: Instant) -> Option<std::io::Result<ExitStatus>> {
    loop {
        match child.try_wait().transpose() {
            None if Instant::now() < deadline => thread::sleep(POLL),
            answer => return answer,
        }
    }
}
