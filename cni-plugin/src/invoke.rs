//! Runs another plugin and reads its reply.

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
use serde_json::{Value, json};

use crate::delegate;
use crate::lock::Lock;
use crate::reply::{self, Code, Failure, VERSIONS};

/// The names under which this plugin is usually installed.
const OWN_NAMES: [&str; 2] = ["flannel", "loden-cni"];
/// A variable that every delegate inherits, so that this plugin knows if it was started as its own delegate.
pub const DELEGATED: &str = "LODEN_CNI_DELEGATED";
/// Maximum output of a plugin; results take a few hundred bytes.
const MAX_OUTPUT: u64 = 1 << 20;
/// Time limit for a killed plugin to exit.
const EXIT_AFTER_KILL: Duration = Duration::from_secs(2);
/// Time limit for the children of a killed plugin to exit. They may never be reaped: in a container without
/// an init they stay as zombies.
const CHILDREN_EXIT_AFTER_KILL: Duration = Duration::from_millis(200);
/// Time limit for the children of a delegate that others killed to finish. They need some tens of
/// milliseconds.
const ORPHANS_FINISH: Duration = Duration::from_secs(5);
/// Polling interval for a plugin that has closed its output and is about to exit.
const POLL: Duration = Duration::from_millis(1);

/// The message of a plugin that is older than VERSION.
const NO_VERSION: &str = "unknown CNI_COMMAND: VERSION";

/// The failure of a delegate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvokeError {
    /// The delegate could not be started, so it has changed nothing.
    NotStarted(Failure),
    /// The delegate reported an error; or it is stuck where no signal reaches it, and must not be undone
    /// while it still works.
    Failed(Failure),
    /// The delegate succeeded but printed no JSON, or was killed after a timeout: it may have done anything.
    Indeterminate(Failure),
}

impl InvokeError {
    /// Returns the error for the runtime.
    pub fn into_failure(self) -> Failure {
        match self {
            InvokeError::NotStarted(failure)
            | InvokeError::Failed(failure)
            | InvokeError::Indeterminate(failure) => failure,
        }
    }
}

/// Another plugin, and where to find it.
#[derive(Clone, Copy, Debug)]
pub struct Plugin<'a> {
    /// The file name, `type` in a configuration.
    pub name: &'a str,
    /// `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// Time limit for one run.
    pub timeout: Duration,
    /// The lock under which the plugin works.
    pub lock: Option<&'a Lock>,
}

impl Plugin<'_> {
    /// Runs the plugin with this configuration and with our environment plus `variables`. Returns what it
    /// printed.
    ///
    /// After the timeout the plugin and its children are killed. If we are killed, the plugin finishes its
    /// work and holds our lock until then; our saved state covers that work, and the next DEL or GC undoes
    /// it.
    pub fn run(&self, verb: &str, variables: &[(&str, &str)], config: &Value) -> Result<String, InvokeError> {
        let program = self.find().map_err(InvokeError::NotStarted)?;
        let deadline = Instant::now() + self.timeout;
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", verb)
            .env(DELEGATED, "1")
            .envs(variables.iter().map(|(name, value)| (OsStr::new(*name), OsStr::new(*value))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                InvokeError::NotStarted(self.failed("start", format!("{}: {error}", program.display())))
            })?;
        if let Some(lock) = self.lock {
            lock.record(Some(child.id()));
        }
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let text = config.to_string();
        // A plugin that prints before it reads must not block on us, nor we on the plugin or on a pipe that
        // another process keeps open. So these threads are never joined.
        thread::spawn(move || {
            // If the plugin does not read its input, its reply shows that.
            let _ = input.map(|mut input| input.write_all(text.as_bytes()));
        });
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut printed = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(MAX_OUTPUT).read_to_end(&mut printed));
            // Fails after the deadline, when the receiver is gone.
            let _ = sender.send(read.map(|_| printed));
        });
        let received = receiver.recv_timeout(self.timeout).ok();
        let (Some(received), Some(status)) = (received, wait_until(&mut child, deadline)) else {
            return Err(self.kill(&mut child, verb));
        };
        let (printed, status) = received
            .and_then(|printed| Ok((printed, status?)))
            .map_err(|error| InvokeError::Indeterminate(self.failed("read the output of", error)))?;
        if status.signal().is_some() {
            // The delegate was killed, but its children still work and must not be undone before they finish.
            await_exit(group_of(&child), ORPHANS_FINISH);
        }
        let printed = String::from_utf8_lossy(&printed).into_owned();
        if status.success() {
            return Ok(printed);
        }
        let failure = reply::parse_error(&printed).unwrap_or_else(|| {
            let excerpt: String = printed.trim().chars().take(500).collect();
            let details = format!("{status} without a CNI error; its output was {excerpt:?}");
            Failure::new(Code::Io, format!("the plugin {} failed", self.name), details)
        });
        Err(InvokeError::Failed(failure))
    }

    /// Asks which versions of the specification the plugin supports. Returns `None` if its answer does not
    /// say.
    pub fn versions(&self, version: &str) -> Result<Option<Vec<String>>, InvokeError> {
        // Plugins of before VERSION check these first (`GetVersionInfo`, CNI library).
        let dummies = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"].map(|name| (name, "dummy"));
        match self.run("VERSION", &dummies, &json!({ "cniVersion": version })) {
            Ok(printed) => Ok(reply::parse_versions(&printed)),
            Err(InvokeError::Failed(failure)) if failure.message.contains(NO_VERSION) => {
                Ok(Some(vec![VERSIONS[0].to_owned()]))
            }
            // If the plugin hangs, the request itself shows that, and undoes what has to be undone.
            Err(InvokeError::Failed(_) | InvokeError::Indeterminate(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Kills a plugin after its timeout, and its children. The plugin has not been waited for, so its process
    /// ID still names the group.
    fn kill(&self, child: &mut Child, verb: &str) -> InvokeError {
        let seconds = self.timeout.as_secs_f64();
        let message =
            format!("the plugin {} timed out: {verb} did not finish within {seconds:.1} s", self.name);
        let failure = |what: &str| {
            let details = format!("{what}; check its log, and what it waits for");
            Failure::new(Code::TryAgain, &message, details)
        };
        let group = group_of(child);
        // An error means that the plugin has exited by itself; the wait below finds that.
        let _ = killpg(group, Signal::SIGKILL);
        let Some(Ok(_)) = wait_until(child, Instant::now() + EXIT_AFTER_KILL) else {
            return InvokeError::Failed(failure("it was killed but did not exit: it is stuck in the kernel"));
        };
        // The children exit at their own pace, and should be gone before anything is undone.
        await_exit(group, CHILDREN_EXIT_AFTER_KILL);
        InvokeError::Indeterminate(failure("it was killed along with its children"))
    }

    fn failed(&self, what: &str, why: impl std::fmt::Display) -> Failure {
        Failure::new(Code::Io, format!("cannot {what} the plugin {}", self.name), why)
    }

    /// Returns true if the plugin is installed.
    pub fn is_installed(&self) -> bool {
        self.find().is_ok()
    }

    fn find(&self) -> Result<PathBuf, Failure> {
        if self.name.is_empty() || self.name.contains('/') || self.name.starts_with('.') {
            let message = format!("the delegate's type {:?} is not a plugin name", self.name);
            return Err(Failure::new(Code::BadConfig, message, ""));
        }
        if OWN_NAMES.contains(&self.name) {
            return Err(delegate::is_itself(self.name));
        }
        let is_program = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        self.path.iter().map(|place| place.join(self.name)).find(is_program).ok_or_else(|| {
            let places: Vec<String> = self.path.iter().map(|place| place.display().to_string()).collect();
            let details = format!("searched {}: install the CNI plugins there", places.join(", "));
            Failure::new(Code::BadEnvironment, format!("failed to find plugin {:?}", self.name), details)
        })
    }
}

/// Returns the process group of a child. Process IDs are below 2^22 (PID_MAX_LIMIT, linux/threads.h).
fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Waits until every process of the group has exited, but no longer than `limit`.
fn await_exit(group: Pid, limit: Duration) {
    let deadline = Instant::now() + limit;
    while killpg(group, None).is_ok() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// Waits for the child's exit status; `None` after the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> Option<std::io::Result<ExitStatus>> {
    loop {
        match child.try_wait().transpose() {
            None if Instant::now() < deadline => thread::sleep(POLL),
            answer => return answer,
        }
    }
}
