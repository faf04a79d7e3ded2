//! Starts another plugin and takes its answer.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::reply::{self, Code, Failure};

/// What a plugin may print; results are some hundred bytes.
const OUTPUT_MOST: u64 = 1 << 20;

/// Why a delegate did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvokeError {
    /// It could not be started, so that it has changed nothing.
    NotStarted(Failure),
    /// It says so itself.
    Refused(Failure),
    /// It ended well and printed no JSON: it may have done anything.
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
}

impl Plugin<'_> {
    /// Runs it with this configuration and these variables over those that we were started with. Gives what it printed.
    ///
    /// It has what time the runtime gives us. If we are killed it ends its work, and holds our lock until then; what it did
    /// is in our state, and the next DEL or GC undoes it.
    pub fn run(&self, verb: &str, variables: &[(&str, &str)], config: &Value) -> Result<String, InvokeError> {
        let program = self.find().map_err(InvokeError::NotStarted)?;
        let said = |what: &str, why: &dyn std::fmt::Display| {
            Failure::new(Code::Io, format!("cannot {what} the plugin {}", self.name), why)
        };
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", verb)
            .envs(variables.iter().map(|(name, value)| (OsStr::new(*name), OsStr::new(*value))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                InvokeError::NotStarted(said("start", &format!("{}: {error}", program.display())))
            })?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let text = config.to_string();
        // A plugin that prints before it has read must not wait for us, nor we for it.
        let feed = thread::spawn(move || {
            // One that does not read its input says so by its answer.
            let _ = input.map(|mut input| input.write_all(text.as_bytes()));
        });
        let mut printed = Vec::new();
        let read = output.map_or(Ok(0), |output| output.take(OUTPUT_MOST).read_to_end(&mut printed));
        let status = child.wait();
        let _ = feed.join();
        let status = read.and(status).map_err(|error| InvokeError::Rubbish(said("hear", &error)))?;
        let printed = String::from_utf8_lossy(&printed).into_owned();
        if status.success() {
            return Ok(printed);
        }
        let failure = reply::parse_error(&printed).unwrap_or_else(|| {
            let words: String = printed.trim().chars().take(500).collect();
            said("use", &format!("it ended with {status} and no CNI error: {words:?}"))
        });
        Err(InvokeError::Refused(failure))
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
